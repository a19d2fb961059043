"""Pictures: bars, curves and grids in one look, written to a file; the only place that knows matplotlib.

with picture("layers.png", title="Parameters", size=(8, 4)) as (panel,):
    bars(panel, ["stem", "head"], [1000, 10])
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from hf_tl.errors import InputError
from hf_tl.files import writing_to


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike


BLUE, SKY, GREEN, ORANGE, GREY, DARK_GREY = "#0072B2", "#56B4E9", "#009E73", "#D55E00", "#C8CDD2", "#666666"
SERIES = (
    ("#1f4e8c", "D"), ("#d1752b", "^"), ("#3f8f5f", "v"), ("#8e5ea2", "P"), ("#5b9bd5", "o"), ("#8c8c8c", "s"),
    ("#000000", "X"), ("#c2a317", "*"), ("#a8324e", "<"), ("#17a2a2", ">"),
)  # fmt: skip
Style = Literal["solid", "dashed", "dashdot", "dotted"]
STYLES: tuple[Style, ...] = (
    "solid", "solid", "dashdot", "dotted", "dashdot", "dotted", "solid", "dotted", "dashdot", "solid",
)  # of SERIES; dashed are fits  # fmt: skip
ENDINGS = (".png", ".svg", ".pdf")
TALLEST = 40  # inches
_DASHES = (0, (4, 3))


@contextmanager
def picture(
    path: str | Path, *, title: str, size: tuple[float, float] = (8, 5), n_panels: int = 1, caption: str = ""
) -> Iterator[tuple[Axes, ...]]:
    """Panels side by side to draw into; the file is written on the way out.

    Args:
        path: of a PNG, SVG or PDF file.
        title: above all panels.
        size: width and height in inches.
        n_panels: how many.
        caption: a line below, in grey.

    Raises:
        InputError: see `check_picture`.
    """
    check_picture(path)
    from matplotlib.figure import Figure

    width, height = size
    figure = Figure(figsize=(width, min(height, TALLEST)), layout="constrained", dpi=130)
    panels = figure.subplots(1, n_panels, squeeze=False)[0]
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
    figure.suptitle(textwrap.fill(title, int(12 * width)), fontsize=10)
    caption = "\n".join(textwrap.fill(line, int(15 * width)) for line in caption.splitlines())
    yield tuple(panels)
    if caption and figure.legends:  # one below the other: the layout puts a legend over the figure's own label
        figure.legends[-1].set_title(caption)
        figure.legends[-1].get_title().set(fontsize=8, color="#555555")
    elif caption:
        figure.supxlabel(caption, fontsize=8, color="#555555")
    with writing_to(path):
        figure.savefig(path)


def check_picture(path: str | Path) -> None:
    """Whether a picture can be written there, asked before time is spent on what it shows.

    Raises:
        InputError: a file name that ends otherwise than a picture's, or a folder that does not exist.
    """
    if Path(path).suffix.lower() not in ENDINGS:
        raise InputError(f"a picture should be a .png, .svg or .pdf file, got {str(path)!r}")
    if not Path(path).parent.is_dir():
        raise InputError(f"{str(path)!r} cannot be written: there is no folder {str(Path(path).parent)!r}")


def bars(
    panel: Axes,
    names: Sequence[str],
    values: Sequence[float],
    *,
    colors: str | Sequence[str] = SKY,
    label: str | None = None,
    texts: Sequence[str] = (),
    first: Literal["bottom", "top"] = "bottom",
) -> None:
    """A horizontal bar for each name.

    Args:
        panel: of a `picture`.
        names: beside the bars; empty strings for none.
        values: lengths.
        colors: of all bars, or of each.
        label: for the legend.
        texts: what is written at the end of each bar.
        first: where the first bar is.
    """
    places = range(len(values))
    drawn = panel.barh(places, values, color=colors, height=0.72, label=label)
    if texts:
        panel.bar_label(drawn, texts, padding=3, fontsize=7, color="#444444")
        panel.set_xlim(0, 1.12 * max([*values, 1]))
    panel.set_yticks(places if any(names) else [], [name for name in names if any(names)], fontsize=7)
    panel.tick_params(axis="y", length=0)
    ends = (-0.7, len(values) - 0.3)
    panel.set_ylim(ends if first == "bottom" else ends[::-1])
    panel.spines["left"].set_visible(False)


def ticks(panel: Axes, values: Sequence[float], *, label: str) -> None:
    """A short black line across each bar of a panel, at a value."""
    panel.plot(values, range(len(values)), "k|", markersize=7, label=label)


def curve(
    panel: Axes,
    x: ArrayLike,
    y: ArrayLike,
    *,
    color: str,
    label: str | None = None,
    marker: str = "",
    style: Style = "solid",
    errors: ArrayLike | None = None,
    hollow: bool = False,
) -> None:
    """A line through points, filled or hollow, with an interval of half widths `errors` at each."""
    panel.errorbar(
        x,
        y,
        yerr=errors,
        color=color,
        label=label,
        marker=marker,
        markersize=5,
        markerfacecolor="white" if hollow else color,
        linewidth=1.6,
        linestyle=style,
        elinewidth=1,
        capsize=3,
    )


def points(panel: Axes, x: ArrayLike, y: ArrayLike, *, color: str, marker: str, label: str | None = None) -> None:
    """Single points, through which those below are seen."""
    panel.scatter(x, y, s=14, color=color, marker=marker, label=label, alpha=0.5, linewidths=0)


def band(panel: Axes, x: ArrayLike, low: ArrayLike, high: ArrayLike, *, color: str) -> None:
    """A shaded range around a curve."""
    panel.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)


def zone(panel: Axes, start: float, end: float, *, color: str, label: str) -> None:
    """A shaded part of the horizontal axis."""
    panel.axvspan(start, end, color=color, alpha=0.12, linewidth=0, label=label)


def level(
    panel: Axes, y: float, *, color: str = "black", label: str | None = None, interval: Sequence[float] = ()
) -> None:
    """A dashed line across the panel, with its interval (low, high)."""
    panel.axhline(y, color=color, linewidth=0.9, linestyle=_DASHES, label=label)
    if interval:
        panel.axhspan(*interval, color=color, alpha=0.08, linewidth=0)


def grid(
    panel: Axes,
    colors: Sequence[Sequence[str]],
    texts: Sequence[Sequence[str]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
) -> None:
    """Coloured cells with texts: `colors[row][column]`, the first row at the bottom."""
    for row, (row_colors, row_texts) in enumerate(zip(colors, texts, strict=True)):
        for column, (color, text) in enumerate(zip(row_colors, row_texts, strict=True)):
            panel.bar(column, 0.9, bottom=row - 0.45, width=0.96, color=color)
            panel.text(column, row, text, ha="center", va="center", fontsize=8)
    panel.set_xlim(-0.5, len(columns) - 0.5)
    panel.set_ylim(-0.5, len(rows) - 0.5)
    panel.set_xticks(range(len(columns)), columns, fontsize=8)
    panel.set_yticks(range(len(rows)), rows, fontsize=8)
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)


def heatmap(
    panel: Axes, values: ArrayLike, *, rows: Sequence[str], columns: Sequence[str], texts: Sequence[Sequence[str]] = ()
) -> None:
    """A square for each cell, the darker the larger its value in [0, 1]; the first row at the top.

    Args:
        panel: of a `picture`.
        values: (n_rows, n_columns).
        rows: names at the left.
        columns: names below, upright where there are many.
        texts: what is written into the cells.
    """
    values = np.asarray(values)
    panel.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="equal")
    for row, cells in enumerate(texts):
        for column, text in enumerate(cells):
            dark = values[row, column] > 0.5
            panel.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if dark else "#333333")
    size = 8 if len(rows) <= 20 else 5
    panel.set_xticks(range(len(columns)), columns, fontsize=size, rotation=90 if len(columns) > 6 else 0)
    panel.set_yticks(range(len(rows)), rows, fontsize=size)
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)


def scaled_image(panel: Axes, values: ArrayLike, *, between: tuple[float, float]) -> None:
    """Values as colours with a scale beside them: `values[row][column]`, the first row at the bottom."""
    image = panel.imshow(values, origin="lower", cmap="viridis", vmin=between[0], vmax=between[1], aspect="auto")
    panel.figure.colorbar(image, ax=panel, fraction=0.05, pad=0.02).ax.tick_params(labelsize=8)


def layer_ticks(panel: Axes, *, rows: Sequence[str], columns: Sequence[str], most: int = 12) -> None:
    """Names of layers, some of many, beside and below a `scaled_image`."""
    for names, place, turned in ((columns, panel.set_xticks, 90), (rows, panel.set_yticks, 0)):
        at = sorted({round(float(k)) for k in np.linspace(0, len(names) - 1, min(most, len(names)))})
        place(at, [names[i] for i in at], fontsize=7, rotation=turned)


def axes(
    panel: Axes,
    *,
    x: str,
    y: str = "",
    x_at: Sequence[float] = (),
    x_names: Sequence[str] = (),
    log: Literal["x", "y", ""] = "",
    between: tuple[float, float] | None = None,
    shortened: bool = False,
    whole: bool = False,
) -> None:
    """Names and scales of a panel's axes.

    Args:
        panel: of a `picture`.
        x: name of the horizontal axis.
        y: name of the vertical one.
        x_at: where the horizontal axis has numbers; by default matplotlib chooses.
        x_names: what stands at 0, 1, 2, ... instead of numbers; upright where that is long.
        log: which of them is logarithmic.
        between: ends of the vertical axis.
        shortened: whether numbers on the horizontal axis are written as 1.5M.
        whole: whether only whole numbers stand there.
    """
    from matplotlib.ticker import MaxNLocator

    panel.set_xlabel(x, fontsize=9)
    panel.set_ylabel(y, fontsize=9)
    if log == "x":
        panel.set_xscale("log")
    elif log == "y":
        panel.set_yscale("log")
    if x_names:
        panel.set_xticks(range(len(x_names)), x_names, rotation=90 if sum(map(len, x_names)) > 60 else 0)
    if x_at:
        panel.set_xticks(x_at, [f"{number:g}" for number in x_at])
        panel.minorticks_off()
    if between is not None:
        panel.set_ylim(between)
        panel.grid(axis="y", linewidth=0.4, alpha=0.6)
    if whole:
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    if shortened:
        panel.xaxis.set_major_formatter(lambda value, _: in_short(value))


def legend(panel: Axes, patches: Mapping[str, str] | None = None) -> None:
    """What the labelled things are, below the panel: those that were drawn, or names with the colours of patches."""
    from matplotlib.patches import Patch

    named = [Patch(color=color, label=name) for name, color in (patches or {}).items()]
    handles = [*named, *panel.get_legend_handles_labels()[0]]
    panel.figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8)


def shades(n: int) -> list[str]:
    """`n` colours from dark to light."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(color) for color in colormaps["viridis"](np.linspace(0, 1, max(n, 2)))[:n]]


def in_short(count: float) -> str:
    """A count with three digits and a unit: 1234567 -> 1.23M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"
