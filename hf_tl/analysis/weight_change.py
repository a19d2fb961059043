"""What training changed: size and rank of the update of each layer, and how two adapters differ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hf_tl import plots
from hf_tl.errors import InputError
from hf_tl.lora.adapter import Adapter, LayerUpdate, is_split
from hf_tl.lora.combine import rank_for, singular_values
from hf_tl.lora.token_rows import ROWS
from hf_tl.names import listed
from hf_tl.table import format_table


ENERGY = 0.99  # the share of the squared norm that a smaller rank has to keep
FULL = 0.8  # from this share of r on, the effective rank says that all of r is in use


@dataclass(frozen=True)
class LayerSpectrum:
    """The update of one layer, measured; with DoRA that of B A, before the rows are normalized.

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
        """exp of the entropy of the normalized singular values (Roy & Vetterli, EUSIPCO 2007); 0 for no update."""
        total = self.singular_values.sum()
        return float(torch.special.entr(self.singular_values / total).sum().exp()) if total > 0 else 0.0

    @property
    def sufficient_rank(self) -> int:
        """The smallest rank that keeps `ENERGY` of the squared norm; 0 for no update."""
        return rank_for(self.singular_values, ENERGY)

    @property
    def verdict(self) -> str:
        """Whether r is too low, too high or fits, in words."""
        if self.norm == 0:
            return "no update"
        if self.sufficient_rank <= self.rank / 2:
            return f"r={self.sufficient_rank} is enough"
        return "all of r in use" if self.rank > 1 and self.effective_rank >= FULL * self.rank else "fits"


def measure_updates(adapter: Adapter, weights: Mapping[str, Tensor] | None = None) -> list[LayerSpectrum]:
    """The spectrum of the update of each layer, in the order of the network where its weights are given.

    Args:
        adapter: what `read_adapter` returned.
        weights: layer name in the adapter -> pre-trained weight, for the relative norm.
    """
    weights = weights or {}
    names = dict.fromkeys([*(name for name in weights if name in adapter.updates), *adapter.updates])
    return [_measure(adapter.updates[name], weights.get(name)) for name in names]


def spectrum_table(layers: Sequence[LayerSpectrum]) -> str:
    """One row per layer."""
    columns: dict[str, list] = {
        "layer": [layer.name for layer in layers],
        "update": [f"{layer.shape[0]} x {layer.shape[1]}" for layer in layers],
        "r": [layer.rank for layer in layers],
        "effective rank": [layer.effective_rank for layer in layers],
        f"r for {ENERGY:.0%}": [layer.sufficient_rank for layer in layers],
        "|dW|": [layer.norm for layer in layers],
    }
    relative = [layer.relative_norm for layer in layers]
    if any(norm is not None for norm in relative):
        columns["|dW|/|W|"] = ["" if norm is None else f"{norm:.4f}" for norm in relative]
    columns["verdict"] = [layer.verdict for layer in layers]
    return format_table(list(columns), list(zip(*columns.values(), strict=True)))


def rank_advice(layers: Sequence[LayerSpectrum]) -> list[str]:
    """What to do about the rank, in sentences."""
    full = [layer for layer in layers if layer.verdict == "all of r in use"]
    spare = [layer for layer in layers if layer.norm > 0 and layer.sufficient_rank <= layer.rank / 2]
    idle = [layer for layer in layers if layer.norm == 0]
    now = sum(layer.n_parameters for layer in layers)
    cut = sum(round(layer.n_parameters * max(layer.sufficient_rank, 1) / layer.rank) for layer in layers)
    advice = [
        f"{_count(layers)}, {now:,} parameters; cut to the ranks that keep {ENERGY:.0%}, they would be {cut:,}",
    ]
    if full:
        advice.append(
            f"all of r is in use in {_count(full)} (effective rank from {FULL:.0%} of r on): a larger r may learn more"
        )
    if spare:
        advice.append(
            f"half of r or less holds {ENERGY:.0%} of the update in {_count(spare)}: "
            f"hf-tl adapter resize --keep {ENERGY}"
        )
    if idle:
        advice.append(f"{len(idle)} of {_count(layers)} have no update at all: they were not trained")
    return advice


