"""What an adapter learnt, layer by layer: how large its update is and how many directions it uses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hf_tl.lora.adapter import Adapter, LayerUpdate
from hf_tl.lora.low_rank import rank_for, singular_values
from hf_tl.table import format_table


ENERGY = 0.99  # the share of the squared norm that a smaller rank has to keep
FULL = 0.8  # from this share of r on, the effective rank says that all of r is in use


@dataclass(frozen=True)
class LayerSpectrum:
    """The update of one layer, measured.

    Attributes:
        name: the layer's name in the network.
        shape: (out, in) of the update.
        rank: the rank it was trained with.
        singular_values: (rank,) of scale * B A, descending, float64.
        weight_norm: Frobenius norm of the pre-trained weight, None without the network.
        n_parameters: number of scalars stored for the layer.
    """

    name: str
    shape: tuple[int, int]
    rank: int
    singular_values: Tensor
    weight_norm: float | None
    n_parameters: int

    @property
    def norm(self) -> float:
        """Frobenius norm of the update."""
        return float(self.singular_values.norm())

    @property
    def relative_norm(self) -> float | None:
        """Norm of the update relative to the norm of the weight; None without the network."""
        return None if not self.weight_norm else self.norm / self.weight_norm

    @property
    def effective_rank(self) -> float:
        """exp of the entropy of the normalised singular values (Roy & Vetterli, EUSIPCO 2007); 0 for no update."""
        total = self.singular_values.sum()
        if total == 0:
            return 0.0
        shares = self.singular_values / total
        return float(torch.special.entr(shares).sum().exp())

    def rank_for(self, energy: float) -> int:
        """The smallest rank that keeps this share of the squared norm; 0 for no update."""
        return rank_for(self.singular_values, energy)

    @property
    def verdict(self) -> str:
        """Whether r is too low, too high or fits, in words."""
        if self.norm == 0:
            return "no update"
        enough = self.rank_for(ENERGY)
        if enough <= self.rank / 2:
            return f"r={enough} is enough"
        if self.rank > 1 and self.effective_rank >= FULL * self.rank:
            return "all of r in use"
        return "fits"


def spectra(adapter: Adapter, weights: Mapping[str, Tensor] | None = None) -> list[LayerSpectrum]:
    """The spectrum of every layer's update, in the order of the network where its weights are given.

    Args:
        adapter: what `read_adapter` returned.
        weights: layer name in the adapter -> pre-trained weight, for the relative norm.
    """
    names = list(adapter.updates) if weights is None else [name for name in weights if name in adapter.updates]
    names += [name for name in adapter.updates if name not in names]
    return [_spectrum(adapter.updates[name], None if weights is None else weights.get(name)) for name in names]


def spectrum_table(found: list[LayerSpectrum]) -> str:
    """One row a layer."""
    header = ["layer", "update", "r", "effective rank", "r for 99 %", "|dW|", "|dW|/|W|", "verdict"]
    rows = []
    for layer in found:
        relative = "" if layer.relative_norm is None else f"{layer.relative_norm:.4f}"
        size = f"{layer.shape[0]} x {layer.shape[1]}"
        enough = layer.rank_for(ENERGY)
        rows.append([layer.name, size, layer.rank, layer.effective_rank, enough, layer.norm, relative, layer.verdict])
    if all(layer.relative_norm is None for layer in found):
        header.remove("|dW|/|W|")
        rows = [[*row[:6], row[7]] for row in rows]
    return format_table(header, rows)


def summarise(found: list[LayerSpectrum]) -> list[str]:
    """What to do about the rank, in sentences."""
    full = [layer for layer in found if layer.verdict == "all of r in use"]
    spare = [layer for layer in found if layer.norm > 0 and layer.rank_for(ENERGY) <= layer.rank / 2]
    idle = [layer for layer in found if layer.norm == 0]
    now = sum(layer.n_parameters for layer in found)
    cut = sum(round(layer.n_parameters * max(layer.rank_for(ENERGY), 1) / layer.rank) for layer in found)
    count = "1 layer" if len(found) == 1 else f"{len(found)} layers"
    said = [f"{count}, {now:,} parameters; cut to the ranks that keep 99 %, they would be {cut:,}"]
    if full:
        said.append(
            f"{_layers(full)} all of r (effective rank from {FULL:.0%} of r on): a larger r may learn more there"
        )
    if spare:
        said.append(f"{_layers(spare)} half of r or less for 99 % of the update: hf-tl adapter resize --keep 0.99")
    if idle:
        said.append(f"{len(idle)} of {len(found)} layers have no update at all: they were not trained")
    return said


def plot_spectra(found: list[LayerSpectrum], path: Path) -> Path:
    """Size of the update and use of r, layer by layer, and every spectrum; writes a picture, returns its path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (sizes, ranks, curves) = pyplot.subplots(1, 3, figsize=(15, max(3.6, 0.22 * len(found) + 1.4)))
    depths = range(len(found))
    colors = pyplot.get_cmap("viridis")([i / max(len(found) - 1, 1) for i in depths])
    relative = all(layer.relative_norm is not None for layer in found)
    sizes.barh(depths, [layer.relative_norm if relative else layer.norm for layer in found], color=colors)
    sizes.set_yticks(depths, [_shorten(layer.name) for layer in found], fontsize=7)
    sizes.set_xlabel("norm of the update / norm of the weight" if relative else "norm of the update")
    ranks.barh(depths, [layer.rank for layer in found], color="0.9", label="r")
    ranks.barh(depths, [layer.effective_rank for layer in found], color=colors, label="effective rank")
    ranks.plot([layer.rank_for(ENERGY) for layer in found], depths, "k|", markersize=7, label="rank for 99 %")
    ranks.set_yticks([])
    ranks.set_xlabel("directions")
    ranks.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=7, frameon=False)
    for axis in (sizes, ranks):
        axis.set_ylim(len(found) - 0.4, -0.6)
    for layer, color in zip(found, colors, strict=True):
        if layer.norm > 0:
            values = (layer.singular_values / layer.singular_values[0]).clamp_min(1e-6)
            curves.plot(range(1, layer.rank + 1), values, color=color, linewidth=1)
    curves.set_yscale("log")
    curves.set_xlabel("direction")
    curves.set_ylabel("singular value / largest")
    curves.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle("What the adapter learnt; dark is near the data, light near the task", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return path


def _spectrum(update: LayerUpdate, weight: Tensor | None) -> LayerSpectrum:
    values = update.scale * singular_values(*update.factors())
    norm = None if weight is None else math.sqrt(float(weight.detach().double().square().sum()))
    return LayerSpectrum(update.name, update.shape, update.rank, values.abs(), norm, update.n_parameters)


def _layers(layers: list[LayerSpectrum]) -> str:
    return "1 layer uses" if len(layers) == 1 else f"{len(layers)} layers use"


def _shorten(name: str) -> str:
    return name if len(name) <= 42 else f"...{name[-39:]}"
