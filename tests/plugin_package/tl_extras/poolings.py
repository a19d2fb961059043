"""The median over positions, which one bright corner does not move."""

import torch
from torch import Tensor


def median(values: Tensor, mask: Tensor | None) -> Tensor:
    """(rows, positions, channels), (rows, positions) or None -> (rows, channels)."""
    if mask is not None:
        values = values.masked_fill(~mask[:, :, None], torch.nan)
    return values.nanmedian(dim=1).values
