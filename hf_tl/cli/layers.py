"""Prints the layers of a network in execution order, with what the embedding reads at each."""

from __future__ import annotations

import argparse
from collections import Counter

from hf_tl.cli.arguments import MODEL, RECIPE
from hf_tl.table import format_table


EXAMPLES = """\
  hf-tl layers timm/mobilenetv2_100.ra_in1k
  hf-tl layers path/to/model --image-size 160"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    add("model", help=MODEL)
    add("--image-size", type=int, help="side of the square images in pixels")
    add("--recipe", default="paper", help=RECIPE)


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    from hf_tl.embedding.recipe import find_recipe
    from hf_tl.embedding.taps import LAST, find_taps
    from hf_tl.layers import list_layers
    from hf_tl.models import example_batch, load_network

    network = load_network(options.model, image_size=options.image_size)
    example = example_batch(network)
    taps, left_out = find_taps(network, example, activation=find_recipe(options.recipe).activation)
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
