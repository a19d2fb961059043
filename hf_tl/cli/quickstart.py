"""Transfers from digits 0-4 to digits 5-9, prints a table, writes a plot."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from hf_tl.errors import InputError
from hf_tl.files import make_folder


EXAMPLES = """\
  hf-tl quickstart
  hf-tl quickstart --seed 1 --out runs/quickstart-1"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    add("--seed", type=int, default=0, help="of canvases, weights and draws (default 0)")
    add("--out", type=Path, default=Path("runs/quickstart"), help="folder for results (default %(default)s)")


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    from hf_tl import quickstart as experiment

    if options.seed < 0:
        raise InputError(f"--seed must be 0 or more, got {options.seed}")
    make_folder(options.out)
    print("Digits at random places on noisy canvases: pixels alone do not solve this.")
    print("A small network learns digits 0-4; digits 5-9 are then learnt from few samples, in six ways.\n")
    start = time.perf_counter()
    results = experiment.run(seed=options.seed)
    files = experiment.save(results, options.out)
    print(f"\nsource network: {results.source_accuracy:.3f} on fresh canvases of its own digits 0-4")
    print(f"target task, digits 5-9: test accuracy, mean and 95 % interval of {experiment.DRAWS} draws\n")
    print(results.curve.table())
    print()
    for pair in (("full network", "last layer"), ("full network", "from scratch"), ("full network", "fine-tuned")):
        print(results.curve.compare(*pair))
    print(f"\n{experiment.advice(results)}")
    print(f"\n{time.perf_counter() - start:.0f} s; wrote {' and '.join(str(path) for path in files)}")
