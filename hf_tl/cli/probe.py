"""Fits a classifier on the full network and on its last layer, and prints their test accuracy."""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hf_tl.cli.arguments import DATA, MODEL, add_reading, make_folder
from hf_tl.cli.reading import read_task
from hf_tl.errors import InputError
from hf_tl.plugins import find_plugin, plugin_names
from hf_tl.table import format_table


if TYPE_CHECKING:
    import numpy as np

    from hf_tl.embedding.embedding import Embedding
    from hf_tl.embedding.recipe import Recipe

HEADS = ("svm", "logreg", "ridge", "knn", "lda", "kernel", "mlp")  # make_head's, named here without importing it
EXAMPLES = """\
  hf-tl probe timm/mobilenetv2_100.ra_in1k beans --image-size 160
  hf-tl probe path/to/text-model path/to/texts.csv --label stars
  hf-tl probe runs/beans --recipe standardize --top 0.25
  hf-tl probe runs/beans --layers --curve --out runs/beans-probe
  hf-tl probe runs/beans --head logreg -C 0.1 1 10"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    add("model", help=f"{MODEL}; or, without DATA, a folder that `hf-tl embed` wrote")
    add("data", nargs="?", help=DATA)
    taps_help = "auto for all, last for the last, layers by place (..50%%, --taps=-2..) or by pattern (default auto)"
    add("--taps", nargs="+", default=["auto"], metavar="PATTERN", help=taps_help)
    add("--top", type=float, default=1.0, help="share of those layers to keep, from the task side (default 1)")
    head_help = f"classifier: {', '.join(HEADS)}, or that of a plug-in (default svm)"
    add("--head", default="svm", metavar="NAME", help=head_help)
    C_help = 'weight of the loss; several values or "auto" to choose on splits of the training samples (default 1)'
    add("-C", "--C", nargs="+", default=["1"], metavar="C", help=C_help)
    add("--layers", action="store_true", help="judge each layer, each range of depth and the whole, with a plot")
    add("--curve", action="store_true", help="judge 1, 2, 3, 5, ... samples per class, with a plot")
    against_help = "with --layers: what `hf-tl embed` wrote for the same network with random weights"
    add("--against", type=Path, metavar="FOLDER", help=against_help)
    add("--out", type=Path, default=Path("runs/probe"), help="folder for plots (default %(default)s)")
    add_reading(parser)


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    from hf_tl.embedding.recipe import find_recipe

    start = time.perf_counter()
    options.C = read_C(options.C)
    if options.head not in HEADS and find_plugin("head", options.head) is None:
        raise InputError(f"--head {options.head!r} is none of {', '.join([*HEADS, *plugin_names('head')])}")
    if options.against is not None and not options.layers:
        raise InputError("--against compares layer by layer; add --layers")
    if not 0 < options.top <= 1:
        raise InputError(f"--top must be above 0 and at most 1, got {options.top}")
    find_recipe(options.recipe)
    if options.layers or options.curve:
        make_folder(options.out)
    if options.data is not None:
        train, test, notes = read_task(options, taps=[*options.taps, "last"])
    else:
        (train, test), notes = _load(options.model), []
    for split, embedding in (("train", train), ("test", test)):
        if embedding.labels is None:
            raise InputError(f"the {split} embedding has no labels; a probe needs the class of every row")
    table, chosen = _probe_table(train, test, options)
    print(table)
    for note in (*notes, *chosen):
        print(f"note: {note}")
    if options.layers:
        _judge_layers(train, test, options)
    if options.curve:
        _judge_samples(train, test, options)
    print(f"\n{time.perf_counter() - start:.0f} s")


def read_C(words: Sequence[str]) -> float | list[float] | str:
    """What -C was given: a number, several, or "auto".

    Raises:
        InputError: anything else.
    """
    if list(words) == ["auto"]:
        return "auto"
    try:
        values = [float(word) for word in words]
    except ValueError as error:
        raise InputError(f'--C takes numbers above 0, or "auto" alone, got {" ".join(words)}') from error
    for value in values:
        if not 0 < value < float("inf"):
            raise InputError(f"--C must be above 0, got {value}")
    return values[0] if len(values) == 1 else values


def _load(folder: str) -> tuple[Embedding, Embedding]:
    from hf_tl.embedding.embedding import Embedding

    if not (Path(folder) / "train" / "embedding.json").is_file():
        raise InputError(
            f"{folder!r} holds no embedding; give a folder that `hf-tl embed` wrote, "
            f"or a model and a dataset: hf-tl probe MODEL DATA"
        )
    return Embedding.load(Path(folder) / "train"), Embedding.load(Path(folder) / "test")


def _judge_layers(train: Embedding, test: Embedding, options: argparse.Namespace) -> None:
    from hf_tl.embedding.full_network import FullNetworkEmbedding
    from hf_tl.probes.layer_probes import layer_probes

    def scaled(first: Embedding, second: Embedding) -> tuple[Embedding, Embedding]:
        fne = FullNetworkEmbedding(recipe=options.recipe, taps=options.taps, top=options.top)
        return fne.fit_transform(first), fne.transform(second)

    untrained = None if options.against is None else scaled(*_load(str(options.against)))
    probes = layer_probes(*scaled(train, test), untrained=untrained)
    path = options.out / "layers.png"
    probes.plot(path, title=f"{Path(train.network).name}, layer by layer")
    print(f"\n{probes.table()}\n\n{probes}\nwrote {path}")


def _judge_samples(train: Embedding, test: Embedding, options: argparse.Namespace) -> None:
    import numpy as np

    from hf_tl.embedding.full_network import FullNetworkEmbedding
    from hf_tl.probes.learning_curve import learning_curve

    curves = []
    for name, recipe, taps, top in _methods(options):
        fne = FullNetworkEmbedding(recipe=recipe, taps=taps, top=top)
        raw, judged = fne.activations(train), fne.activations(test)

        def prepare(
            samples: np.ndarray, others: np.ndarray, fne: FullNetworkEmbedding = fne, raw: Embedding = raw
        ) -> tuple[np.ndarray, np.ndarray]:
            """Scales with the statistics of the few samples alone."""
            few, many = (
                replace(raw, values=part, indices=np.arange(len(part)), labels=None) for part in (samples, others)
            )
            return np.asarray(fne.fit_transform(few)), np.asarray(fne.transform(many))

        C: float | Literal["auto"] = "auto" if options.C == 1.0 else options.C
        curves.append(learning_curve(raw, judged, head=options.head, C=C, prepare=prepare, method=name))
    curve = curves[0].beside(curves[1])
    path = options.out / "curve.png"
    note = "scaled with, and chosen on, the samples alone"
    curve.plot(path, title=f"{Path(train.network).name}, {options.head}", note=note, extrapolate=True)
    print(f"\n{curve.table()}\n{curve.compare(*curve.accuracy)}\n{curve.outlook()}\nwrote {path}")


def _methods(options: argparse.Namespace) -> list[tuple[str, Recipe, Sequence[str], float]]:
    """Name, recipe, taps and share of the features that are compared."""
    from hf_tl.embedding.recipe import RECIPES, find_recipe

    recipe = find_recipe(options.recipe)
    whole = "full network" if options.taps == ["auto"] and options.top == 1 else "chosen layers"
    last = replace(RECIPES["l2"], activation=recipe.activation)
    return [(whole, recipe, options.taps, options.top), ("last layer", last, ["last"], 1.0)]


def _probe_table(train: Embedding, test: Embedding, options: argparse.Namespace) -> tuple[str, list[str]]:
    import numpy as np

    from hf_tl.embedding.full_network import FullNetworkEmbedding
    from hf_tl.probes.heads import make_head
    from hf_tl.probes.svm import LinearSVM

    rows, chosen = [], []
    for name, recipe, taps, top in _methods(options):
        start = time.perf_counter()
        fne = FullNetworkEmbedding(recipe=recipe, taps=taps, top=top)
        features, judged = fne.fit_transform(train), fne.transform(test)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            head = make_head(options.head, features.shape, C=options.C)
            head.fit(features.values, np.asarray(train.labels))
        accuracy = float(head.score(judged.values, np.asarray(test.labels)))
        if isinstance(head, LinearSVM) and head.search_ is not None:
            chosen.append(f"{name}: {head.search_}")
        chosen += [f"{name}: {warning.message}" for warning in caught]
        used = "l2" if name == "last layer" else options.recipe
        seconds = f"{time.perf_counter() - start:.1f} s"
        rows.append([name, used, len(features.layers), features.shape[1], len(train), len(test), accuracy, seconds])
    header = ["features of", "recipe", "layers", "features", "train samples", "test samples", "test accuracy", "fit"]
    return format_table(header, rows), chosen
