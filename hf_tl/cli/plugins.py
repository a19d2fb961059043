"""Lists the poolings, actions of policies, heads and scores that other packages bring, and where they come from."""

from __future__ import annotations

import argparse

from hf_tl.errors import InputError
from hf_tl.plugins import GROUP, KINDS, list_plugins
from hf_tl.table import format_table


EXAMPLES = """\
  hf-tl plugins
  hf-tl plugins --check"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--check", action="store_true", help="import each and print which cannot be used")


def run(options: argparse.Namespace) -> None:
    """Runs the command; nothing is imported without --check."""
    found = list_plugins()
    if not found:
        kinds = ", ".join(KINDS)
        print(f"no plug-ins; a package brings one as an entry point KIND.NAME of {GROUP!r}, with a kind among {kinds}")
        return
    print(format_table(["kind", "name", "from", "at"], [[one.kind, one.name, one.origin, one.path] for one in found]))
    if not options.check:
        return
    problems = []
    for one in found:
        try:
            one.load()
        except InputError as error:
            problems.append(str(error))
    print("\n".join(f"note: {problem}" for problem in problems) or "all of them can be imported")
