"""Fits strategies of transfer at equal effort on the same samples, prints curves, differences, crossover and cost."""

from __future__ import annotations

import argparse
from pathlib import Path

from hf_tl.cli.arguments import DATA, MODEL
from hf_tl.errors import InputError


NAMES = ("last layer", "full network", "linear probe", "LoRA", "DoRA", "split", "LP-FT", "full fine-tuning",
         "from scratch")  # fmt: skip
EXAMPLES = """\
  hf-tl compare timm/mobilenetv2_100.ra_in1k beans --image-size 96 --out runs/beans
  hf-tl compare path/to/model path/to/data --strategies "last layer" split "full fine-tuning" --shots 2 5 10 20
  hf-tl compare path/to/model path/to/data --budget 2h --country ESP"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    add("model", help=MODEL)
    add("data", help=DATA)
    names_help = f"{', '.join(NAMES)}, or that of a plug-in (default: all but DoRA and from scratch)"
    add("--strategies", nargs="+", metavar="NAME", help=names_help)
    add("--shots", nargs="+", type=int, metavar="N", help="training samples per class (default 1 2 5 10 20)")
    add("--seeds", type=int, default=3, help="draws for each number of samples (default %(default)s)")
    add("--budget", metavar="TIME", help="no run is begun after it: 90s, 10min, 2h (default: none)")
    add("--epochs", type=int, default=20, help="of each training, at most (default %(default)s)")
    add("--trials", type=int, default=3, help="settings that each strategy may try (default %(default)s)")
    add("--batch-size", type=int, default=16, help="samples per step (default %(default)s)")
    add("--image-size", type=int, help="side of the square images in pixels")
    add("--country", help="where it runs, for the CO2: ESP, Spain")
    add("--part", default="1/1", metavar="I/K", help="this process does every K-th run, from the I-th on")
    add("--out", type=Path, default=Path("runs/compare"), help="folder of the ledger (default %(default)s)")


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    from hf_tl.strategies.compare import SHOTS, STRATEGIES, compare
    from hf_tl.strategies.report import write_report
    from hf_tl.strategies.strategy import Effort

    found = compare(
        options.model,
        options.data,
        strategies=options.strategies or STRATEGIES,
        shots=options.shots or SHOTS,
        seeds=options.seeds,
        budget=options.budget,
        out=options.out,
        image_size=options.image_size,
        effort=Effort(epochs=options.epochs, trials=options.trials, batch_size=options.batch_size),
        country=options.country,
        part=_read_part(options.part),
    )
    print(found.table())
    written = [found.save(options.out / "comparison.json")]
    if found.block[0]:
        written.append(write_report(found, options.out / "report.html"))
    print(f"wrote {' and '.join(str(path) for path in [options.out / 'ledger.jsonl', *written])}")


def _read_part(text: str) -> tuple[int, int]:
    own, _, all_parts = text.partition("/")
    if not (own.isdecimal() and all_parts.isdecimal() and 1 <= int(own) <= int(all_parts)):
        raise InputError(f"--part should be such as 2/4, the second of four processes, got {text!r}")
    return int(own) - 1, int(all_parts)
