"""Where the factors of a new adapter start."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def initialise(a: Tensor, b: Tensor, *, init: str, weight: Tensor, scaling: float) -> None:
    """Fills A (r, k) and B (d, r) in place.

    Args:
        a: (r, k), or (r, k / groups, *kernel).
        b: (d, r), or (d, r / groups, 1, ...).
        init: a key of INITS.
        weight: the frozen weight as (d, k); "pissa" and "olora" take their part out of it.
        scaling: what B A is multiplied with.
    """
    with torch.no_grad():
        nn.init.kaiming_uniform_(a, a=math.sqrt(5))
        nn.init.zeros_(b)
