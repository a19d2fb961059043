"""A layer's output -> one number per channel and sample."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from hf_tl.errors import InputError
from hf_tl.names import closest
from hf_tl.plugins import find_plugin, plugin_names
from hf_tl.trace import Batch, Trace


Stride = tuple[int, int, int, int]  # kernel, stride, padding of both sides together, dilation
PREFIX_TOKENS = {"cls_token", "class_token", "class_embedding", "dist_token", "distillation_token"}
REGISTERS = {"reg_token", "register_tokens"}
EPSILON = 1e-6
GEM_POWER = 3.0


class Pooling(Protocol):
    """How the positions of a sample become one number per channel; pass one of your own as `pool`."""

    def __call__(self, values: Tensor, mask: Tensor | None) -> Tensor:
        """(n, positions, channels), mask (n, positions) bool or None for all -> (n, channels)."""
        ...


def mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """The average over the positions that count, in float32 at least."""
    if mask is None:
        return _sum(values) / values.shape[1]
    dtype = torch.promote_types(values.dtype, torch.float32)
    counts = mask.sum(dim=1, keepdim=True, dtype=dtype).clamp_min(1)
    return torch.einsum("rpc,rp->rc", values.to(dtype), mask.to(dtype)) / counts


def maximum(values: Tensor, mask: Tensor | None) -> Tensor:
    """The largest value of the positions that count."""
    if mask is not None:
        values = values.masked_fill(~mask[:, :, None], -math.inf)
    return values.amax(dim=1)


def gem(values: Tensor, mask: Tensor | None) -> Tensor:
    """Generalised mean, (mean x^3)^(1/3) over x clamped to at least 1e-6 (Radenovic et al., TPAMI 2019, eq. 3)."""
    dtype = torch.promote_types(values.dtype, torch.float32)
    return mean(values.to(dtype).clamp_min(EPSILON).pow(GEM_POWER), mask).pow(1 / GEM_POWER)


def first(values: Tensor, mask: Tensor | None) -> Tensor:
    """The first position that counts: the class token of BERT or ViT."""
    if mask is None:
        return values[:, 0]
    return values[torch.arange(len(values), device=values.device), mask.int().argmax(dim=1)]


def last(values: Tensor, mask: Tensor | None) -> Tensor:
    """The last position that counts, whichever side is padded: where a decoder has read the whole text."""
    if mask is None:
        return values[:, -1]
    final = mask.shape[1] - 1 - mask.flip(1).int().argmax(dim=1)
    return values[torch.arange(len(values), device=values.device), final]


POOLINGS: dict[str, Pooling] = {
    "mean": mean,
    "max": maximum,
    "gem": gem,
    "cls": first,
    "patch-mean": mean,  # of what is left when the prefix tokens are cut off
    "last-token": last,
}
TOKEN_POOLINGS = ("cls", "patch-mean", "last-token")  # they mean something for a sequence of tokens only


def find_pooling(name: str | Pooling) -> Pooling:
    """The pooling of that name, hf_tl's own or a plug-in's (see `hf_tl.plugins`), or the user's object.

    Raises:
        InputError: an unknown name, with the known ones; a plug-in that cannot be used.
    """
    if not isinstance(name, str):
        return name
    found = POOLINGS.get(name) or find_plugin("pooling", name)
    if found is None:
        raise InputError(f"there is no pooling {name!r}; {closest(name, [*POOLINGS, *plugin_names('pooling')])}")
    return found


def pool(
    value: Tensor,
    *,
    n: int,
    channels_last: bool,
    mask: Tensor | None = None,
    how: str | Pooling = "mean",
    prefix: int = 0,
    strides: Sequence[Stride] = (),
) -> Tensor:
    """Pools everything but samples and channels, by the mean in float32 at least.

    A leading axis of several pieces a sample (windows, frames), sample by sample, counts as positions of that.
    The poolings of tokens ("cls", "patch-mean", "last-token") fall back to the mean for maps.

    Args:
        value: (n * pieces, channels, ...) or, with `channels_last`, (n * pieces, ..., channels).
        n: number of samples in the batch.
        channels_last: whether channels are the last axis, as in a fully connected layer's output.
        mask: (n, tokens), 1 where a token counts, 0 where it pads; None where all count.
        how: a name that `find_pooling` knows, or a pooling of your own.
        prefix: number of tokens before the patches, which "patch-mean" leaves out.
        strides: the convolutions over time between the mask's positions and the value's, see `resample`.

    Returns:
        (n, channels).

    Raises:
        ValueError: the mask has padding, but the value's positions are not its tokens.
        InputError: a pooling that does not give (n, channels).
    """
    if mask is not None and value.ndim == 2:
        value = value.reshape(by_tokens(value.shape, mask, channels_last=channels_last))
    if value.ndim == 2 and value.shape[0] == n:
        return value if value.dtype == torch.float32 else value.to(torch.promote_types(value.dtype, torch.float32))
    tokens = channels_last and value.ndim == 3 and value.shape[0] == n
    if how in TOKEN_POOLINGS and not tokens:
        how = "mean"
    if mask is not None:
        mask = positions_mask(mask, value.shape, channels_last=channels_last, strides=strides)
    if how == "patch-mean" and value.shape[1] > prefix:
        value, mask = value[:, prefix:], None if mask is None else mask[:, prefix:]
    if how == "mean" and mask is None and not channels_last:
        pooled = _mean_of_maps(value)  # in the layout it comes in
        return pooled if pooled.shape[0] == n else pooled.unflatten(0, (n, -1)).mean(dim=1)
    if not channels_last:
        value = value.flatten(2).transpose(1, 2) if value.ndim > 2 else value[:, None]
    pooled = find_pooling(how)(value.reshape(n, -1, value.shape[-1]), mask)
    if tuple(pooled.shape) != (n, value.shape[-1]):
        raise InputError(
            f"pooling {how!r} should give one number per sample and channel, {(n, value.shape[-1])}, "
            f"got {tuple(pooled.shape)}"
        )
    return pooled.to(torch.promote_types(pooled.dtype, torch.float32))


def positions_mask(
    mask: Tensor, shape: Sequence[int], *, channels_last: bool, strides: Sequence[Stride] = ()
) -> Tensor | None:
    """The mask of a value's positions, (n, positions) bool; None where all of them count.

    The tokens are the one axis, beside samples and channels, that is as long as the mask; maps have none.

    Args:
        mask: (n, tokens), 1 where a token counts.
        shape: of the value.
        channels_last: whether channels are its last axis.
        strides: the convolutions over time between the mask's positions and the value's, see `resample`.

    Raises:
        ValueError: the mask has padding, but the value's positions are not its tokens.
    """
    mask, n = mask.bool(), mask.shape[0]
    axes = list(shape[1:-1] if channels_last else shape[2:])
    if strides and mask.shape[1] not in axes:
        mask = resample(mask, strides)
    if shape[0] == n and axes.count(mask.shape[1]) == 1 and (channels_last or len(axes) == 1):
        if len(axes) == 1:
            return mask
        along = [-1 if length == mask.shape[1] else 1 for length in axes]
        return mask.view(n, *along).expand(n, *axes).reshape(n, -1)
    if (shape[0] == n and math.prod(axes) == 1) or bool(mask.all()):  # in this order: no graph can hold the second
        return None
    raise ValueError(f"positions of shape {tuple(shape)} cannot be matched with tokens {tuple(mask.shape)}")


def by_tokens(shape: Sequence[int], mask: Tensor, *, channels_last: bool) -> tuple[int, ...]:
    """A value's shape; where the tokens of all samples lie in one row (OPT, shared experts), sample by sample."""
    flat = channels_last and len(shape) == 2 and shape[0] == mask.numel() > mask.shape[0]
    return (*mask.shape, shape[-1]) if flat else tuple(shape)


