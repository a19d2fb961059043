"""Fits a linear SVM on the full network and on its last layer, and prints their test accuracy."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hf_tl.cli.arguments import DATA, MODEL, add_reading
from hf_tl.cli.reading import read_task
from hf_tl.errors import InputError
from hf_tl.table import format_table


if TYPE_CHECKING:
    from hf_tl.embedding.embedding import Embedding

EXAMPLES = """\
  hf-tl probe timm/mobilenetv2_100.ra_in1k beans --image-size 160
  hf-tl probe path/to/text-model path/to/texts.csv --label stars
  hf-tl probe runs/beans --recipe standardize --top 0.25"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    add("model", help=f"{MODEL}; or, without DATA, a folder that `hf-tl embed` wrote")
    add("data", nargs="?", help=DATA)
    taps_help = '"auto" for all layers, "last" for the last, or glob patterns over layer names (default auto)'
    add("--taps", nargs="+", default=["auto"], metavar="PATTERN", help=taps_help)
    add("--top", type=float, default=1.0, help="share of those layers to keep, from the task side (default 1)")
    add("--C", type=float, default=1.0, help="the SVM's weight of the loss (default 1)")
    add_reading(parser)


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    from hf_tl.embedding.embedding import Embedding

    start = time.perf_counter()
    if not options.C > 0:
        raise InputError(f"--C must be above 0, got {options.C}")
    if not 0 < options.top <= 1:
        raise InputError(f"--top must be above 0 and at most 1, got {options.top}")
    if options.data is not None:
        train, test, notes = read_task(options, taps=[*options.taps, "last"])
    elif (Path(options.model) / "train" / "embedding.json").is_file():
        train, test = (Embedding.load(Path(options.model) / split) for split in ("train", "test"))
        notes = []
    else:
        raise InputError(
            f"{options.model!r} holds no embedding; give a folder that `hf-tl embed` wrote, "
            f"or a model and a dataset: hf-tl probe MODEL DATA"
        )
    print(_probe_table(train, test, options))
    for note in notes:
        print(f"note: {note}")
    print(f"\n{time.perf_counter() - start:.0f} s")


def _probe_table(train: Embedding, test: Embedding, options: argparse.Namespace) -> str:
    from hf_tl.embedding.full_network import FullNetworkEmbedding
    from hf_tl.embedding.recipe import RECIPES, find_recipe
    from hf_tl.probes.svm import LinearSVM

    recipe = find_recipe(options.recipe)
    for split, embedding in (("train", train), ("test", test)):
        if embedding.labels is None:
            raise InputError(f"the {split} embedding has no labels; a probe needs the class of every row")
    whole = "full network" if options.taps == ["auto"] and options.top == 1 else "chosen layers"
    last = replace(RECIPES["l2"], activation=recipe.activation)
    rows = []
    for name, part, taps, top in ((whole, recipe, options.taps, options.top), ("last layer", last, "last", 1.0)):
        start = time.perf_counter()
        fne = FullNetworkEmbedding(recipe=part, taps=taps, top=top)
        features, judged = fne.fit_transform(train), fne.transform(test)
        svm = LinearSVM(C=options.C).fit(features, train.labels)
        accuracy = float(svm.score(judged, test.labels))
        used = options.recipe if part is recipe else "l2"
        seconds = f"{time.perf_counter() - start:.1f} s"
        rows.append([name, used, len(features.layers), features.shape[1], len(train), len(test), accuracy, seconds])
    header = ["features of", "recipe", "layers", "features", "train rows", "test rows", "test accuracy", "fit"]
    return format_table(header, rows)
