"""What users are told: the one error that callers catch, and lines on what was done."""

from __future__ import annotations

import logging
import os


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


def inform(text: str) -> None:
    """Logs a line for the user, once for all processes of a training: "hf_tl" at level INFO, which is shown.

    `logging.getLogger("hf_tl").setLevel("WARNING")` silences it. Where logging is not set up it goes to stderr.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    logger = logging.getLogger("hf_tl")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    if not logger.hasHandlers():
        logger.addHandler(logging.StreamHandler())
    logger.info(text)
