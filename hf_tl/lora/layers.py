"""A frozen layer with low-rank adapters beside it: what all kinds share, and the fully connected kind.

Live names are PEFT's: the adapter "default" of a layer at `X` holds the parameters `X.lora_A.default.weight` (r, k),
`X.lora_B.default.weight` (d, r), with DoRA `X.lora_magnitude_vector.default.weight`, and the layer that was there
before is `X.base_layer`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from hf_tl.errors import InputError
from hf_tl.lora.config import LoraConfig
from hf_tl.lora.dora import add_dora, row_lengths
from hf_tl.lora.functions import add_low_rank
from hf_tl.lora.initialise import initialise


FACTORS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector")


class Factor(nn.Module):
    """A holder that gives a tensor PEFT's name: `lora_A.default.weight`."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        super().__init__()
        self.weight = nn.Parameter(weight)
        if bias is not None:
            self.bias = nn.Parameter(bias)
        else:
            self.register_parameter("bias", None)


class LoraLayer(nn.Module):
    """What every kind of adapted layer is.

    The settings of an adapter are looked up by its name: `r`, `lora_alpha`, `scaling`, `lora_dropout`, `use_dora`.
    What the wrapped layer has and this one has not (`weight`, `in_features`, `stride`) is read through.

    Attributes:
        base_layer: the frozen layer.
        active_adapters: the adapters that add to its output, in order.
        merged_adapters: those that are in its weight at present.
        disable_adapters: whether it behaves as if it had none.
    """

    adapter_layer_names = FACTORS
    other_param_names = ("r", "lora_alpha", "scaling", "lora_dropout", "use_dora")

    def __init__(self, base_layer: nn.Module):
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.ModuleDict()
        self.lora_B = nn.ModuleDict()
        self.lora_magnitude_vector = nn.ModuleDict()
        self.r: dict[str, int] = {}
        self.lora_alpha: dict[str, float] = {}
        self.scaling: dict[str, float] = {}
        self.lora_dropout: dict[str, float] = {}
        self.use_dora: dict[str, bool] = {}
        self.freeze_a: dict[str, bool] = {}
        self.active_adapters: list[str] = []
        self.merged_adapters: list[str] = []
        self.disable_adapters = False
        self.originals: list[tuple[nn.Parameter, Tensor]] = []  # what merging overwrote
        self.train(base_layer.training)

    def __getattr__(self, name: str) -> object:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)

    def add_adapter(self, adapter: str, *, config: LoraConfig, rank: int, alpha: float, empty: bool = False) -> None:
        """Adds an adapter, initialised as the config says.

        Args:
            adapter: its name.
            config: inits, dropout and the like.
            rank: of this layer.
            alpha: lora_alpha of this layer.
            empty: leave the values to a checkpoint that is about to be read.
        """
        raise NotImplementedError

    def delta(self, adapter: str) -> Tensor:
        """What the adapter adds to the frozen weight when merged, in float32 and the weight's own layout."""
        raise NotImplementedError

    def merged_weight(self, adapter: str) -> Tensor:
        """The frozen weight with the adapter in it, in float32; DoRA sets the length of its rows."""
        raise NotImplementedError

    def adapter_tensors(self, adapter: str) -> Iterator[tuple[str, nn.Parameter]]:
        """The adapter's parameters under the names they have on disk, such as "lora_A.weight"."""
        for name in ("lora_A", "lora_B"):
            factors = self._modules[name]
            if adapter in factors:
                for part, parameter in factors[adapter].named_parameters():
                    yield f"{name}.{part}", parameter
        if adapter in self.lora_magnitude_vector:
            yield "lora_magnitude_vector", self.lora_magnitude_vector[adapter].weight

    @property
    def adapters(self) -> list[str]:
        """Names of this layer's adapters."""
        return list(self.r)

    @property
    def active_adapter(self) -> list[str]:
        """PEFT's other name of `active_adapters`."""
        return self.active_adapters

    @property
    def merged(self) -> bool:
        """Whether any adapter is in the frozen weight."""
        return bool(self.merged_adapters)

    def get_base_layer(self) -> nn.Module:
        """The frozen layer."""
        return self.base_layer

    def set_adapter(self, adapters: Sequence[str], inference_mode: bool = False) -> None:
        """Makes the given adapters, and no others, add to the output and train."""
        self.active_adapters = [name for name in adapters if name in self.r]
        for adapter in self.r:
            trains = adapter in self.active_adapters and not inference_mode
            for name, parameter in self.adapter_tensors(adapter):
                frozen = self.freeze_a[adapter] and name in ("lora_A.weight", "lora_embedding_A")
                parameter.requires_grad_(trains and not frozen)

    def delete_adapter(self, adapter: str) -> None:
        """Forgets an adapter."""
        for factors in (self.lora_A, self.lora_B, self.lora_magnitude_vector):
            if adapter in factors:
                del factors[adapter]
        for settings in (self.r, self.lora_alpha, self.scaling, self.lora_dropout, self.use_dora, self.freeze_a):
            settings.pop(adapter, None)
        self.active_adapters = [name for name in self.active_adapters if name != adapter]

    def _settle(self, adapter: str, *, config: LoraConfig, rank: int, alpha: float) -> None:
        if adapter in self.r:
            raise InputError(f"there is an adapter {adapter!r} already; choose another name or remove it first")
        self.r[adapter], self.lora_alpha[adapter] = rank, alpha
        self.scaling[adapter] = config.scaling(rank, alpha)
        self.lora_dropout[adapter] = config.lora_dropout
        self.use_dora[adapter] = config.use_dora
        self.freeze_a[adapter] = config.freeze_a

    def _running(self) -> list[str]:
        """The adapters that this call has to add itself."""
        return [] if self.disable_adapters or self.merged_adapters else self.active_adapters


