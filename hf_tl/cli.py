"""The command line: hf-tl embed | probe | layers | quickstart."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_tl.errors import InputError
from hf_tl.table import format_table


if TYPE_CHECKING:
    from hf_tl.data import Task
    from hf_tl.embedding.embedding import Embedding
    from hf_tl.models import Network

QUIET = {  # standard error is for this program's progress bars and sentences
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}
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
  hf-tl probe path/to/model path/to/texts.csv --label label
  hf-tl probe runs/beans --recipe standardize --top 0.25""",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns 0, or 2 after one sentence about unusable input."""
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except InputError as error:
        print(f"hf-tl {options.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"hf-tl {options.command}: interrupted", file=sys.stderr)
        return 130
    return 0


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
    first = {}  # a layer that runs several times has a tap a call
    for tap in taps:
        first.setdefault(tap.name.partition("#")[0], []).append(tap)
    rows = []
    for i, layer in enumerate(list_layers(network.model, example)):
        here = first.get(layer.name, [])
        read = " + ".join(here[0].chain) if here and here[0].chain else "as it is" if here else ""
        note = next((why for name, why in left_out.items() if name.partition("#")[0] == layer.name), "")
        rows.append(
            [i, layer.name, type(layer.module).__name__, layer.depth, layer.calls, layer.n_parameters,
             sum(tap.n_features for tap in here), read or (f"not read: {note}" if note else "")]
        )  # fmt: skip
    print(format_table(["#", "layer", "type", "depth", "calls", "parameters", "features", "read after"], rows))
    features = sum(tap.n_features for tap in taps if tap.name != LAST)
    print(f"\n{len(rows)} layers, {sum(row[5] for row in rows):,} parameters; {features:,} features are read", end="")
    print("".join(f"; last layer: {tap.n_features:,} features" for tap in taps if tap.name == LAST))


def embed(options: argparse.Namespace) -> None:
    """Reads every layer of a network for every row of a dataset, once, into a folder."""
    _make_folder(options.out)
    start = time.perf_counter()
    train, test, notes = _embed(options)
    for split, embedding in (("train", train), ("test", test)):
        embedding.save(options.out / split)
    rows = [
        [split, len(embedding), len(embedding.layers), embedding.shape[1], f"{embedding.values.nbytes / 2**20:.1f} MiB",
         str(options.out / split)]
        for split, embedding in (("train", train), ("test", test))
    ]  # fmt: skip
    print(format_table(["split", "rows", "layers", "features", "size", "folder"], rows))
    _print_notes(notes)
    print(f"\n{time.perf_counter() - start:.0f} s; next: hf-tl probe {options.out}")


def probe(options: argparse.Namespace) -> None:
    """Fits a linear SVM on the full network and on its last layer, and prints their test accuracy."""
    from hf_tl.embedding.embedding import Embedding

    start = time.perf_counter()
    if options.data is None:
        train, test = (Embedding.load(Path(options.model) / split) for split in ("train", "test"))
        notes: list[str] = []
    else:
        train, test, notes = _embed(options)
    print(_probe_table(train, test, options))
    _print_notes(notes)
    print(f"\n{time.perf_counter() - start:.0f} s")


def _embed(options: argparse.Namespace) -> tuple[Embedding, Embedding, list[str]]:
    from hf_tl.data import load_task
    from hf_tl.embedding.full_network import FullNetworkEmbedding
    from hf_tl.embedding.recipe import Recipe
    from hf_tl.models import load_network

    recipe = _recipe(options)
    network: Network = load_network(options.model, image_size=options.image_size)
    task: Task = load_task(
        options.data,
        modality=network.modality,
        label=options.label,
        input_column=options.input,
        config=options.config,
    )
    reader = FullNetworkEmbedding(
        network,
        recipe=Recipe(activation=recipe.activation, scale="none", thresholds=None),
        taps=["auto", "last"],
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
    from dataclasses import replace

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
        label = options.recipe if part is recipe else "l2"
        rows.append(
            [name, label, len(features.layers), features.shape[1], len(features), len(judged), accuracy,
             f"{time.perf_counter() - start:.1f} s"]
        )  # fmt: skip
    header = ["features of", "recipe", "layers", "features", "train rows", "test rows", "test accuracy", "fit"]
    return format_table(header, rows)


def _recipe(options: argparse.Namespace):
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

    def command(run) -> argparse.ArgumentParser:
        name = run.__name__
        made = commands.add_parser(
            name,
            help=run.__doc__,
            description=run.__doc__,
            epilog=f"examples:\n{EXAMPLES[name]}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.set_defaults(run=run)
        return made

    made = command(quickstart)
    made.add_argument("--seed", type=int, default=0, help="of canvases, weights and draws (default 0)")
    made.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="folder (default %(default)s)")

    made = command(layers)
    made.add_argument("model", help="Hub id, timm model name, folder, or local-dir:FOLDER")
    made.add_argument("--image-size", type=int, help="side of the square images in pixels")
    _add_recipe(made)

    made = command(embed)
    made.add_argument("model", help="Hub id, timm model name, folder, or local-dir:FOLDER")
    made.add_argument("data", help="Hub id, .csv/.json/.parquet file, or folder")
    made.add_argument("--out", type=Path, required=True, help="folder for the embedding")
    _add_reading(made)
    _add_recipe(made)

    made = command(probe)
    made.add_argument("model", help="a folder that `hf-tl embed` wrote, or, with DATA, a model")
    made.add_argument("data", nargs="?", help="Hub id, .csv/.json/.parquet file, or folder")
    made.add_argument("--taps", nargs="+", default=["auto"], metavar="PATTERN",
                      help='layers to use: "auto", "last" or glob patterns over layer names (default auto)')  # fmt: skip
    made.add_argument("--top", type=float, default=1.0, help="share of those layers to keep, from the task side")
    made.add_argument("--C", type=float, default=1.0, help="the SVM's weight of the loss (default 1)")
    _add_reading(made)
    _add_recipe(made)
    return parser


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipe", default="paper",
                        help="paper, fne-package, standardize, l2 or raw (default %(default)s)")  # fmt: skip


def _add_reading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image-size", type=int, help="side of the square images in pixels")
    parser.add_argument("--label", help="label column, where it is not found by itself")
    parser.add_argument("--input", help="image or text column, where it is not found by itself")
    parser.add_argument("--config", help="configuration of the dataset, where it has several")
    parser.add_argument("--batch-size", type=int, default=32, help="rows a forward pass (default %(default)s)")
    parser.add_argument("--device", default="cpu", help="where the network runs (default cpu)")
    parser.add_argument("--on-bad-rows", choices=("raise", "skip"), default="raise",
                        help="end at a row that cannot be read, or leave it out (default raise)")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
