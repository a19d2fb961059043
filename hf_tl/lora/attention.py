"""Adapters beside nn.MultiheadAttention, which hides its projections from modules.

The input projection (3 d x d) gets one adapter; the output projection is adapted by a LoraLinear of its own, found
at `base_layer.out_proj`. As the attention reads both weights without calling a module, it runs on `W + scaling * B A`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_tl.errors import InputError
from hf_tl.lora.config import LoraConfig
from hf_tl.lora.layer import LoraLayer
from hf_tl.lora.linear import LoraLinear


class LoraOutput(LoraLinear):
    """Adapters beside the output projection of nn.MultiheadAttention, at twice the scaling.

    PEFT (0.21) adds this update twice, in the forward pass and in the merge, and lets gradients through one of the
    two. What a file means is what PEFT computes from it, so it is the same here.
    """

    def add_adapter(self, adapter: str, **options: Any) -> None:
        """See LoraLayer."""
        super().add_adapter(adapter, **options)
        self.scaling[adapter] *= 2

    @property
    def weight(self) -> Tensor:
        """The frozen weight, which the attention around it replaces."""
        return self.frozen_weight

    def adapted_weight(self, adapters: Sequence[str]) -> Tensor:
        """See LoraLayer."""
        weight: Tensor = self.frozen_weight
        for adapter in adapters:
            a, b = self.factors(adapter)
            delta = ((b @ a) * (self.scaling[adapter] / 2)).to(weight.dtype)
            weight = weight + delta + delta.detach()
        return weight


class LoraAttention(LoraLayer):
    """Adapters beside nn.MultiheadAttention with queries, keys and values of one width.

    Attributes:
        output: the adapters of the output projection; `add_lora` puts it at `base_layer.out_proj`.
    """

    output: LoraOutput

    weight_name = "in_proj_weight"
    calls_layer = False

    def __init__(self, base_layer: nn.MultiheadAttention):
        super().__init__(base_layer)
        if base_layer.in_proj_weight is None:
            raise InputError("adapters need queries, keys and values of one width, got kdim or vdim of their own")
        object.__setattr__(self, "output", LoraOutput(base_layer.out_proj))  # once placed, a child of the base layer

    def forward(self, query: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor | None]:
        """Attention with the adapted projections; arguments as those of nn.MultiheadAttention."""
        self.called.add(self.training)
        running = self.running
        if not running:
            return self.base_layer(query, *args, **kwargs)
        weights = {
            "in_proj_weight": self.adapted_weight(running),
            "out_proj.base_layer.weight": self.base_layer.out_proj.adapted_weight(running),
        }
        return torch.func.functional_call(self.base_layer, weights, (query, *args), kwargs)

    def unwrapped(self) -> nn.Module:
        """See LoraLayer; the output projection comes back with it."""
        if isinstance(self.base_layer.out_proj, LoraOutput):
            self.base_layer.out_proj = self.base_layer.out_proj.unwrapped()
        return super().unwrapped()

    def shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """See LoraLayer."""
        rows, columns = self.base_layer.in_proj_weight.shape
        return (rank, columns), (rows, rank)

    def refuse(self, config: LoraConfig) -> None:
        """See LoraLayer."""
        unable = {"lora_dropout": config.lora_dropout > 0, "use_dora": config.use_dora, "lora_bias": config.lora_bias}
        for name, wanted in unable.items():
            if wanted:
                raise InputError(
                    f"{name} does not act inside nn.MultiheadAttention; leave it out, or exclude the module"
                )
