"""What training changed, layer by layer: the weights, and what the layers make of the target's samples."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn

from hf_tl import plots
from hf_tl.analysis.cka import compare_each_layer
from hf_tl.embedding.embedding import Embedding
from hf_tl.errors import InputError
from hf_tl.layers import list_layers
from hf_tl.lora.adapted import record_of
from hf_tl.lora.merge import delete_adapter
from hf_tl.table import format_table


FEWEST, TREND = 4, 0.5  # layers for a rank correlation, and from which on it is called a trend


@dataclass(frozen=True)
class TrainingChange:
    """Two states of a network compared.

    Attributes:
        layers: names, from data to task.
        depths: (n_layers,) 0 for the first layer to run, 1 for the last.
        relative: (n_layers,) Frobenius norm of the change of all weights over that of the weights before; NaN for a
            layer without weights, or with new ones of another size.
        read: names of the layers that were read on samples; empty without any.
        read_depths: (n_read,) their depths.
        cka: (n_read,) unbiased linear CKA of features before and after, 1 for no change but a rotation.
        n_samples: that were read.
    """

    layers: tuple[str, ...]
    depths: np.ndarray
    relative: np.ndarray
    read: tuple[str, ...] = ()
    read_depths: np.ndarray | None = None
    cka: np.ndarray | None = None
    n_samples: int = 0

    def table(self) -> str:
        """One row a layer."""
        rows = [[n, f"{d:.2f}", _percent(r)] for n, d, r in zip(self.layers, self.depths, self.relative, strict=True)]
        return format_table(["layer", "depth", "change of the weights"], rows)

    def __str__(self) -> str:
        said = [f"the weights changed by {_thirds(self.depths, self.relative, _percent)} from data to task"]
        if self.cka is not None and self.read_depths is not None:
            said.append(
                f"1 - CKA of {self.n_samples} samples is "
                f"{_thirds(self.read_depths, 1 - self.cka, lambda value: f'{value:.2f}')}"
            )
        said.append(f"medians of the lower, middle and upper third of the depth; {self._trend()}")
        return "; ".join(said)

    def _trend(self) -> str:
        """Whether training changed more towards the task, by Spearman's rank correlation with depth."""
        kinds = {"weights": (self.depths, self.relative)}
        if self.cka is not None and self.read_depths is not None:
            kinds["features"] = (self.read_depths, 1 - self.cka)
        rhos = {}
        for kind, (depths, change) in kinds.items():
            known = np.isfinite(change)
            if known.sum() >= FEWEST and np.ptp(change[known]) > 0 and np.ptp(depths[known]) > 0:
                rhos[kind] = float(spearmanr(depths[known], change[known]).statistic)
        if not rhos:
            return "too few layers for a trend"
        verdict = "no clear trend with depth"
        for sign, words in (
            (1, "the effect of training diminishes towards the data"),
            (-1, "the effect of training diminishes towards the task"),
        ):
            if all(sign * rho >= TREND for rho in rhos.values()):
                verdict = words
        return f"{verdict} (rank correlation with depth: {', '.join(f'{k} {rho:+.2f}' for k, rho in rhos.items())})"

    def plot(self, path: str | Path, *, title: str) -> Path:
        """Draws the change of weights, and of features where samples were read, against depth.

        Args:
            path: of a PNG or SVG file.
            title: above it.
        """
        n_panels = 1 if self.cka is None else 2
        with plots.picture(path, title=title, size=(5.5 * n_panels, 4), n_panels=n_panels) as panels:
            kept = np.isfinite(self.relative)
            plots.curve(panels[0], self.depths[kept], self.relative[kept], color=plots.BLUE, marker="o")
            log: Literal["y", ""] = (
                "y" if (self.relative[kept] > 0).all() and kept.any() else ""
            )  # a new head is far off
            plots.axes(panels[0], x="depth, from data to task", y="relative change of the weights", log=log)
            if self.cka is not None and self.read_depths is not None:
                plots.curve(panels[1], self.read_depths, 1 - self.cka, color=plots.ORANGE, marker="o")
                plots.axes(panels[1], x="depth, from data to task", y=f"1 - CKA of {self.n_samples} samples")
        return Path(path)


def measure_change(before: nn.Module, after: nn.Module, *, features: Sequence[Embedding] = ()) -> TrainingChange:
    """How much each layer changed between two states of a network; adapters count as what they add to the weights.

    Args:
        before: the network as it was.
        after: the same after training, in full or with adapters; it stays as it is.
        features: raw features of the same samples before and after, for the change of what the layers compute.

    Raises:
        InputError: networks that have no weight in common, or features of one state only.
    """
    if len(features) not in (0, 2):
        raise InputError(f"features are those before and those after training, two embeddings, got {len(features)}")
    base = _merged(before)
    old, new = dict(base.named_parameters()), dict(_merged(after).named_parameters())
    shared = {name for name in old if name in new and old[name].shape == new[name].shape}
    if not shared:
        raise InputError(f"{type(before).__name__} and {type(after).__name__} have no weight in common")
    names, layers = {id(parameter): name for name, parameter in base.named_parameters()}, list_layers(base)
    relative = []
    for layer in layers:
        mine = [names[id(parameter)] for parameter in layer.parameters() if id(parameter) in names]
        mine = [name for name in mine if old[name].is_floating_point()]
        if not mine or not shared.issuperset(mine):
            relative.append(float("nan"))
            continue
        apart = sum(float((new[name].detach().double() - old[name].detach().double()).square().sum()) for name in mine)
        whole = sum(float(old[name].detach().double().square().sum()) for name in mine)
        relative.append(float(np.sqrt(apart / whole)) if whole > 0 else float("nan"))
    found = TrainingChange(
        tuple(layer.name for layer in layers), np.array([layer.depth for layer in layers]), np.array(relative)
    )
    if not features:
        return found
    first, second = features
    return TrainingChange(
        found.layers,
        found.depths,
        found.relative,
        tuple(layer.name for layer in first.layers),
        np.array([layer.depth for layer in first.layers]),
        compare_each_layer(first, second),
        len(first),
    )


def _merged(model: nn.Module) -> nn.Module:
    """The network with its adapters in its weights, a copy; without adapters, itself."""
    try:
        record_of(model)
    except InputError:
        return model
    with torch.no_grad():
        return delete_adapter(copy.deepcopy(model), merge=True)


def _thirds(depths: np.ndarray, values: np.ndarray, words: Callable[[float], str]) -> str:
    medians = []
    for low, high in ((0, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 1.01)):
        part = values[(depths >= low) & (depths < high) & np.isfinite(values)]
        medians.append(words(float(np.median(part))) if len(part) else "-")
    return " / ".join(medians)


def _percent(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.2%}"