def plot_spectra(layers: Sequence[LayerSpectrum], path: Path) -> Path:
    """Size of the update and use of r, layer by layer, and every spectrum; writes a picture, returns its path."""
    relative = all(layer.relative_norm is not None for layer in layers)
    sizes = [(layer.relative_norm or 0.0) if relative else layer.norm for layer in layers]
    names, colors = [_shorten(layer.name) for layer in layers], plots.shades(len(layers))
    title = "What the adapter learned; dark is near the data, light near the task"
    with plots.picture(path, title=title, size=(15, max(3.6, 0.22 * len(layers) + 1.4)), n_panels=3) as panels:
        plots.bars(panels[0], names, sizes, colors=colors, first="top")
        plots.axes(panels[0], x="norm of the update / norm of the weight" if relative else "norm of the update")
        plots.bars(panels[1], [], [layer.rank for layer in layers], colors=plots.GREY, label="r", first="top")
        plots.bars(
            panels[1],
            [],
            [layer.effective_rank for layer in layers],
            colors=colors,
            label="effective rank",
            first="top",
        )
        plots.ticks(panels[1], [layer.sufficient_rank for layer in layers], label=f"rank for {ENERGY:.0%}")
        plots.axes(panels[1], x="directions")
        plots.legend(panels[1])
        for layer, color in zip(layers, colors, strict=True):
            if layer.norm > 0:
                values = (layer.singular_values / layer.singular_values[0]).clamp_min(1e-6)
                plots.curve(panels[2], range(1, layer.rank + 1), values, color=color)
        plots.axes(panels[2], x="direction", y="singular value / largest", log="y", whole=True)
    return path


@dataclass(frozen=True)
class LayerDifference:
    """One layer of two adapters.

    Attributes:
        name: the layer's name.
        ranks: its rank in the first and in the second; 0 where it has no update.
        norms: Frobenius norms of both updates.
        distance: Frobenius norm of their difference.
        cosine: cosine of the angle between the two updates as vectors; NaN where one is zero.
    """

    name: str
    ranks: tuple[int, int]
    norms: tuple[float, float]
    distance: float
    cosine: float

    @property
    def relative(self) -> float:
        """The distance relative to the larger of the two updates; 0 where both are zero."""
        return self.distance / max(self.norms) if max(self.norms) > 0 else 0.0


@dataclass(frozen=True)
class AdapterDifference:
    """Two adapters compared.

    Attributes:
        layers: every layer that at least one of them updates.
        others: name of a further tensor -> its largest absolute difference, or what is different about it in words.
        options: name of an option -> its two values, where they differ.
    """

    layers: tuple[LayerDifference, ...]
    others: dict[str, float | str]
    options: dict[str, tuple[object, object]]

    @property
    def same(self) -> bool:
        """Whether both give the same network: every update and everything beside the updates is equal."""
        return all(layer.distance == 0 for layer in self.layers) and not any(self.others.values())


def compare_adapters(first: Adapter, second: Adapter) -> AdapterDifference:
    """Compares what the adapters add to the weights, not how it is factored: B A counts, not A and B.

    Raises:
        InputError: a layer whose updates are of different size: these are adapters of different networks.
    """
    names = list(dict.fromkeys([*first.updates, *second.updates]))
    layers = [_compare_layer(name, first.updates.get(name), second.updates.get(name)) for name in names]
    mine, theirs = _further_tensors(first), _further_tensors(second)
    others = {name: _distance(mine.get(name), theirs.get(name)) for name in sorted({*mine, *theirs})}
    inits = [adapter.config.get("init_lora_weights") for adapter in (first, second)]
    ranks = [{name: update.rank for name, update in adapter.updates.items()} for adapter in (first, second)]
    if (inits[0], ranks[0]) != (inits[1], ranks[1]) and (is_split(first.config) or is_split(second.config)):
        again = "" if inits[0] != inits[1] else ", of other ranks"
        others["the frozen weights"] = f"changed by the init: {inits[0]!r} and {inits[1]!r}{again}"
    options = {}
    for name in sorted({*first.config, *second.config}):
        one, other = (adapter.config.get(name) or None for adapter in (first, second))  # {} and false are no option
        if one != other:
            options[name] = (one, other)
    return AdapterDifference(tuple(layers), others, options)


