"""The command line: hf-tl embed | probe | layers | quickstart."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hf_tl.errors import InputError
from hf_tl.table import format_table


if TYPE_CHECKING:
    from hf_tl.embedding.embedding import Embedding
    from hf_tl.embedding.recipe import Recipe

QUIET = {  # standard error is for this program's progress bars and sentences
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}
MODEL = "Hub id, timm model name, folder, or local-dir:FOLDER"
DATA = "Hub id, .csv/.json/.parquet file, or folder"
RECIPE = "paper, fne-package, standardize, l2 or raw (default %(default)s)"
EXAMPLES = {
    "quickstart": """\
  hf-tl quickstart
  hf-tl quickstart --seed 1 --out runs/quickstart-1""",
    "layers": """\
  hf-tl layers timm/mobilenetv2_100.ra_in1k
  hf-tl layers path/to/model --image-size 160""",
    "embed": """\
  hf-tl embed timm/mobilenetv2_100.ra_in1k beans --image-size 160 --out runs/beans
  hf-tl embed path/to/model path/to/images --out runs/images""",
    "probe": """\
  hf-tl probe timm/mobilenetv2_100.ra_in1k beans --image-size 160
  hf-tl probe path/to/text-model path/to/texts.csv --label stars
  hf-tl probe runs/beans --recipe standardize --top 0.25""",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns 0, or 2 after one sentence about unusable input."""
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
        return 0
    except InputError as error:
        print(f"hf-tl {options.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"hf-tl {options.command}: interrupted", file=sys.stderr)
        return 130


def quickstart(options: argparse.Namespace) -> None:
    """Transfers from digits 0-4 to digits 5-9, prints a table, writes a plot."""
    from hf_tl import quickstart as experiment

    if options.seed < 0:
        raise InputError(f"--seed must be 0 or more, got {options.seed}")
    _make_folder(options.out)
    print("Digits at random places on noisy canvases: pixels alone do not solve this.")
    print("A small network learns digits 0-4; digits 5-9 are then learnt from few samples, in four ways.\n")
    start = time.perf_counter()
    results = experiment.run(seed=options.seed)
    files = experiment.save(results, options.out)
    print(f"\nsource network: {results.source_accuracy:.3f} on fresh canvases of its own digits 0-4")
    print(f"target task, digits 5-9: test accuracy, mean and 95 % interval of {experiment.DRAWS} draws\n")
    print(results.curve.table())
    print()
    for pair in (("last layer", "raw pixels"), ("full network", "last layer"), ("full network", "from scratch")):
        print(results.curve.compare(*pair))
    print(results.curve.best())
    print(f"\n{time.perf_counter() - start:.0f} s; wrote {' and '.join(str(path) for path in files)}")


def layers(options: argparse.Namespace) -> None:
    """Prints the layers of a network in execution order, with what the embedding reads at each."""
    from hf_tl.embedding.taps import LAST, find_taps
    from hf_tl.layers import list_layers
    from hf_tl.models import example_batch, load_network

    network = load_network(options.model, image_size=options.image_size)
    example = example_batch(network)
    taps, left_out = find_taps(network, example, activation=_recipe(options).activation)
    features: Counter[str] = Counter()
    remarks = {name.partition("#")[0]: f"left out: {why}" for name, why in left_out.items()}
    for tap in taps:  # one a call of the layer
        name = tap.name.partition("#")[0]
        features[name] += tap.n_features
        remarks[name] = f"after {' and '.join(tap.chain)}" if tap.chain else "its own output"
    listed = list_layers(network.model, example)
    rows = []
    for i, layer in enumerate(listed):
        kind, remark = type(layer.module).__name__, remarks.get(layer.name, "")
        rows.append([i, layer.name, kind, layer.depth, layer.calls, layer.n_parameters, features[layer.name], remark])
    print(format_table(["#", "layer", "type", "depth", "calls", "parameters", "features", "read"], rows))
    last = features.pop(LAST, 0)
    print(f"\n{len(rows)} layers, {sum(layer.n_parameters for layer in listed):,} parameters")
    print(f"{sum(features.values()):,} features are read; the last layer alone has {last:,}")


def embed(options: argparse.Namespace) -> None:
    """Reads every layer of a network for every row of a dataset, once, into a folder."""
    _make_folder(options.out)
    start = time.perf_counter()
    train, test, notes = _embed(options, taps=["auto", "last"])
    for split, embedding in (("train", train), ("test", test)):
        embedding.save(options.out / split)
    rows = []
    for split, embedding in (("train", train), ("test", test)):
        size = f"{embedding.values.nbytes / 2**20:.1f} MiB"
        rows.append([split, *embedding.shape, len(embedding.layers), size, str(options.out / split)])
    print(format_table(["split", "rows", "features", "layers", "size", "folder"], rows))
    _print_notes(notes)
    print(f"\n{time.perf_counter() - start:.0f} s; next: hf-tl probe {options.out}")


def probe(options: argparse.Namespace) -> None:
    """Fits a linear SVM on the full network and on its last layer, and prints their test accuracy."""
    from hf_tl.embedding.embedding import Embedding

    start = time.perf_counter()
    if not options.C > 0:
        raise InputError(f"--C must be above 0, got {options.C}")
    if not 0 < options.top <= 1:
        raise InputError(f"--top must be above 0 and at most 1, got {options.top}")
    if options.data is not None:
        train, test, notes = _embed(options, taps=[*options.taps, "last"])
    elif (Path(options.model) / "train" / "embedding.json").is_file():
        train, test = (Embedding.load(Path(options.model) / split) for split in ("train", "test"))
        notes = []
    else:
        raise InputError(
            f"{options.model!r} holds no embedding; give a folder that `hf-tl embed` wrote, "
            f"or a model and a dataset: hf-tl probe MODEL DATA"
        )
    print(_probe_table(train, test, options))
    _print_notes(notes)
    print(f"\n{time.perf_counter() - start:.0f} s")


def _embed(options: argparse.Namespace, *, taps: Sequence[str]) -> tuple[Embedding, Embedding, list[str]]:
    from hf_tl.data import load_task
    from hf_tl.embedding.full_network import FullNetworkEmbedding
    from hf_tl.embedding.recipe import RECIPES
    from hf_tl.models import load_network

    raw = replace(RECIPES["raw"], activation=_recipe(options).activation)
    network = load_network(options.model, image_size=options.image_size)
    task = load_task(
        options.data,
        modality=network.modality,
        label=options.label,
        input_column=options.input,
        config=options.config,
    )
    reader = FullNetworkEmbedding(
        network,
        recipe=raw,
        taps=taps,
        batch_size=options.batch_size,
        device=options.device,
        on_bad_rows=options.on_bad_rows,
    )
    embeddings = [reader.activations(rows) for rows in (task.train, task.test)]
    notes = list(task.notes)
    for rows, embedding in zip((task.train, task.test), embeddings, strict=True):
        skipped = sorted(set(range(len(rows))) - set(embedding.rows.tolist()))
        if skipped:
            shown = ", ".join(str(row) for row in skipped[:10]) + (", ..." if len(skipped) > 10 else "")
            notes.append(f"left out {len(skipped)} of {len(rows)} {rows.name} rows: {shown}")
    return embeddings[0], embeddings[1], notes


def _probe_table(train: Embedding, test: Embedding, options: argparse.Namespace) -> str:
    from hf_tl.embedding.full_network import FullNetworkEmbedding
    from hf_tl.embedding.recipe import RECIPES
    from hf_tl.probes.svm import LinearSVM

    recipe = _recipe(options)
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


def _recipe(options: argparse.Namespace) -> Recipe:
    from hf_tl.embedding.recipe import find_recipe

    return find_recipe(options.recipe)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {folder} cannot be made a folder: {error.strerror}") from error


def _print_notes(notes: Sequence[str]) -> None:
    for note in notes:
        print(f"note: {note}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hf-tl", description="Transfer learning, layer by layer.", epilog="hf-tl COMMAND --help shows examples."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(run: Callable[[argparse.Namespace], None]) -> Callable:
        added = commands.add_parser(
            run.__name__,
            help=run.__doc__,
            description=run.__doc__,
            epilog=f"examples:\n{EXAMPLES[run.__name__]}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(run=run)
        return added.add_argument

    add = command(quickstart)
    add("--seed", type=int, default=0, help="of canvases, weights and draws (default 0)")
    add("--out", type=Path, default=Path("runs/quickstart"), help="folder for results (default %(default)s)")

    add = command(layers)
    add("model", help=MODEL)
    add("--image-size", type=int, help="side of the square images in pixels")
    add("--recipe", default="paper", help=RECIPE)

    add = command(embed)
    add("model", help=MODEL)
    add("data", help=DATA)
    add("--out", type=Path, required=True, help="folder for the embedding")
    _add_reading(add)

    add = command(probe)
    add("model", help=f"{MODEL}; or, without DATA, a folder that `hf-tl embed` wrote")
    add("data", nargs="?", help=DATA)
    taps_help = '"auto" for all layers, "last" for the last, or glob patterns over layer names (default auto)'
    add("--taps", nargs="+", default=["auto"], metavar="PATTERN", help=taps_help)
    add("--top", type=float, default=1.0, help="share of those layers to keep, from the task side (default 1)")
    add("--C", type=float, default=1.0, help="the SVM's weight of the loss (default 1)")
    _add_reading(add)
    return parser


def _add_reading(add: Callable) -> None:
    """The options of commands that read a network on a dataset."""
    add("--recipe", default="paper", help=RECIPE)
    add("--image-size", type=int, help="side of the square images in pixels")
    add("--label", help="label column, where it is not found by itself")
    add("--input", help="image or text column, where it is not found by itself")
    add("--config", help="configuration of the dataset, where it has several")
    add("--batch-size", type=int, default=32, help="rows a forward pass (default %(default)s)")
    add("--device", default="cpu", help="where the network runs (default %(default)s)")
    bad_help = "end at a row that cannot be read, or leave it out (default %(default)s)"
    add("--on-bad-rows", choices=("raise", "skip"), default="raise", help=bad_help)


if __name__ == "__main__":
    sys.exit(main())
