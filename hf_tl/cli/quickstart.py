"""Advises on a small example that downloads nothing: a network that knows digits 0-4 is to learn digits 5-9."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from hf_tl.errors import InputError
from hf_tl.files import make_folder


BUDGET = 25.0  # seconds, of advice and report; the network is trained before
EXAMPLES = """\
  hf-tl quickstart
  hf-tl quickstart --seed 1 --out runs/quickstart-1"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    add("--seed", type=int, default=0, help="of canvases, weights and held-out samples (default %(default)s)")
    add("--out", type=Path, default=Path("runs/quickstart"), help="folder for results (default %(default)s)")


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    since = time.monotonic()
    if options.seed < 0:
        raise InputError(f"--seed must be 0 or more, got {options.seed}")
    make_folder(options.out)
    from threadpoolctl import threadpool_limits

    from hf_tl.quickstart import SHOTS, save_digits, save_network
    from hf_tl.strategies.advise import STRATEGIES, advise
    from hf_tl.strategies.report import write_report

    network = options.out / "network-of-digits-0-4"
    print("Digits at random places on noisy canvases: pixels alone do not solve this.", flush=True)
    with threadpool_limits(1):  # more wait for one another longer than such steps take, where the machine is busy
        accuracy = save_network(network, seed=options.seed)
        digits = save_digits(options.out / "digits-5-9", seed=options.seed)
        print(f"A small network has learnt digits 0-4: {accuracy:.3f} right on fresh canvases.")
        print(f"What should be done with it for digits 5-9, with {SHOTS} samples of each?\n", flush=True)
        found = advise(
            str(network),
            str(digits),
            budget=BUDGET,
            strategies=(*STRATEGIES, "from scratch"),
            out=options.out,
            seed=options.seed,
        )
    print(found)
    written = write_report(found, options.out / "report.html")
    print(f"\nwrote {written}, {time.monotonic() - since:.0f} s after the start: open it in a browser")
    print(
        f"The script above runs as it is, from this folder. What to do next:\n"
        f"  hf-tl compare {network} {digits} --shots 1 5 20\n"
        f"                                     curves of all strategies on the same digits, in minutes\n"
        f"  hf-tl advise MODEL DATA            the same advice on your own network and samples\n"
        f"  hf-tl fit MODEL DATA --out FOLDER  a classifier, for hf-tl predict"
    )
