"""Single rows of an embedding that train, such as those of new tokens: PEFT's trainable_token_indices.

The rows are values, not differences: a file of them means the same beside a vocabulary whose new rows were drawn anew.
Where the layer that turns states into words has the same weight, its logits of these tokens come from the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_tl.architectures import offloaded_to_run_on
from hf_tl.errors import InputError


ROWS = "token_adapter.trainable_tokens_delta"
"""Their name in a file, behind that of the embedding."""


class TokenRows(nn.Module):
    """An embedding, or a linear layer that gives logits of words, with rows of its weight that train by adapter.

    Attributes:
        base_layer: the frozen layer.
        rows: by adapter, (n, d), float32 beside half precision; those of `source` where the weight is tied.
        indices: by adapter, which rows they replace.
        source: the rows of the embedding with the same weight; None for rows of its own.
        active: the adapter whose rows act; None for none.
        disable_adapters: whether the frozen rows act in any case.
    """

    base_layer: Any

    def __init__(self, layer: nn.Module, *, source: TokenRows | None = None):
        super().__init__()
        if not isinstance(layer, (nn.Embedding, nn.Linear)) or type(layer.weight) is not nn.Parameter:
            raise InputError(
                f"trainable_token_indices are rows of an embedding or of the layer before the logits, not of a "
                f"{type(layer).__name__}"
            )
        if offloaded_to_run_on(layer) is not None:
            raise InputError(
                "trainable_token_indices are rows of weights that are offloaded; keep the embeddings, and what is "
                "tied to them, on a device (device_map)"
            )
        self.base_layer = layer
        self._source = [] if source is None else [source]  # in a list, as it is no child
        self._rows = nn.ParameterDict()
        self._indices: dict[str, tuple[int, ...]] = {}
        self.active: str | None = None
        self.disable_adapters = False
        self.training = layer.training

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__") or "base_layer" not in self.__dict__.get("_modules", {}):
                raise
            return getattr(self.base_layer, name)

    @property
    def source(self) -> TokenRows | None:
        """See the class."""
        return self._source[0] if self._source else None

    @property
    def rows(self) -> nn.ParameterDict:
        """See the class."""
        return self._rows if self.source is None else self.source.rows

    @property
    def indices(self) -> dict[str, tuple[int, ...]]:
        """See the class."""
        return self._indices if self.source is None else self.source.indices

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """What the frozen layer returns, with the active adapter's rows in the place of its own."""
        y = self.base_layer(x, *args, **kwargs)
        adapter = self._running
        if adapter is None:
            return y
        index, rows = self._index(adapter), self.rows[adapter].to(self.base_layer.weight.dtype)
        if isinstance(self.base_layer, nn.Linear):
            bias = self.base_layer.bias
            words = F.linear(x, rows.to(x.dtype), None if bias is None else bias[index])
            return y.index_copy(-1, index, words.to(y.dtype))
        place = torch.full((self.base_layer.num_embeddings,), -1, device=x.device)
        place[index] = torch.arange(len(index), device=x.device)
        found = place[x]
        indices, padding = self.indices[adapter], self.base_layer.padding_idx
        still = indices.index(padding) if padding in indices else None  # its row has no gradient
        own = F.embedding(found.clamp_min(0), rows, padding_idx=still)
        scale = {**vars(self.base_layer), **dict(self.base_layer.named_buffers())}.get("embed_scale")
        if scale is not None:
            own = own * torch.as_tensor(scale, dtype=own.dtype)
        return torch.where((found >= 0)[..., None], own.to(y.dtype), y)

    @property
    def weight(self) -> Tensor:
        """What a network finds that reads the weight by itself: with the active adapter's rows."""
        weight: Tensor = self.base_layer.weight
        adapter = self._running
        if adapter is None:
            return weight
        return weight.index_copy(0, self._index(adapter), self.rows[adapter].to(weight.dtype))

    def add_adapter(self, adapter: str, *, indices: Sequence[int]) -> None:
        """Rows for one more adapter, which start as the frozen ones.

        Raises:
            InputError: an index twice, or beyond the vocabulary.
        """
        weight = self.base_layer.weight.detach()
        if len(set(indices)) < len(indices):
            raise InputError("trainable_token_indices names a token twice")
        if not indices or max(indices) >= len(weight) or min(indices) < 0:
            raise InputError(
                f"trainable_token_indices should be from 0 to {len(weight) - 1}, the rows of the embedding, got "
                f"{min(indices, default=None)} to {max(indices, default=None)}; resize_token_embeddings first"
            )
        rows = weight[torch.tensor(list(indices), device=weight.device)]
        half = rows.dtype in (torch.float16, torch.bfloat16)
        self._rows[adapter] = nn.Parameter(rows.float() if half else rows.clone())
        self._indices[adapter] = tuple(indices)

    def set_adapter(self, adapters: Sequence[str], inference_mode: bool = False) -> None:
        """Lets the rows of the first of the adapters that has some act and train."""
        self.active = next((name for name in adapters if name in self.indices), None)
        for name, rows in self._rows.items():
            rows.requires_grad_(name == self.active and not inference_mode)

    def delete_adapter(self, adapter: str) -> None:
        """Forgets the adapter's rows."""
        if adapter in self._rows:
            del self._rows[adapter], self._indices[adapter]
        if self.active == adapter:
            self.active = None

    def adapter_tensors(self, adapter: str) -> Iterator[tuple[str, Tensor]]:
        """The adapter's rows under the name that they have on disk; none where those of `source` act."""
        if adapter in self._rows:
            yield ROWS, self._rows[adapter]

    def unwrapped(self, *, kept: bool) -> nn.Module:
        """The frozen layer; with `kept`, with the active adapter's rows written into its weight."""
        if kept and self.source is None and self.active is not None:
            if isinstance(self.base_layer, nn.Linear):  # what its weight was tied to stays
                frozen = self.base_layer.weight
                self.base_layer.weight = nn.Parameter(frozen.detach().clone(), requires_grad=frozen.requires_grad)
            with torch.no_grad():
                self.base_layer.weight[self._index(self.active)] = self._rows[self.active].to(self.base_layer.weight)
        return self.base_layer.train(self.training)

    @property
    def _running(self) -> str | None:
        adapter = self.active if self.source is None else self.source.active
        return None if self.disable_adapters else adapter

    def _index(self, adapter: str) -> Tensor:
        return torch.tensor(self.indices[adapter], device=self.base_layer.weight.device)
