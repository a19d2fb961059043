"""A layer's output -> one number per channel and row."""

from __future__ import annotations

import torch
from torch import Tensor


def pool(value: Tensor, *, rows: int, channels_last: bool, mask: Tensor | None = None) -> Tensor:
    """Averages everything but rows and channels, in float32 at least.

    A leading axis of several pieces a row (windows, frames), row by row, counts as positions of its row.

    Args:
        value: (rows * pieces, channels, ...) or, with `channels_last`, (rows * pieces, ..., channels).
        rows: number of rows in the batch.
        channels_last: whether channels are the last axis, as in a fully connected layer's output.
        mask: (rows, tokens), 1 where a token counts, 0 where it pads; None where all count.

    Returns:
        (rows, channels).

    Raises:
        ValueError: the mask has padding, but the value's positions are not its tokens.
    """
    dtype = torch.promote_types(value.dtype, torch.float32)
    if mask is not None and value.ndim > 2:
        if channels_last and value.shape[:-1] == mask.shape:
            counts = mask.sum(dim=1, keepdim=True, dtype=dtype).clamp_min(1)
            return torch.einsum("rtc,rt->rc", value.to(dtype), mask.to(dtype)) / counts
        if not bool(mask.all()):
            raise ValueError(
                f"positions of shape {tuple(value.shape)} cannot be matched with tokens {tuple(mask.shape)}"
            )
    if not channels_last:
        value = value.mean(dim=tuple(range(2, value.ndim)), dtype=dtype) if value.ndim > 2 else value.to(dtype)
        return value if len(value) == rows else value.unflatten(0, (rows, -1)).mean(dim=1)
    value = value.reshape(rows, -1, value.shape[-1])
    return value.to(dtype).squeeze(1) if value.shape[1] == 1 else value.mean(dim=1, dtype=dtype)
