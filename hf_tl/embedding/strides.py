"""Which convolutions over time stand between an attention mask and a value that has fewer positions."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from hf_tl.trace import Batch, Trace


Stride = tuple[int, int, int, int]


def strides_of(record: Trace, example: Batch) -> dict[int, tuple[Stride, ...]]:
    """The convolutions that lead from the attention mask's positions to each other number of positions.

    Args:
        record: a forward pass on `example`.
        example: a batch; without a mask of (rows, positions) nothing has to be matched.

    Returns:
        Number of positions -> (kernel, stride, padding of both sides together, dilation) of each convolution.
    """
    mask = example.get("attention_mask") if isinstance(example, Mapping) else None
    if mask is None or mask.ndim != 2:
        return {}
    found: dict[int, tuple[Stride, ...]] = {mask.shape[1]: ()}
    for layer in record.layers:
        if isinstance(layer.module, nn.Conv1d) and layer.name in record.given and len(layer.shape) == 3:
            before, after = record.given[layer.name][-1], layer.shape[-1]
            if before in found and after not in found:
                found[after] = (*found[before], _stride(layer.module))
    return found


def _stride(module: nn.Conv1d) -> Stride:
    kernel, step, dilation = module.kernel_size[0], module.stride[0], module.dilation[0]
    if module.padding == "same":
        padding = dilation * (kernel - 1)
    else:
        padding = 0 if module.padding == "valid" else 2 * module.padding[0]
    return kernel, step, padding, dilation