class LoraLinear(LoraLayer):
    """Adapters beside nn.Linear, transformers' Conv1D, or any layer that computes x W' + b.

    Args:
        base_layer: the frozen layer; its weight is (d, k), that of Conv1D (k, d).
        parts: which thirds of the outputs are adapted, as letters of "qkv"; None for all.
    """

    def __init__(self, base_layer: nn.Module):
        super().__init__(base_layer)
        self.transposed = is_conv1d(base_layer)
        weight = base_layer.weight
        self.out_features, self.in_features = weight.shape[::-1] if self.transposed else weight.shape
        self.parts: dict[str, str] = {}

    def add_adapter(self, adapter: str, *, config: LoraConfig, rank: int, alpha: float, empty: bool = False) -> None:
        """Adds an adapter; see LoraLayer."""
        self._settle(adapter, config=config, rank=rank, alpha=alpha)
        weight = self.base_layer.weight
        dtype, device = factor_dtype(weight), weight.device
        a = torch.empty(rank, self.in_features, dtype=dtype, device=device)
        b = torch.empty(self.out_features, rank, dtype=dtype, device=device)
        bias = torch.zeros(self.out_features, dtype=dtype, device=device) if config.lora_bias else None
        self.lora_A[adapter] = Factor(a)
        self.lora_B[adapter] = Factor(b, bias)
        if not empty and a.device.type != "meta":
            initialise(a, b, init=config.init_lora_weights, weight=self.weight_dk, scaling=self.scaling[adapter])
        if config.use_dora:
            lengths = torch.empty(self.out_features, dtype=dtype, device=device)
            if not empty and a.device.type != "meta":
                lengths = row_lengths(self.weight_dk, a, b, scale=self.scaling[adapter]).to(dtype)
            self.lora_magnitude_vector[adapter] = Factor(lengths)

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """`W x + b` and what the active adapters add."""
        y = self.base_layer(x, *args, **kwargs)
        for adapter in self._running():
            y = self._add(y, x, adapter)
        return y

    def _add(self, y: Tensor, x: Tensor, adapter: str) -> Tensor:
        a, b = self.lora_A[adapter].weight, self.lora_B[adapter]
        dropout = self.lora_dropout[adapter] if self.training else 0.0
        scale = self.scaling[adapter]
        if self.use_dora[adapter]:
            magnitude = self.lora_magnitude_vector[adapter].weight
            return add_dora(y, x, self, a=a, b=b.weight, magnitude=magnitude, scale=scale, dropout=dropout)
        y = add_low_rank(y, x, a=a, b=b.weight, scale=scale, dropout=dropout, owned=self._owns_output())
        return y if b.bias is None else (y + b.bias * scale).to(y.dtype)

    def delta(self, adapter: str) -> Tensor:
        """`scaling * B A`, in float32 and the weight's own layout."""
        a, b = self.lora_A[adapter].weight.float(), self.lora_B[adapter].weight.float()
        delta = (b @ a).mul_(self.scaling[adapter])
        return delta.t() if self.transposed else delta

    @property
    def weight_dk(self) -> Tensor:
        """The frozen weight as (d, k), whatever its own layout."""
        weight = self.base_layer.weight
        return weight.t() if self.transposed else weight

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


def factor_dtype(weight: Tensor) -> torch.dtype:
    """The dtype of A and B: float32 for half precision and quantised weights, else that of the weight."""
    return torch.float64 if weight.dtype == torch.float64 else torch.float32
