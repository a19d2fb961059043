"""Adapters beside fully connected layers, the kind most networks are made of."""

from __future__ import annotations

import sys

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from hf_tl.lora.dora import add_dora
from hf_tl.lora.functions import add_low_rank
from hf_tl.lora.layers import LoraLayer


class LoraLinear(LoraLayer):
    """Adapters beside nn.Linear, transformers' Conv1D, or a subclass that computes x W' + b, quantised ones too."""

    def __init__(self, base_layer: nn.Module):
        super().__init__(base_layer)
        if isinstance(base_layer, nn.Linear):
            k, d = base_layer.in_features, base_layer.out_features
        else:
            k, d = base_layer.weight.shape
        self.__dict__.update(in_features=k, out_features=d, transposed=not isinstance(base_layer, nn.Linear))

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """`W x + b` and what the active adapters add: (..., k) -> (..., d)."""
        y = self.base_layer(x, *args, **kwargs)
        for adapter in self._running():
            y = self._add(y, x, adapter)
        return y

    def _add(self, y: Tensor, x: Tensor, adapter: str) -> Tensor:
        a, b = self.factors(adapter)
        dropout = self.lora_dropout[adapter] if self.training else 0.0
        scale, bias, owned = self.scaling[adapter], self.lora_B[adapter].bias, self._owns_output()
        if self.use_dora[adapter]:
            ratio = self.stretch(adapter)
            return add_dora(y, x, self, a=a, b=b, bias=bias, ratio=ratio, scale=scale, dropout=dropout, owned=owned)
        y = add_low_rank(y, x, a=a, b=b, scale=scale, dropout=dropout, owned=owned)
        return y if bias is None else (y + bias * scale).to(y.dtype)

    def _shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (rank, self.in_features), (self.out_features, rank)

    def _owns_output(self) -> bool:
        """Whether the frozen layer is a plain nn.Linear that nobody watches, so that its output may be written."""
        base = self.base_layer
        return (
            type(base) is nn.Linear
            and not base._forward_hooks
            and not base._backward_hooks
            and not torch_module._global_forward_hooks
        )


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is transformers' Conv1D, a linear layer whose weight is (k, d)."""
    home = sys.modules.get("transformers.pytorch_utils")
    return home is not None and isinstance(module, home.Conv1D)