def resample(mask: Tensor, strides: Sequence[Stride]) -> Tensor:
    """The mask of a signal after convolutions over time: a frame counts if it exists for the sample by itself.

    Args:
        mask: (n, positions) bool, padded on the right.
        strides: (kernel, stride, padding on both sides together, dilation) of each convolution.

    Raises:
        ValueError: padding on the left, which moves the frames themselves.
    """
    if not torch.compiler.is_exporting() and not bool(mask[:, 0].all()):
        raise ValueError("a signal that convolutions shorten must be padded on the right; set padding_side='right'")
    lengths, positions = mask.sum(dim=1), mask.shape[1]
    for kernel, stride, padding, dilation in strides:
        lengths = (lengths + padding - dilation * (kernel - 1) - 1).div(stride, rounding_mode="floor") + 1
        positions = (positions + padding - dilation * (kernel - 1) - 1) // stride + 1
    return torch.arange(positions, device=mask.device) < lengths.clamp(1, positions)[:, None]


def find_strides(record: Trace, example: Batch) -> dict[int | None, tuple[Stride, ...]]:
    """The convolutions over time that lead from the attention mask's positions to each other number of positions.

    Args:
        record: a forward pass on `example`.
        example: a batch; without a mask of (n, positions) nothing has to be matched.

    Returns:
        Number of positions -> (kernel, stride, padding of both sides together, dilation) of each convolution.
    """
    mask = example.get("attention_mask") if isinstance(example, Mapping) else None
    if mask is None or mask.ndim != 2:
        return {}
    found: dict[int | None, tuple[Stride, ...]] = {mask.shape[1]: ()}
    for layer in record.layers:
        module = layer.module
        if isinstance(module, nn.Conv1d) and layer.name in record.given and len(layer.shape) == 3:
            before, after = record.given[layer.name][-1], layer.shape[-1]
            if before in found and after not in found:
                kernel, step, dilation = module.kernel_size[0], module.stride[0], module.dilation[0]
                if isinstance(module.padding, str):
                    padding = dilation * (kernel - 1) if module.padding == "same" else 0
                else:
                    padding = 2 * module.padding[0]
                found[after] = (*found[before], (kernel, step, padding, dilation))
    return found


