"""Writes the report of the runs that a folder of `hf-tl compare` has so far; nothing is fitted."""

from __future__ import annotations

import argparse
from pathlib import Path

from hf_tl.errors import InputError


EXAMPLES = """\
  hf-tl report runs/beans
  hf-tl report runs/beans --out beans.html"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("folder", type=Path, help="the --out of `hf-tl compare`, of one process or of several")
    parser.add_argument("--out", type=Path, help="HTML file (default: report.html in the folder)")


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    from hf_tl.cli.compare import read_settings
    from hf_tl.strategies.compare import compare
    from hf_tl.strategies.report import write_report

    settings = read_settings(options.folder)
    model, data = settings.pop("model"), settings.pop("data")
    found = compare(model, data, **settings, out=options.folder, budget=0, progress=False)
    if not found.block[0]:
        raise InputError(
            f"the {len(found.runs)} of {found.planned} runs in {str(options.folder)!r} are too few to compare: every "
            "strategy needs two seeds of one number of samples; `hf-tl compare` does the others"
        )
    print(found.table())
    print(f"wrote {write_report(found, options.out or options.folder / 'report.html')}")
