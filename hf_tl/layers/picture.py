"""A picture of a network as a ladder: the data at the bottom, the task on top, a rung for each layer."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from hf_tl.errors import InputError
from hf_tl.layers.layers import Layer, Layers


COLOURS = {"stem": "#0072B2", "block": "#56B4E9", "norm": "#009E73", "head": "#D55E00"}
FROZEN = "#C8CDD2"


def draw_ladder(layers: Layers, path: str | Path, *, title: str, frozen: Collection[Layer] = ()) -> None:
    """Draws a bar of the number of parameters for each layer into a PNG, SVG or PDF file.

    Args:
        layers: from `list_layers`.
        path: the file.
        title: what is written above.
        frozen: layers that are drawn in grey.

    Raises:
        InputError: a file name that ends otherwise.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    if Path(path).suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InputError(f"a picture should be a .png, .svg or .pdf file, got {str(path)!r}")
    grey = {id(layer) for layer in frozen}
    height = 0.2 * len(layers) + 1.4
    figure = Figure(figsize=(8, min(height, 40)), layout="constrained", dpi=120)
    axes = figure.add_subplot()
    counts = [layer.n_parameters for layer in layers]
    colours = [FROZEN if id(layer) in grey else COLOURS[layer.kind] for layer in layers]
    bars = axes.barh(range(len(layers)), counts, color=colours, height=0.72)
    axes.bar_label(bars, [shortened(count) for count in counts], padding=3, fontsize=7, color="#444444")
    for i, layer in enumerate(layers):
        if layer.cut:
            axes.axhline(i + 0.5, color="#888888", linewidth=0.7, linestyle=(0, (4, 3)), zorder=0)
    axes.set_yticks(range(len(layers)), [_label(layer) for layer in layers], fontsize=7)
    axes.set_ylim(-0.7, len(layers) - 0.3)
    axes.set_xlim(0, 1.12 * max([*counts, 1]))
    axes.xaxis.set_major_formatter(lambda value, _: shortened(value))
    axes.tick_params(axis="x", labelsize=7)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("parameters", fontsize=8)
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right", "left"]].set_visible(False)
    kinds = dict.fromkeys(layer.kind for layer in layers if id(layer) not in grey)
    handles = [Patch(color=COLOURS[kind], label=kind) for kind in kinds]
    handles += [Patch(color=FROZEN, label="frozen")] if grey else []
    handles += axes.plot([], [], color="#888888", linewidth=0.7, linestyle=(0, (4, 3)), label="cut: one tensor passes")
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=7)
    figure.savefig(path)


def shortened(count: float) -> str:
    """A count with three digits and a unit: 1234567 -> 1.23M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"


def _label(layer: Layer) -> str:
    number = "" if layer.index is None else f"{layer.index}  "
    repeats = f"  x{layer.calls}" if layer.calls > 1 else ""
    return f"{number}{layer.name}{repeats}"