def n_prefix_tokens(model: nn.Module) -> int:
    """Tokens before the patches: class, distillation and register tokens, by the names of their parameters."""
    count = 0
    for name, parameter in model.named_parameters():
        leaf = name.rpartition(".")[2]
        count += 1 if leaf in PREFIX_TOKENS else parameter.shape[1] if leaf in REGISTERS else 0
    return count


def _mean_of_maps(value: Tensor) -> Tensor:
    """(n, channels, ...) -> (n, channels), in float32 at least."""
    dtype = torch.promote_types(value.dtype, torch.float32)
    if value.ndim == 2:
        return value.to(dtype)
    if value.device.type == "cpu":
        if value.ndim == 4 and value.is_contiguous(memory_format=torch.channels_last) and not value.is_contiguous():
            # torch.mean is half as fast on this layout. Each line of a map is averaged in the order of the memory,
            # the lines then in float32 at least, so that neither many terms nor bfloat16 cost digits.
            lines = nn.functional.avg_pool2d(value, (1, value.shape[3]))
            return lines.to(dtype).mean(dim=(2, 3))
        if value.dtype == torch.bfloat16:  # torch.mean is many times slower than in float32; a row fits the cache
            return torch.stack([row.flatten(1).to(dtype).mean(dim=1) for row in value])
        if value.dtype == torch.float32:
            return (_sum_of_maps(value.flatten(2)) / math.prod(value.shape[2:])).to(dtype)
    return value.mean(dim=tuple(range(2, value.ndim)), dtype=dtype)


def _sum_of_maps(maps: Tensor) -> Tensor:
    """(n, channels, positions) float32 -> (n, channels) float64, nearly as exact as adding in float64 throughout.

    That is many times slower than adding in float32, where the last additions, of large partial sums, cost most of
    the digits. So float32 adds every eighth position, as the registers do, and float64 the eight sums.
    """
    lanes = 8
    whole = maps.shape[2] // lanes * lanes
    if whole <= lanes:
        return maps.sum(dim=2, dtype=torch.float64)
    total = maps[:, :, :whole].unflatten(2, (-1, lanes)).sum(dim=2).sum(dim=2, dtype=torch.float64)
    return total + maps[:, :, whole:].sum(dim=2, dtype=torch.float64) if whole < maps.shape[2] else total


def _sum(values: Tensor) -> Tensor:
    """Over positions, (n, positions, channels) -> (n, channels), in float32 at least."""
    if values.dtype == torch.bfloat16 and values.device.type == "cpu":
        return _split_sum(values)
    return values.sum(dim=1, dtype=torch.promote_types(values.dtype, torch.float32))


def _split_sum(values: Tensor) -> Tensor:
    """The same for bfloat16 on a CPU, whose sum into float32 is many times slower than its sum.

    A bfloat16 sum is taken in float32 but rounded to 8 bits at the end; sums of short runs of positions, added in
    float32, round independently, and what is left of that error is far below the rounding of the values themselves.
    """
    run = max(1, math.isqrt(values.shape[1]))
    whole = values.shape[1] // run * run
    total = values[:, :whole].unflatten(1, (-1, run)).sum(dim=2).sum(dim=1, dtype=torch.float32)
    return total + values[:, whole:].sum(dim=1, dtype=torch.float32) if whole < values.shape[1] else total
