"""Follows the rules of `advise` where results are known, prints what they lose beside any fixed strategy."""

from __future__ import annotations

import argparse
from pathlib import Path

from hf_tl.errors import InputError


EXAMPLES = """\
  hf-tl validate --public path/to/tables
  hf-tl validate --ledgers runs/flowers/ledger.jsonl runs/textures/ledger.jsonl --out validation.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    add("--public", type=Path, metavar="FOLDER", help="csv files of runs, or of methods, that others published")
    add("--ledgers", type=Path, nargs="+", default=[], metavar="FILE", help="of `hf-tl compare`, a dataset each")
    add("--delta", type=float, default=1.0, help="loss in points that does not matter (default %(default)s)")
    add("--out", type=Path, metavar="FILE", help="JSON file for the summary and every loss")


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    from hf_tl.strategies.published import read_ledgers, read_published
    from hf_tl.strategies.validation import validate

    if options.public is None and not options.ledgers:
        raise InputError("--public or --ledgers should say where results are")
    published = [] if options.public is None else read_published(options.public)
    found = validate([*published, *read_ledgers(options.ledgers)], delta=options.delta)
    print(found)
    if options.out is not None:
        print(f"wrote {found.save(options.out)}")
