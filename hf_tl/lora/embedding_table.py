"""Adapters beside a table of embeddings: row i of the table gets `scaling * B A[:, i]`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_tl.errors import InputError
from hf_tl.lora.config import LoraConfig
from hf_tl.lora.layer import LoraLayer


class LoraEmbedding(LoraLayer):
    """Adapters beside nn.Embedding; as in PEFT, A (r, rows) starts at zero, B (d, r) normal, and none is dropped."""

    transposed = True

    def __init__(self, base_layer: nn.Embedding):
        super().__init__(base_layer)
        self.lora_embedding_A = nn.ParameterDict()
        self.lora_embedding_B = nn.ParameterDict()

    def forward(self, ids: Tensor, *args: object, **kwargs: object) -> Tensor:
        """The embeddings and what the active adapters add: (...) of integers -> (..., d)."""
        self.called.add(self.training)
        base = self.base_layer
        y = base(ids, *args, **kwargs)
        dtype = y.dtype
        for adapter in self.running:
            a, b = self.factors(adapter)
            rows = F.embedding(
                ids,
                a.t(),
                padding_idx=base.padding_idx,
                max_norm=base.max_norm,
                norm_type=base.norm_type,
                scale_grad_by_freq=base.scale_grad_by_freq,
            )  # a sparse gradient could not pass the transposition
            delta = (rows @ b.t()) * self.scaling[adapter]
            scale = {**vars(base), **dict(base.named_buffers())}.get("embed_scale")
            if (
                scale is not None
            ):  # tables whose rows are multiplied on the way out: a buffer of Gemma's, BART's number
                delta = delta * torch.as_tensor(scale, dtype=delta.dtype)
            if self.use_dora[adapter]:
                ratio = self.dora_ratio(adapter)
                y = ratio * y + ratio * delta
            else:
                y = y + delta
        return y.to(dtype)

    def adapter_tensors(self, adapter: str, *, export: bool = False) -> Iterator[tuple[str, Tensor]]:
        """See LoraLayer."""
        factors = self.factors(adapter) if export else self.held_factors(adapter)
        yield from zip(("lora_embedding_A", "lora_embedding_B"), factors, strict=True)
        if adapter in self.lora_magnitude_vector:
            yield "lora_magnitude_vector", self.lora_magnitude_vector[adapter].weight

    def held_factors(self, adapter: str) -> tuple[nn.Parameter, nn.Parameter]:
        """See LoraLayer."""
        return self.lora_embedding_A[adapter], self.lora_embedding_B[adapter]

    def extra_bias(self, adapter: str) -> None:
        """None: an embedding has no bias."""

    def shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """See LoraLayer."""
        rows, dim = self.base_layer.num_embeddings, self.base_layer.embedding_dim
        return (rank, rows), (dim, rank)

    def refuse(self, config: LoraConfig) -> None:
        """See LoraLayer."""
        if config.lora_bias:
            raise InputError("lora_bias=True is for linear layers and convolutions; embeddings have no bias")

    def init(self, config: LoraConfig) -> str:
        """See LoraLayer."""
        return "embedding" if config.init in ("kaiming", "gaussian", "gaussian_b") else config.init

    def hold(self, adapter: str, a: Tensor, b: Tensor, bias: Tensor | None) -> None:
        """See LoraLayer."""
        self.lora_embedding_A[adapter] = nn.Parameter(a)
        self.lora_embedding_B[adapter] = nn.Parameter(b)
