"""Adapters beside fully connected layers, the kind most networks are made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_tl.architectures import is_conv1d
from hf_tl.errors import InputError
from hf_tl.lora.autograd import add_low_rank
from hf_tl.lora.layer import LoraLayer


class LoraLinear(LoraLayer):
    """Adapters beside nn.Linear, transformers' Conv1D, or a subclass that computes x W' + c, quantised ones too."""

    def __init__(self, base_layer: nn.Module):
        super().__init__(base_layer)
        self.transposed = is_conv1d(base_layer)

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """`x W' + c` and what the active adapters add: (..., k) -> (..., d)."""
        y = self.base_layer(x, *args, **kwargs)
        for adapter in self.running:
            y = self._add(y, x, adapter)
        return y

    def _add(self, y: Tensor, x: Tensor, adapter: str) -> Tensor:
        a, b = self.factors(adapter)
        scale, extra = self.scaling[adapter], self.extra_bias(adapter)
        dropout = self.lora_dropout[adapter] if self.training else 0.0
        extra = None if extra is None else extra * scale
        if not self.use_dora[adapter]:
            out = add_low_rank(y, x, a=a, b=b, scale=scale, dropout=dropout)
        else:
            ratio = self.dora_ratio(adapter)
            extra = None if extra is None else extra * ratio
            if dropout == 0:
                out = add_low_rank(y, x, a=a, b=b, scale=scale, ratio=ratio, bias=self.base_layer.bias)
            else:  # what the ratio changes is the output for the dropped input
                dropped = F.dropout(x.to(a.dtype), dropout)
                plain = F.linear(dropped, self.matrix().to(a.dtype))
                out = y - plain + add_low_rank(plain, dropped, a=a, b=b, scale=scale, ratio=ratio)
        return out.to(y.dtype) if extra is None else (out + extra).to(y.dtype)

    def check_weight(self) -> None:
        """See LoraLayer: of a subclass, the output for a random input is compared with the weight's."""
        weight, base = self.matrix(), self.base_layer
        if weight.is_meta or type(base) is nn.Linear or is_conv1d(base):
            return
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            x = torch.randn(2, weight.shape[1]).to(weight)
            plain = type(base).forward(base, x)  # past the hooks, which are not asked
            apart = (plain - F.linear(x, weight, base.bias)).abs().max()
        if apart > 0.01 * plain.abs().max():
            raise InputError(
                f"{type(base).__name__} computes something else than x W' + c with its weight; DoRA, PiSSA, OLoRA and "
                "a merge would be of another matrix: choose another adapter, or exclude_modules"
            )

    def _shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        d, k = self.weight.shape[::-1] if self.transposed else self.weight.shape
        if isinstance(self.base_layer, nn.Linear):  # a packed weight has another shape
            d, k = self.base_layer.out_features, self.base_layer.in_features
        return (rank, k), (d, rank)
