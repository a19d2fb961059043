"""Reads every layer of a network for every row of a dataset, once, into a folder."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from hf_tl.cli.arguments import DATA, MODEL, add_reading, make_folder
from hf_tl.cli.reading import read_task
from hf_tl.table import format_table


EXAMPLES = """\
  hf-tl embed timm/mobilenetv2_100.ra_in1k beans --image-size 160 --out runs/beans
  hf-tl embed path/to/model path/to/images --out runs/images"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    add("model", help=MODEL)
    add("data", help=DATA)
    add(
        "--out",
        type=Path,
        required=True,
        help="folder for the embedding; a pass that was stopped goes on from what it holds",
    )
    add_reading(parser)


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    make_folder(options.out)
    start = time.perf_counter()
    train, test, notes = read_task(options, taps=["auto", "last"], out=options.out)
    rows = []
    for split, embedding in (("train", train), ("test", test)):
        size = f"{embedding.values.nbytes / 2**20:.1f} MiB"
        rows.append([split, *embedding.shape, len(embedding.layers), size, str(options.out / split)])
    print(format_table(["split", "rows", "features", "layers", "size", "folder"], rows))
    for note in notes:
        print(f"note: {note}")
    print(f"\n{time.perf_counter() - start:.0f} s; next: hf-tl probe {options.out}")
