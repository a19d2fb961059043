"""A frozen layer with low-rank adapters beside it: what all kinds share.

Live names are PEFT's: the adapter "default" of a layer at `X` holds the parameters `X.lora_A.default.weight` (r, k),
`X.lora_B.default.weight` (d, r), with DoRA `X.lora_magnitude_vector.default.weight`, and the layer that was there
before is `X.base_layer`.

Every kind can be read as one matrix W (d, k) with factors A (r, k) and B (d, r): `matrix()` and
`factor_matrices(adapter)`. Merging, DoRA's lengths, combining and looking at adapters are written on those alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from hf_tl.errors import InputError
from hf_tl.lora.config import LoraConfig
from hf_tl.lora.dora import row_lengths
from hf_tl.lora.initialise import initialise


_RARE = ("lora_magnitude_vector", "lora_fixed")  # modules only once an adapter needs them
FACTORS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector")


class Factor(nn.Module):
    """A holder that gives a tensor PEFT's name: `lora_A.default.weight`."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        super().__init__()
        self._parameters["weight"] = nn.Parameter(weight)  # nn.Module is slow in taking attributes
        self._parameters["bias"] = None if bias is None else nn.Parameter(bias)


class Fixed(nn.Module):
    """Tensors of an adapter that never train.

    Attributes:
        mask: (d, r), what of B may differ from zero, for a part of a fused projection; or None.
        start_a: (r, k), and
        start_b: (d, r): factors that are subtracted, for an init that takes its part out of W; or None.
    """

    def __init__(self, *, mask: Tensor | None = None, start_a: Tensor | None = None, start_b: Tensor | None = None):
        super().__init__()
        self.register_buffer("mask", mask)
        self.register_buffer("start_a", start_a)
        self.register_buffer("start_b", start_b)


