"""Lists the poolings, verbs of policies and heads that other packages bring, and where they come from."""

from __future__ import annotations

import argparse

from hf_tl.errors import InputError
from hf_tl.plugins import GROUP, KINDS, list_plugins, load_plugin
from hf_tl.table import format_table


EXAMPLES = """\
  hf-tl plugins
  hf-tl plugins --check"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--check", action="store_true", help="import each and say which cannot be used")


def run(options: argparse.Namespace) -> None:
    """Runs the command; nothing is imported without --check."""
    found = list_plugins()
    if not found:
        kinds = ", ".join(KINDS)
        print(f"no plug-ins; a package brings one as an entry point KIND.NAME of {GROUP!r}, with a kind among {kinds}")
        return
    header = ["kind", "name", "from", "at"]
    problems = [
        f"{one.kind} {one.name!r} of {one.origin} cannot be used: {one.problem}" for one in found if one.problem
    ]
    print(format_table(header, [[one.kind, one.name, one.origin, one.path] for one in found]))
    for one in found:
        if options.check and not one.problem:
            try:
                load_plugin(one)
            except InputError as error:
                problems.append(str(error))
    for problem in problems:
        print(f"note: {problem}")
    if options.check and not problems:
        print("all of them can be imported")
