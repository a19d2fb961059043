"""The one error that callers catch: the input, not the program, is at fault."""


class InputError(ValueError):
    """What the user gave cannot be used; the message says what was expected, what came and what to do.

    The command line catches this type alone, prints its one sentence and exits with 2. Any other
    exception is a defect of the program and keeps its traceback.
    """


class DummyInputError(InputError):
    """A network runs on no dummy input that is known; whoever has a real one may try again with that."""


def in_one_line(error: BaseException) -> str:
    """The type of an error and the first line of what it says, to be quoted in a sentence."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