class LoraLayer(nn.Module):
    """What every kind of adapted layer is.

    The settings of an adapter are looked up by its name: `r`, `lora_alpha`, `scaling`, `lora_dropout`, `use_dora`.
    What the wrapped layer has and this one has not (`weight`, `in_features`, `stride`) is read through.

    Attributes:
        base_layer: the frozen layer.
        active_adapters: the adapters that add to its output, in order.
        merged_adapters: those that are in its weight at present.
        disable_adapters: whether it behaves as if it had none.
        weight_name: the frozen layer's parameter that is adapted.
        transposed: whether that parameter is laid out as (k, d).
        originals: what a merge overwrote: module, name, parameter, values.
    """

    r: dict[str, int]
    lora_alpha: dict[str, float]
    scaling: dict[str, float]
    lora_dropout: dict[str, float]
    use_dora: dict[str, bool]
    freeze_a: dict[str, bool]
    active_adapters: list[str]
    merged_adapters: list[str]
    originals: list[tuple[nn.Module, str, nn.Parameter, Tensor]]
    disable_adapters: bool

    adapter_layer_names = FACTORS
    other_param_names = ("r", "lora_alpha", "scaling", "lora_dropout", "use_dora")
    weight_name = "weight"
    transposed = False

    def __init__(self, base_layer: nn.Module):
        super().__init__()
        self._modules |= {"base_layer": base_layer, "lora_A": nn.ModuleDict(), "lora_B": nn.ModuleDict()}
        plain = {name: {} for name in (*self.other_param_names, "freeze_a", *_RARE)}
        plain |= {"active_adapters": [], "merged_adapters": [], "originals": [], "disable_adapters": False}
        self.__dict__.update(plain, training=base_layer.training)

    def __getattr__(self, name: str) -> object:
        modules = self.__dict__.get("_modules", {})  # it holds no parameter or buffer of its own
        if name in modules:
            return modules[name]
        if name.startswith("__") or "base_layer" not in modules:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(modules["base_layer"], name)

    def add_adapter(
        self,
        adapter: str,
        *,
        config: LoraConfig,
        rank: int,
        alpha: float,
        parts: str | None = None,
        empty: bool = False,
    ) -> None:
        """Adds an adapter, initialised as the config says.

        Args:
            adapter: its name.
            config: inits, dropout and the like.
            rank: of this layer.
            alpha: lora_alpha of this layer.
            parts: which thirds of a fused projection are adapted, as letters of "qkv"; None for all outputs.
            empty: leave the values to a checkpoint that is about to be read.
        """
        if adapter in self.r:
            raise InputError(f"there is an adapter {adapter!r} already; choose another name or remove it first")
        self._refuse(config)
        parameter = self._parameter()
        dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32
        empty = empty or parameter.is_meta
        shapes = self._shapes(rank)
        a = torch.empty(shapes[0], dtype=dtype, device=parameter.device)
        b = torch.zeros(shapes[1], dtype=dtype, device=parameter.device)
        bias = torch.zeros(shapes[1][0], dtype=dtype, device=parameter.device) if config.lora_bias else None
        scaling = config.scaling(rank, alpha)
        start = None
        if not empty:
            start = initialise(a, b, init=self._init(config), weight=self.matrix, scaling=scaling)
        mask = _part_mask(b, parts) if parts else None
        if mask is not None and not empty:
            b *= mask
        self._hold(adapter, a, b, bias)
        if mask is not None or start is not None:
            start_a, start_b = start or (None, None)
            self._hold_rare("lora_fixed", adapter, Fixed(mask=mask, start_a=start_a, start_b=start_b))
        self.r[adapter], self.lora_alpha[adapter], self.scaling[adapter] = rank, alpha, scaling
        self.lora_dropout[adapter] = config.lora_dropout
        self.use_dora[adapter] = config.use_dora
        self.freeze_a[adapter] = config.freeze_a
        if config.use_dora:
            lengths = torch.empty(shapes[1][0], dtype=dtype, device=parameter.device)
            if not empty:
                lengths = self.lengths(adapter).to(dtype)
            self._hold_rare("lora_magnitude_vector", adapter, Factor(lengths.view(self._magnitude_shape())))

    def matrix(self) -> Tensor:
        """The frozen weight as (d, k), a view."""
        weight = self._parameter().detach()
        return weight.t() if self.transposed else weight.flatten(1)

    def factor_matrices(self, adapter: str) -> tuple[Tensor, Tensor]:
        """A (r, k) and B (d, r), such that merging adds `scaling[adapter] * B @ A` to `matrix()` (but for DoRA)."""
        a, b = self.factors(adapter)
        return a.flatten(1), b.flatten(1)

    def factors(self, adapter: str) -> tuple[Tensor, Tensor]:
        """A and B as they act: without what a mask hides, with what an init took out of W subtracted."""
        a, b = self._held(adapter)
        if adapter not in self.lora_fixed:
            return a, b
        fixed = self.lora_fixed[adapter]
        if fixed.mask is not None:
            b = b * fixed.mask
        if fixed.start_a is not None:
            a, b = torch.cat([a, fixed.start_a]), torch.cat([b, -fixed.start_b], dim=1)
        return a, b

    def lengths(self, adapter: str) -> Tensor:
        """`||W + scaling * B A||` of every row, (d,): what DoRA divides by."""
        a, b = self.factor_matrices(adapter)
        return row_lengths(self.matrix(), a, b, scale=self.scaling[adapter])

    def stretch(self, adapter: str) -> Tensor:
        """Learnt length over present length of every row, in the shape of the magnitudes.

        A row of zeros has no direction, and trained convolutions have such rows. It stays 0 while B A leaves it, where
        0 / 0 would turn all that follows into NaN.
        """
        lengths, magnitude = self.lengths(adapter), self.lora_magnitude_vector[adapter].weight
        return magnitude / lengths.masked_fill_(lengths == 0, 1.0).view(magnitude.shape)

    def merged_parameters(self, adapters: Sequence[str]) -> dict[str, Tensor]:
        """The frozen layer's parameters with adapters in them, by name, before they are rounded to its dtype.

        Raises:
            InputError: this kind of layer cannot hold the sum.
        """
        weight = self._parameter().detach()
        if not weight.is_floating_point():
            raise InputError(f"a weight of {weight.dtype} cannot take an adapter in; load the network unquantised")
        wide = torch.promote_types(weight.dtype, torch.float32)
        matrix = weight.to(wide)
        matrix = matrix if self.transposed else matrix.flatten(1)
        bias = None
        for adapter in adapters:
            a, b = (factor.detach().to(wide) for factor in self.factor_matrices(adapter))
            left, right = (a.t(), b.t()) if self.transposed else (b, a)
            matrix = torch.addmm(matrix, left, right, alpha=self.scaling[adapter])
            if self.use_dora[adapter]:
                ratio = self.stretch(adapter).detach().view(-1)
                matrix = matrix * (ratio if self.transposed else ratio[:, None])
            extra = self._extra_bias(adapter)
            if extra is not None:
                own = self.base_layer.bias
                if own is None:
                    raise InputError(
                        "lora_bias cannot be merged into a layer without a bias; train with lora_bias=False"
                    )
                bias = (own.detach().to(wide) if bias is None else bias) + extra.detach() * self.scaling[adapter]
        merged = {self.weight_name: matrix.view(weight.shape)}
        return merged if bias is None else {**merged, "bias": bias}

    def adapter_tensors(self, adapter: str, *, export: bool = False) -> Iterator[tuple[str, Tensor]]:
        """The adapter's tensors under the names they have on disk, such as "lora_A.weight".

        Args:
            adapter: which.
            export: with the factors as they act (see `factors`), so that other loaders need to know no more; else
                the live parameters.
        """
        for name in FACTORS:
            held = self._modules.get(name)
            if held is None or adapter not in held:
                continue
            if isinstance(held[adapter], Tensor):
                yield name, held[adapter]
            elif name == "lora_magnitude_vector":
                yield name, held[adapter].weight
            else:
                live = held[adapter].weight
                if export and adapter in self.lora_fixed:
                    live = self.factors(adapter)[name == "lora_B"]
                yield f"{name}.weight", live
                if held[adapter].bias is not None:
                    yield f"{name}.bias", held[adapter].bias

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
        active = [name for name in adapters if name in self.r]
        self.__dict__["active_adapters"] = active  # nn.Module is slow in taking attributes
        for name in FACTORS:
            held = self._modules.get(name)
            for adapter, part in () if held is None else held.items():
                frozen = self.freeze_a[adapter] and name in ("lora_A", "lora_embedding_A")
                trains = adapter in active and not inference_mode and not frozen
                for parameter in (part,) if isinstance(part, Tensor) else part._parameters.values():
                    if parameter is not None and parameter.requires_grad != trains:
                        parameter.requires_grad_(trains)

    def delete_adapter(self, adapter: str) -> None:
        """Forgets an adapter."""
        for name in (*FACTORS, "lora_fixed"):
            held = self._modules.get(name)
            if held is not None and adapter in held:
                del held[adapter]
        for settings in (self.r, self.lora_alpha, self.scaling, self.lora_dropout, self.use_dora, self.freeze_a):
            settings.pop(adapter, None)
        self.active_adapters = [name for name in self.active_adapters if name != adapter]

    def _running(self) -> list[str]:
        """The adapters that this call has to add itself."""
        return [] if self.disable_adapters or self.merged_adapters else self.active_adapters

    def _parameter(self) -> Tensor:
        return self.base_layer._parameters[self.weight_name]

    def _shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        raise NotImplementedError

    def _magnitude_shape(self) -> tuple[int, ...]:
        return (-1,)

    def _refuse(self, config: LoraConfig) -> None:
        """Raises InputError for what this kind of layer cannot do."""

    def _init(self, config: LoraConfig) -> str:
        return config.init

    def _hold(self, adapter: str, a: Tensor, b: Tensor, bias: Tensor | None) -> None:
        self.lora_A._modules[adapter] = Factor(a)
        self.lora_B._modules[adapter] = Factor(b, bias)

    def _hold_rare(self, name: str, adapter: str, part: nn.Module) -> None:
        if name not in self._modules:
            setattr(self, name, nn.ModuleDict())  # in the place of an empty dict
        self._modules[name][adapter] = part

    def _held(self, adapter: str) -> tuple[Tensor, Tensor]:
        return self.lora_A[adapter].weight, self.lora_B[adapter].weight

    def _extra_bias(self, adapter: str) -> Tensor | None:
        return self.lora_B[adapter].bias if adapter in self.lora_B else None


def _part_mask(b: Tensor, parts: str) -> Tensor:
    """(d, r): the rows of the n-th of `parts` go with the n-th block of columns."""
    third, rank = b.shape[0] // 3, b.shape[1] // len(parts)
    mask = torch.zeros_like(b)
    for i, part in enumerate(parts):
        row = third * "qkv".index(part)
        mask[row : row + third, i * rank : (i + 1) * rank] = 1
    return mask
