"""Fits a head on the full network and on its last layer, and prints what both are worth on the test samples."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_tl.cli.arguments import DATA, MODEL, add_reading, refuse_reading
from hf_tl.cli.reading import load_groups, look_for_twins, read_task
from hf_tl.errors import InputError
from hf_tl.files import make_folder
from hf_tl.plugins import find_plugin, plugin_names


if TYPE_CHECKING:
    import numpy as np

    from hf_tl.embedding.embedding import Embedding
    from hf_tl.probes.grid_search import Cost
    from hf_tl.probes.probe import Probe

HEADS = ("svm", "logreg", "ridge", "knn", "lda", "kernel", "mlp")  # make_head's, named here without importing it
EXAMPLES = """\
  hf-tl probe timm/mobilenetv2_100.ra_in1k beans --image-size 160
  hf-tl probe path/to/text-model path/to/texts.csv --label stars
  hf-tl probe runs/beans --recipe standardize --top 0.25
  hf-tl probe runs/beans --layers --curve --confusion --out runs/beans-probe
  hf-tl probe runs/beans --head logreg -C 0.1 1 10"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    add("model", help=f"{MODEL}; or, without DATA, a folder that `hf-tl embed` wrote")
    add("data", nargs="?", help=DATA)
    taps_help = "auto for all, last for the last, layers by place (..50%%, --taps=-2..) or by pattern (default auto)"
    add("--taps", nargs="+", default=["auto"], metavar="PATTERN", help=taps_help)
    add("--top", type=float, default=1.0, help="share of those layers to keep, from the task side (default 1)")
    head_help = f"{', '.join(HEADS)}, or that of a plug-in (default svm, for numbers ridge)"
    add("--head", metavar="NAME", help=head_help)
    C_help = 'weight of the loss; several values or "auto" to choose on splits of the training samples (default 1)'
    add("-C", "--C", nargs="+", default=["1"], metavar="C", help=C_help)
    add("--layers", action="store_true", help="evaluate each layer, each range of depth and the whole, with a plot")
    add("--curve", action="store_true", help="evaluate 1, 2, 3, 5, ... samples per class, with a plot")
    add("--confusion", action="store_true", help="draw the confusion matrix")
    against_help = "with --layers: what `hf-tl embed` wrote for the same network with random weights"
    add("--against", type=Path, metavar="FOLDER", help=against_help)
    add("--out", type=Path, default=Path("runs/probe"), help="folder for plots (default %(default)s)")
    add_reading(parser)


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    from hf_tl.embedding.recipe import find_recipe
    from hf_tl.probes.probe import compare_probes, compared_features, fit_probe

    start = time.perf_counter()
    C = read_C(options.C)
    if options.head is not None and options.head not in HEADS and find_plugin("head", options.head) is None:
        raise InputError(f"--head {options.head!r} is none of {', '.join([*HEADS, *plugin_names('head')])}")
    if options.against is not None and not options.layers:
        raise InputError("--against compares layer by layer; add --layers")
    if not 0 < options.top <= 1:
        raise InputError(f"--top must be above 0 and at most 1, got {options.top}")
    find_recipe(options.recipe)
    if options.data is None:
        refuse_reading(options, why=f"{options.model!r} has been read already")
    if options.layers or options.curve or options.confusion:
        make_folder(options.out)
    groups, chooses = None, options.curve or not isinstance(C, float)  # samples are held out, or drawn
    if options.data is not None:
        task = read_task(options, taps=[*options.taps, "last"])
        train, test, notes = task.train, task.test, task.notes
        if chooses:
            groups = look_for_twins(task.samples, modality=task.modality, notes=notes)
            groups = None if groups is None else groups[train.indices]
    else:
        (train, test), notes = _load(options.model), []
        if chooses:
            groups = load_groups(Path(options.model), train, notes=notes)
    features = compared_features(recipe=options.recipe, taps=options.taps, top=options.top)
    probes = [fit_probe(train, test, choice, head=options.head, C=C, groups=groups) for choice in features]
    print(compare_probes(probes))
    for note in (*notes, *dict.fromkeys(note for probe in probes for note in probe.notes)):
        print(f"note: {note}")
    _print_classes(probes[0], train, options)
    if options.layers:
        _print_layers(train, test, options)
    if options.curve:
        _print_curve(train, test, options, C, groups)
    print(f"\n{time.perf_counter() - start:.0f} s")


def read_C(words: Sequence[str]) -> Cost:
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


def _title(train: Embedding, options: argparse.Namespace, what: str) -> str:
    """Of a picture: the network, the dataset, and what is shown."""
    return f"{Path(train.network).name} on {Path(options.data or options.model).name}: {what}"


def _print_classes(probe: Probe, train: Embedding, options: argparse.Namespace) -> None:
    """What the scores are worth: beside always saying the same, and class by class."""
    evaluation = probe.evaluation
    print(f"\n{probe.features.name}: {evaluation}\n\n{evaluation.table()}")
    if evaluation.problem == "classification":
        print(f"\n{evaluation.confusion_table()}")
    if options.confusion:
        path, score = options.out / "confusion.png", f"{evaluation.metric} {evaluation.score:.3f}"
        evaluation.plot(path, title=_title(train, options, f"{probe.features.name}: {score}"))
        print(f"wrote {path}")


def _print_layers(train: Embedding, test: Embedding, options: argparse.Namespace) -> None:
    from hf_tl.embedding.full_network import FullNetworkEmbedding
    from hf_tl.probes.layer_probes import layer_probes

    def scaled(first: Embedding, second: Embedding) -> tuple[Embedding, Embedding]:
        fne = FullNetworkEmbedding(recipe=options.recipe, taps=options.taps, top=options.top)
        return fne.fit_transform(first), fne.transform(second)

    untrained = None if options.against is None else scaled(*_load(str(options.against)))
    probes = layer_probes(*scaled(train, test), untrained=untrained)
    path = options.out / "layers.png"
    probes.plot(path, title=_title(train, options, "block by block"))
    print(f"\n{probes.table()}\n\n{probes}\nwrote {path}")


def _print_curve(
    train: Embedding, test: Embedding, options: argparse.Namespace, C: Cost, groups: np.ndarray | None
) -> None:
    from hf_tl.probes.probe import compare_curves, compared_features

    features = compared_features(recipe=options.recipe, taps=options.taps, top=options.top)
    C = "auto" if C == 1.0 else C
    curve = compare_curves(train, test, features, head=options.head, C=C, groups=groups)
    path = options.out / "curve.png"
    note = "scaled with, and chosen on, the samples alone"
    curve.plot(path, title=_title(train, options, options.head or "default head"), note=note, extrapolate=True)
    print(f"\n{curve.table()}\n{curve.compare(*curve.accuracy)}\n{curve.outlook()}\nwrote {path}")
