"""Says which strategy to take for a network and a dataset, with its evidence, within a budget of time."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from hf_tl.cli.arguments import DATA, MODEL, REPORT_TO
from hf_tl.files import make_folder
from hf_tl.strategies.reporting import BACKENDS


EXAMPLES = """\
  hf-tl advise timm/mobilenetv2_100.ra_in1k beans --budget 10min --image-size 96
  hf-tl advise path/to/model path/to/data --delta 0.02 --out runs/advice"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    add("model", help=MODEL)
    add("data", help=DATA)
    add("--budget", default="10min", metavar="TIME", help="time that it may take (default %(default)s)")
    add("--delta", type=float, default=0.01, help="loss in accuracy that does not matter (default %(default)s)")
    add("--strategies", nargs="+", metavar="NAME", help="that are considered, see `hf-tl compare --help`")
    add("--image-size", type=int, help="side of the square images in pixels")
    add("--seed", type=int, default=0, help="of the samples that are held out (default %(default)s)")
    add("--report-to", nargs="+", choices=BACKENDS, default=(), help=REPORT_TO)
    add("--out", type=Path, default=Path("runs/advise"), help="folder for the report (default %(default)s)")


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    since = time.monotonic()
    from hf_tl.strategies.advise import STRATEGIES, advise
    from hf_tl.strategies.report import write_report

    make_folder(options.out)
    found = advise(
        options.model,
        options.data,
        budget=options.budget,
        delta=options.delta,
        strategies=options.strategies or STRATEGIES,
        image_size=options.image_size,
        out=options.out,
        seed=options.seed,
        since=since,
        report_to=options.report_to,
    )
    print(found)
    written = write_report(found, options.out / "report.html")
    print(f"wrote {written}, {time.monotonic() - since:.0f} s after the start")
