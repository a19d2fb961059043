"""DoRA: the length of each row of the weight is learnt apart from its direction (Liu et al., ICML 2024).

    W' = m * (W + s B A) / ||W + s B A||,  row by row, the length below the line taken as a constant (section 4.3).

The lengths are found without building the d x k product B A:

    ||W + s B A||^2 = ||W||^2 + 2 s sum((W A') * B) + s^2 sum((B (A A')) * B),  summed over each row.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Dense(Protocol):
    """A frozen layer `x W' + b` whose weight can be read as (d, k)."""

    base_layer: nn.Module

    @property
    def weight_dk(self) -> Tensor: ...


def row_lengths(weight: Tensor, a: Tensor, b: Tensor, *, scale: float) -> Tensor:
    """`||W + scale * B A||` of every row, (d,), in float32 or wider; W (d, k), A (r, k), B (d, r)."""
    with torch.no_grad():
        wide = torch.promote_types(weight.dtype, a.dtype)
        weight, a, b = weight.to(wide), a.to(wide), b.to(wide)
        square = weight.pow(2).sum(1) + 2 * scale * ((weight @ a.t()) * b).sum(1)
        square += scale * scale * ((b @ (a @ a.t())) * b).sum(1)
        return square.clamp_(min=0).sqrt_()


def add_dora(
    y: Tensor, x: Tensor, layer: Dense, *, a: Tensor, b: Tensor, magnitude: Tensor, scale: float, dropout: float
) -> Tensor:
    """The layer's output with the rows of `W + scale * B A` at length `magnitude`, in the dtype of y.

    Args:
        y: (..., d), what the frozen layer returned for x.
        x: (..., k).
        layer: the frozen layer.
        a: (r, k).
        b: (d, r).
        magnitude: (d,).
        scale: the adapter's scaling.
        dropout: probability; where it is not 0, the frozen weight is applied to the dropped input once more.
    """
    bias = layer.base_layer.bias
    x = x.to(a.dtype)
    ratio = magnitude / row_lengths(layer.weight_dk, a, b, scale=scale)
    if dropout > 0:
        x = F.dropout(x, dropout)
        plain = F.linear(x, layer.weight_dk.to(x.dtype))
    else:
        plain = y if bias is None else y - bias
    return (y + (ratio - 1) * plain + ratio * F.linear(F.linear(x, a), b) * scale).to(y.dtype)
