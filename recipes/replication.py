"""What the replications share: their options, means with intervals, and where their figures and pictures go."""

import argparse
import json
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hf_tl.intervals import half_width


ROOT = Path(__file__).parent.parent
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")  # told apart by everybody (Okabe, Ito)


def options(description: str, *, seeds: int) -> argparse.Namespace:
    """How many seeds, how long each, and where the results go."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=seeds, help="independent repetitions (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="2 seeds and a few steps: does it run?")
    parser.add_argument("--results", type=Path, default=ROOT / "recipes" / "results", help="folder for the figures")
    parser.add_argument("--images", type=Path, default=ROOT / "docs" / "images", help="folder for the picture")
    found = parser.parse_args()
    found.seeds = 2 if found.quick else found.seeds
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    return found


def mean(values: Sequence[float]) -> dict:
    """Mean over seeds and half the width of its 95 % interval."""
    values = np.asarray(values, dtype=float)
    return {"mean": round(float(values.mean()), 4), "half_width": round(half_width(values), 4), "seeds": len(values)}


def said(values: Sequence[float]) -> str:
    """Percentage points with their interval, as in "+1.2 ± 0.3 points"."""
    found = mean(values)
    return f"{100 * found['mean']:+.1f} ± {100 * found['half_width']:.1f} points"


def sure(values: Sequence[float]) -> int:
    """1 or -1 where the interval of the mean lies above or below zero, 0 where it holds it."""
    found = mean(values)
    return int(np.sign(found["mean"])) if abs(found["mean"]) > found["half_width"] else 0


def axes(*, title: str, x: str, y: str) -> tuple[Figure, object]:
    """An empty plot of the house's size."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    drawn = figure.add_subplot()
    drawn.set(title=title, xlabel=x, ylabel=y)
    drawn.spines[["top", "right"]].set_visible(False)
    drawn.grid(axis="y", alpha=0.3)
    return figure, drawn


def keep(name: str, found: argparse.Namespace, *, figure: Figure, results: dict, sentences: Sequence[str]) -> None:
    """Prints the sentences; writes them with the figures into NAME.json, and the picture into NAME.png."""
    for folder in (found.results, found.images):
        folder.mkdir(parents=True, exist_ok=True)
    packages = {package: version(package) for package in ("torch", "transformers", "scikit-learn")}
    kept = {"seeds": found.seeds, "packages": packages, "sentences": list(sentences), "results": results}
    (found.results / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n")
    figure.savefig(found.images / f"{name}.png", dpi=120)
    print("\n".join(sentences))
    print(f"wrote {found.results / name}.json and {found.images / name}.png")
