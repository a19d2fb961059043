"""How two adapters of one network differ, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_tl.errors import InputError
from hf_tl.lora.adapter import Adapter, LayerUpdate
from hf_tl.lora.low_rank import singular_values
from hf_tl.table import format_table


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
        return self.distance / max(*self.norms) if max(self.norms) > 0 else 0.0


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
        """Whether both give the same network: every update and every further tensor is equal."""
        return all(layer.distance == 0 for layer in self.layers) and all(value == 0 for value in self.others.values())


def compare_adapters(first: Adapter, second: Adapter) -> AdapterDifference:
    """Compares what the adapters add to the weights, not how it is factored: B A counts, not A and B.

    Raises:
        InputError: a layer whose updates are of different size: these are adapters of different networks.
    """
    names = list(dict.fromkeys([*first.updates, *second.updates]))
    layers = [_layer(name, first.updates.get(name), second.updates.get(name)) for name in names]
    others: dict[str, float | str] = {}
    for name in sorted({*first.others, *second.others}):
        others[name] = _tensors(first.others.get(name), second.others.get(name))
    for name in names:
        for part in ("bias", "magnitude"):
            mine, theirs = (_part(adapter.updates.get(name), part) for adapter in (first, second))
            if mine is not None or theirs is not None:
                others[f"{name} {part}"] = _tensors(mine, theirs)
    options = {}
    for name in sorted({*first.config, *second.config}):
        one, other = (adapter.config.get(name) or None for adapter in (first, second))  # {} and false are no option
        if one != other:
            options[name] = (one, other)
    return AdapterDifference(tuple(layers), others, options)


def difference_table(found: AdapterDifference) -> str:
    """One row a layer, then one a further tensor that differs."""
    rows = []
    for layer in found.layers:
        ranks, norms = f"{layer.ranks[0]}, {layer.ranks[1]}", [f"{norm:.4g}" for norm in layer.norms]
        apart = [f"{layer.distance:.2e}", f"{layer.relative:.2e}", f"{layer.cosine:.4f}"]
        rows.append([layer.name, ranks, *norms, *apart])
    header = ["layer", "r", "|dW| first", "|dW| second", "|difference|", "relative", "cosine"]
    return format_table(header, rows)


def _layer(name: str, first: LayerUpdate | None, second: LayerUpdate | None) -> LayerDifference:
    if first is not None and second is not None and first.shape != second.shape:
        raise InputError(
            f"layer {name!r} is updated by {first.shape[0]} x {first.shape[1]} in the first adapter and by "
            f"{second.shape[0]} x {second.shape[1]} in the second; they belong to different networks"
        )
    factors = [None if update is None else _scaled(update) for update in (first, second)]
    norms = tuple(0.0 if pair is None else float(singular_values(*pair).norm()) for pair in factors)
    ranks = tuple(0 if update is None else update.rank for update in (first, second))
    if None in factors:
        return LayerDifference(name, ranks, norms, max(norms), float("nan"))
    (B, A), (other_B, other_A) = factors
    together = singular_values(torch.cat([B, -other_B], dim=1), torch.cat([A, other_A]))
    distance = 0.0 if torch.equal(B, other_B) and torch.equal(A, other_A) else float(together.norm())
    product = float(((B.T @ other_B) * (A @ other_A.T)).sum())
    cosine = product / (norms[0] * norms[1]) if min(norms) > 0 else float("nan")
    return LayerDifference(name, ranks, norms, distance, cosine)


def _scaled(update: LayerUpdate) -> tuple[Tensor, Tensor]:
    B, A = update.factors()
    return update.scale * B, A


def _part(update: LayerUpdate | None, name: str) -> Tensor | None:
    if update is None:
        return None
    return update.bias if name == "bias" else update.magnitude


def _tensors(first: Tensor | None, second: Tensor | None) -> float | str:
    if first is None or second is None:
        return "only in the second" if first is None else "only in the first"
    if first.shape != second.shape:
        return f"{tuple(first.shape)} and {tuple(second.shape)}"
    return float((first.double() - second.double()).abs().max())
