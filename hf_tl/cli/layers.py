"""Prints the layers of a network from data to task, what freezing some of them leaves, and what is read where."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from hf_tl.cli.arguments import MODEL
from hf_tl.errors import InputError
from hf_tl.files import make_folder
from hf_tl.table import format_table


if TYPE_CHECKING:
    from hf_tl.layers import Layer, Layers
    from hf_tl.models import Network
    from hf_tl.trace import Batch

EXAMPLES = """\
  hf-tl layers timm/mobilenetv2_100.ra_in1k
  hf-tl layers timm/mobilenetv2_100.ra_in1k --select "..50%" --plot layers.png
  hf-tl layers path/to/model --image-size 160 --level leaf"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    add("model", help=MODEL)
    add("--level", choices=("block", "leaf"), default="block", help="blocks, or single layers (default %(default)s)")
    add("--select", metavar="LAYERS", help='layers to freeze: "..50%%", "stem, 0..4", "blocks.*", "/regex/", ...')
    add("--plot", type=Path, metavar="FILE", help="draws the layers (.png, .svg or .pdf)")
    add("--image-size", type=int, help="side of the square images in pixels")
    add("--recipe", help="with --level leaf, what is read: paper, fne-package, standardize, l2 or raw (default paper)")


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    from hf_tl.example import dummy_inputs
    from hf_tl.layers import list_layers, select_layers
    from hf_tl.models import load_network

    if options.recipe is not None and options.level != "leaf":
        raise InputError("--recipe says what is read of single layers; add --level leaf")
    network = load_network(options.model, image_size=options.image_size)
    example = network.prepare(dummy_inputs(network.modality))
    layers = list_layers(network.model, level=options.level, example=example)
    frozen = [] if options.select is None else select_layers(layers, options.select)
    if options.plot is not None:
        make_folder(options.plot.parent)
        layers.plot(options.plot, title=f"{Path(network.name).name}: from data (below) to task", frozen=frozen)
    marks = {id(layer): "frozen" for layer in frozen}
    rows = []
    for i, layer in enumerate(layers):
        number = "" if layer.index is None else str(layer.index)
        row = [i, layer.name, layer.tower, layer.kind, number, layer.depth, layer.n_parameters, layer.calls]
        rows.append([*row, "split point" if layer.split_point else "", marks.get(id(layer), "tuned")])
    header = ["#", "layer", "tower", "kind", "block", "depth", "parameters", "calls", "boundary", "state"]
    extra = _read(network, layers, example, options.recipe or "paper") if options.level == "leaf" else None
    shown = [header.index(name) for name in header]
    shown = [i for i in shown if any(row[i] != "" for row in rows) and (header[i] != "state" or frozen)]
    table = [[row[i] for i in shown] for row in rows]
    titles = [header[i] for i in shown]
    if extra is not None:
        titles += ["features", "read"]
        table = [[*row, *extra[layer.name]] for row, layer in zip(table, layers, strict=True)]
    print(format_table(titles, table))
    print(f"\n{len(layers)} layers, {layers.n_parameters:,} parameters; found by {layers.detector}")
    for names in layers.tied:
        print(f"tied: {', '.join(names)}")
    if extra is not None:
        print(f"{sum(features for features, _ in extra.values()):,} features are read")
    if frozen:
        print(_summary(layers, frozen))
    if options.plot is not None:
        print(f"wrote {options.plot}")


def _read(network: Network, layers: Layers, example: Batch, recipe: str) -> dict[str, tuple[int, str]]:
    """The number of features that the embedding reads at each layer, and where; or why it reads none."""
    from hf_tl.embedding.anatomy import find_taps
    from hf_tl.embedding.recipe import find_recipe
    from hf_tl.embedding.taps import LAST

    taps, left_out = find_taps(network, example, activation=find_recipe(recipe).activation)
    features: Counter[str] = Counter()
    remarks = {name.partition("#")[0]: f"left out: {why}" for name, why in left_out.items()}
    for tap in taps:  # one a call of the layer
        name = tap.name.partition("#")[0]
        if name != LAST:
            features[name] += tap.n_features
            remarks[name] = f"after {' and '.join(tap.chain)}" if tap.chain else "its own output"
    return {layer.name: (features[layer.name], remarks.get(layer.name, "")) for layer in layers}


def _summary(layers: Layers, frozen: list[Layer]) -> str:
    """What is trained when these layers are frozen, and where the backward pass ends."""
    states = {id(layer) for layer in frozen}
    trained = sum(layer.n_parameters for layer in layers if id(layer) not in states)
    said = f"{len(frozen)} layers frozen, {trained:,} of {layers.n_parameters:,} parameters tuned"
    tuned = [i for i, layer in enumerate(layers) if id(layer) not in states and layer.n_parameters]
    if not tuned:
        return f"{said}; nothing is left to train"
    below = layers[tuned[0] - 1] if tuned[0] else None
    said += f"; the backward pass ends at {layers[tuned[0]].name!r}"
    if below is None:
        return f"{said}, the first layer: nothing is saved below it"
    return said + (", behind a split point" if below.split_point else ", where more than one tensor passes")
