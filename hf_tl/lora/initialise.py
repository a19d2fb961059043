"""Where the factors of a new adapter start."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hf_tl.errors import InputError


def initialise(
    a: Tensor, b: Tensor, *, init: str, weight: Callable[[], Tensor], scaling: float
) -> tuple[Tensor, Tensor] | None:
    """Fills A, and B which comes as zeros, in place, as INITS says.

    Args:
        a: (r, k), or (r, k, *kernel).
        b: (d, r), or (d, r / groups, 1, ...).
        init: a key of INITS, "pissa_niter_N", or "embedding" (A zero, B standard normal).
        weight: gives the frozen weight as (d, k).
        scaling: what B A is multiplied with.

    Returns:
        the factors' start, where it is to be subtracted permanently so that a new adapter changes nothing ("pissa",
        "olora"): PEFT takes that part out of the frozen weight, which then is no longer the network's; here the
        weight stays as it is. None for the other inits.

    Raises:
        InputError: the layer or the rank does not fit the init.
    """
    rank = a.shape[0]
    with torch.no_grad():
        if init in ("kaiming", "eva", "random"):
            for factor in (a, b) if init == "random" else (a,):
                bound = 1 / math.sqrt(factor[0].numel())  # what torch gives a new layer: kaiming_uniform_(a=sqrt(5))
                factor.uniform_(-bound, bound)
        elif init == "gaussian":
            a.normal_(std=1 / rank)
        elif init == "gaussian_b":
            a.zero_()
            b.normal_(std=1 / rank)
        elif init == "embedding":
            a.zero_()
            b.normal_()
        elif a.dim() != 2:
            raise InputError(f"init_lora_weights={init!r} is for linear layers; use 'kaiming' for convolutions")
        elif init == "orthogonal":
            _orthogonal(a, b)
        else:
            limit = min(a.shape[1], b.shape[0])
            if rank > limit:
                raise InputError(
                    f"{init!r} finds {limit} directions in a {b.shape[0]} x {a.shape[1]} weight, r={rank}"
                )
            left, right = _leading(weight().to(a.dtype), rank, init)
            a.copy_(right / math.sqrt(scaling) if init.startswith("pissa") else right)
            b.copy_(left / math.sqrt(scaling) if init.startswith("pissa") else left)
            return a.clone(), b.clone()
    return None


def _orthogonal(a: Tensor, b: Tensor) -> None:
    """Odd rows of one orthogonal matrix span A, even rows B, so that B A starts at zero though neither factor does."""
    rank = a.shape[0]
    if rank % 2:
        raise InputError(f"'orthogonal' splits the rank into halves, so it must be even; got {rank}")
    basis, _ = torch.linalg.qr(a.new_empty(rank, rank).normal_())
    a.copy_((a.new_empty(a.shape[1], rank // 2).normal_() @ basis[0::2]).t() / 10)
    b.copy_((b.new_empty(b.shape[0], rank // 2).normal_() @ basis[1::2]) / 10)


def _leading(weight: Tensor, rank: int, init: str) -> tuple[Tensor, Tensor]:
    """(d, r) and (r, k) whose product is the part of the weight that the init moves into the adapter."""
    if init == "olora":
        q, r = torch.linalg.qr(weight)
        return q[:, :rank], r[:rank]
    if init == "pissa":
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        u, s, vh = u[:, :rank], s[:rank], vh[:rank]
    else:
        u, s, v = torch.svd_lowrank(weight, q=rank, niter=int(init.rpartition("_")[2]))
        vh = v.t()
    return u * s.sqrt(), s.sqrt()[:, None] * vh
