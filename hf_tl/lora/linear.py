"""Adapters beside fully connected layers, the kind most networks are made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from hf_tl.lora.dora import add_dora, add_dora_to_product
from hf_tl.lora.functions import add_low_rank, add_low_rank_to_product, sums_are_long
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
        running = self._running()
        if len(running) == 1 and not args and not kwargs and self._is_simple(x, running[0]):
            return self._add_to_product(x, running[0])
        y = self.base_layer(x, *args, **kwargs)
        for adapter in running:
            y = self._add(y, x, adapter)
        return y

    def _add(self, y: Tensor, x: Tensor, adapter: str) -> Tensor:
        a, b = self.factors(adapter)
        dropout = self.lora_dropout[adapter] if self.training else 0.0
        scale, bias, owned = self.scaling[adapter], self.lora_B[adapter].bias, _is_bare(self.base_layer)
        if self.use_dora[adapter]:
            ratio = self.stretch(adapter)
            return add_dora(y, x, self, a=a, b=b, bias=bias, ratio=ratio, scale=scale, dropout=dropout, owned=owned)
        y = add_low_rank(y, x, a=a, b=b, scale=scale, dropout=dropout, owned=owned)
        return y if bias is None else (y + bias * scale).to(y.dtype)

    def _add_to_product(self, x: Tensor, adapter: str) -> Tensor:
        base, (a, b) = self.base_layer, self.factors(adapter)
        scale, bias = self.scaling[adapter], self.lora_B[adapter].bias
        if self.use_dora[adapter]:
            ratio = self.stretch(adapter)
            return add_dora_to_product(x, base.weight, base.bias, a=a, b=b, ratio=ratio, scale=scale)
        y = add_low_rank_to_product(x, base.weight, base.bias, a=a, b=b, scale=scale)
        return y if bias is None else y + bias * scale

    def _is_simple(self, x: Tensor, adapter: str) -> bool:
        """Whether one function may stand for the frozen layer and the adapter, and is worth it."""
        base, parameters = self.base_layer, self.base_layer._parameters.values()
        return (
            sums_are_long(x)
            and torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
            and not torch.is_autocast_enabled(x.device.type)
            and not (self.use_dora[adapter] and self.lora_B[adapter].bias is not None)
            and not (self.training and self.lora_dropout[adapter])
            and _is_bare(base)
            and all(p is None or (type(p) is nn.Parameter and not p.requires_grad) for p in parameters)
            and type(x) is Tensor
            and x.dtype == base.weight.dtype == self.lora_A[adapter].weight.dtype
        )

    def _shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (rank, self.in_features), (self.out_features, rank)


def _is_bare(layer: nn.Module) -> bool:
    """Whether it is a plain nn.Linear that nobody watches and nobody changed, so that nobody else sees its output.

    There is no public way to ask; this is what nn.Module asks before it leaves its hooks out.
    """
    return (
        type(layer) is nn.Linear
        and "forward" not in layer.__dict__
        and not (layer._forward_pre_hooks or layer._forward_hooks)
        and not (layer._backward_pre_hooks or layer._backward_hooks)
        and not torch_module._has_any_global_hook()
    )
