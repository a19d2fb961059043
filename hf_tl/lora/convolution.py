"""Adapters beside convolutions over 1, 2 or 3 axes.

A is a convolution with the frozen one's kernel, stride, padding, padding mode and dilation into r channels, B one of
kernel 1. With groups only B is grouped, as in PEFT: every group reads r / groups channels of A, which sees all inputs.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from hf_tl.errors import InputError
from hf_tl.lora.config import LoraConfig
from hf_tl.lora.layer import LoraLayer


_CONVOLVE = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


class LoraConv(LoraLayer):
    """Adapters beside nn.Conv1d, nn.Conv2d or nn.Conv3d."""

    def __init__(self, base_layer: nn.Conv1d | nn.Conv2d | nn.Conv3d):
        super().__init__(base_layer)
        self.axes = len(base_layer.kernel_size)

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """The convolution and what the active adapters add: (n, k, ...) -> (n, d, ...)."""
        self.called.add(self.training)
        y = self.base_layer(x, *args, **kwargs)
        dtype = y.dtype
        for adapter in self.running:
            a, b = self.factors(adapter)
            dropout = self.lora_dropout[adapter] if self.training else 0.0
            seen = F.dropout(x.to(a.dtype), dropout)
            bias, scale = self.lora_B[adapter].bias, self.scaling[adapter]
            b, bias = b * scale, None if bias is None else bias * scale  # far fewer values than the output has
            delta = _CONVOLVE[b.dim()](self._convolve(seen, a), b, bias, groups=self.base_layer.groups)
            if self.use_dora[adapter]:
                ratio = self.dora_ratio(adapter)
                own = self.base_layer.bias
                if dropout > 0:
                    plain = self._convolve(seen, self.base_layer.weight.to(a.dtype))
                else:
                    plain = y if own is None else y - own.view(ratio.shape)
                y = y + (ratio - 1) * plain + ratio * delta
            else:
                y = y + delta
        return y.to(dtype)

    @property
    def is_beyond_peft(self) -> bool:
        """Whether PEFT's layer would convolve otherwise: its A is made without dilation and padding mode."""
        base = self.base_layer
        return any(step != 1 for step in base.dilation) or base.padding_mode != "zeros"

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        base = self.base_layer
        padding = base.padding
        if base.padding_mode != "zeros":
            x, padding = F.pad(x, self._sides(), mode=base.padding_mode), 0
        return _CONVOLVE[weight.dim()](x, weight, None, base.stride, padding, base.dilation)

    def _sides(self) -> list[int]:
        """How far each side is padded, last axis first, as F.pad takes it."""
        base = self.base_layer
        if base.padding == "same":
            extents = [d * (k - 1) for d, k in zip(base.dilation, base.kernel_size, strict=True)]
        else:
            extents = [0] * self.axes if base.padding == "valid" else [2 * p for p in base.padding]
        return [side for extent in reversed(extents) for side in (extent // 2, extent - extent // 2)]

    def check_mergeable(self, adapter: str) -> None:
        """See LoraLayer.

        Raises:
            InputError: a grouped convolution too, whose weight has no place for what A reads in the other groups.
        """
        groups = self.base_layer.groups
        if groups > 1:
            raise InputError(
                f"an adapter of a convolution with {groups} groups reads all input channels, which the grouped "
                "weight has no place for; leave it unmerged, or exclude such layers"
            )
        super().check_mergeable(adapter)

    def shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """See LoraLayer."""
        base = self.base_layer
        if rank % base.groups:
            raise InputError(
                f"a convolution with {base.groups} groups needs a rank divisible by them, got {rank}; "
                "choose another rank in rank_pattern or put the layer into exclude_modules"
            )
        ones = (1,) * self.axes
        return (rank, base.in_channels, *base.kernel_size), (base.out_channels, rank // base.groups, *ones)

    def magnitude_shape(self) -> tuple[int, ...]:
        """See LoraLayer."""
        return (1, -1, *(1,) * self.axes)

    def refuse(self, config: LoraConfig) -> None:
        """See LoraLayer."""
        if config.use_dora and self.base_layer.groups > 1:
            raise InputError(f"use_dora needs an ungrouped convolution, got one with {self.base_layer.groups} groups")
