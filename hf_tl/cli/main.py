"""hf-tl: finds the command, runs it, and ends in one sentence where the input is at fault."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from hf_tl import __version__
from hf_tl.cli import (
    adapter,
    advise,
    audit,
    compare,
    embed,
    fit,
    layers,
    plugins,
    policy,
    predict,
    probe,
    quickstart,
    rank,
    report,
    similarity,
    validate,
)
from hf_tl.errors import InputError


COMMANDS = {
    "quickstart": quickstart,
    "audit": audit,
    "layers": layers,
    "embed": embed,
    "probe": probe,
    "rank": rank,
    "similarity": similarity,
    "fit": fit,
    "predict": predict,
    "policy": policy,
    "adapter": adapter,
    "compare": compare,
    "advise": advise,
    "report": report,
    "validate": validate,
    "plugins": plugins,
}
QUIET = {  # standard error is for this program's progress bars and sentences
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "critical",
    "HF_HUB_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns 0, 2 after one sentence about unusable input, or what a shell says of a signal."""
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    options = build_parser().parse_args(arguments)
    try:
        options.run(options)
        sys.stdout.flush()
        return 0
    except InputError as error:
        print(f"hf-tl {options.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"hf-tl {options.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read this, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be flushed at the end
        return 141


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands. A command is a module: its docstring is its help, `EXAMPLES` stands below."""
    parser = argparse.ArgumentParser(
        prog="hf-tl", description="Transfer learning, layer by layer.", epilog="hf-tl COMMAND --help shows examples."
    )
    parser.add_argument("--version", action="version", version=f"hf-tl {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        added = commands.add_parser(
            name,
            help=command.__doc__,
            description=command.__doc__,
            epilog=f"examples:\n{command.EXAMPLES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(added)
        added.set_defaults(run=command.run)
    return parser
