"""A matrix of low rank, B A, taken apart or added without being built, with B (d, R) and A (R, k).

All work of taking it apart is of size R: with B = Q_b R_b and A' = Q_a R_a, the singular values of B A are those of
the small R_b R_a' (R, R), and its singular vectors are that one's, turned by Q_b and Q_a.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


_STRIP = 8  # rows


def add_product(matrix: Tensor, b: Tensor, a: Tensor, *, scale: float) -> None:
    """Adds `scale * B A` to a matrix in place, (d, k) += (d, R) (R, k).

    Where R is small, the time goes into reading and writing the matrix. A batch of strips of a few rows does that in
    the order in which it lies in memory, and takes .5 to .8 of the time of one product from 768 columns on; for a
    larger R or fewer columns one product is faster.
    """
    d, k = matrix.shape
    wide = matrix.device.type == "cpu" and a.shape[0] <= 8 and k >= 768 and d % _STRIP == 0
    if wide and matrix.is_contiguous():
        strips = matrix.view(-1, _STRIP, k)
        strips.baddbmm_(b.unflatten(0, (-1, _STRIP)), a.expand(len(strips), -1, -1), alpha=scale)
    else:
        matrix.addmm_(b, a, alpha=scale)


def singular_values(b: Tensor, a: Tensor) -> Tensor:
    """Singular values of B A: (d, R), (R, k) -> (R,), descending."""
    left, right = (torch.linalg.qr(factor, mode="r").R for factor in (b, a.mT))
    found = torch.linalg.svdvals(left @ right.mT)
    return torch.nn.functional.pad(found, (0, a.shape[0] - len(found)))


def rank_for(values: Tensor, energy: float) -> int:
    """The smallest rank that keeps this share of the sum of squares of descending singular values; 0 if all are 0."""
    squares = values.square()
    total = squares.sum()
    if total == 0:
        return 0
    lost = total - squares.cumsum(0)
    return int((lost > (1 - energy) * total).sum()) + 1


def truncate(b: Tensor, a: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The best approximation of B A at a rank (Eckart and Young), its singular values shared by both factors.

    Args:
        b: (..., d, R).
        a: (..., R, k).
        rank: of the result; what it has beyond the rank of B A is zero.

    Returns:
        B (..., d, rank), A (..., rank, k), and the Frobenius norm of what is lost relative to that of B A.
    """
    left, left_r = torch.linalg.qr(b)
    right, right_r = torch.linalg.qr(a.mT)
    u, values, v = torch.linalg.svd(left_r @ right_r.mT, full_matrices=False)
    root = values[..., :rank].sqrt()
    b = (left @ u[..., :rank]) * root[..., None, :]
    a = root[..., None] * (v[..., :rank, :] @ right.mT)
    spare = rank - root.shape[-1]
    b, a = torch.nn.functional.pad(b, (0, spare)), torch.nn.functional.pad(a, (0, 0, 0, spare))
    total = float(values.square().sum())
    return b, a, math.sqrt(float(values[..., rank:].square().sum()) / total) if total else 0.0