def difference_table(difference: AdapterDifference) -> str:
    """One row per layer."""
    rows = []
    for layer in difference.layers:
        ranks, norms = f"{layer.ranks[0]}, {layer.ranks[1]}", [f"{norm:.4g}" for norm in layer.norms]
        apart = [f"{layer.distance:.2e}", f"{layer.relative:.2e}", f"{layer.cosine:.4f}"]
        rows.append([layer.name, ranks, *norms, *apart])
    header = ["layer", "r", "|dW| first", "|dW| second", "|difference|", "relative", "cosine"]
    return format_table(header, rows)


def _measure(update: LayerUpdate, weight: Tensor | None = None) -> LayerSpectrum:
    values = singular_values(*update.factors())
    norm = None if weight is None else math.sqrt(float(weight.detach().double().square().sum()))
    return LayerSpectrum(update.name, update.shape, update.rank, values, norm, update.n_parameters)


def _compare_layer(name: str, first: LayerUpdate | None, second: LayerUpdate | None) -> LayerDifference:
    norms = (0.0 if first is None else _measure(first).norm, 0.0 if second is None else _measure(second).norm)
    if first is None or second is None:
        ranks = (0 if first is None else first.rank, 0 if second is None else second.rank)
        return LayerDifference(name, ranks, norms, max(norms), float("nan"))
    if first.shape != second.shape:
        raise InputError(
            f"layer {name!r} is updated by {first.shape[0]} x {first.shape[1]} in the first adapter and by "
            f"{second.shape[0]} x {second.shape[1]} in the second; they belong to different networks"
        )
    (B, A), (other_B, other_A) = first.factors(), second.factors()
    together = singular_values(torch.cat([B, -other_B], dim=1), torch.cat([A, other_A]))
    distance = 0.0 if torch.equal(B, other_B) and torch.equal(A, other_A) else float(together.norm())
    product = float(((B.T @ other_B) * (A @ other_A.T)).sum())
    cosine = product / (norms[0] * norms[1]) if min(norms) > 0 else float("nan")
    return LayerDifference(name, (first.rank, second.rank), norms, distance, cosine)


def _further_tensors(adapter: Adapter) -> dict[str, Tensor]:
    """What an adapter holds beside B A: whole modules, rows of tokens, biases of B as they act, DoRA's magnitudes."""
    tensors = {}
    for name, tensor in adapter.others.items():
        tokens = adapter.tokens_of(name.removesuffix(f".{ROWS}")) if name.endswith(f".{ROWS}") else ()
        if len(tokens) == len(tensor) and tokens:
            order = sorted(range(len(tokens)), key=tokens.__getitem__)
            which = listed([f"token {tokens[i]}" for i in order])
            tensors[f"{name.removesuffix(f'.{ROWS}')}, {which}"] = tensor[order]
        else:
            tensors[name] = tensor
    for name, update in adapter.updates.items():
        if update.bias is not None:
            tensors[f"{name} bias"] = update.scale * update.bias.double()
        if update.magnitude is not None:
            tensors[f"{name} magnitude"] = update.magnitude
    return tensors


def _distance(first: Tensor | None, second: Tensor | None) -> float | str:
    if first is None or second is None:
        return "only in the second" if first is None else "only in the first"
    if first.shape != second.shape:
        return f"{tuple(first.shape)} and {tuple(second.shape)}"
    return float((first.double() - second.double()).abs().max())


def _count(layers: Sequence[LayerSpectrum]) -> str:
    return "1 layer" if len(layers) == 1 else f"{len(layers)} layers"


def _shorten(name: str) -> str:
    return name if len(name) <= 42 else f"...{name[-39:]}"
