"""What stands in the place of a module: a frozen layer with adapters beside it, or a module that trains in full.

Live names are PEFT's: the adapter "default" of a layer at `X` holds the parameters `X.lora_A.default.weight` (r, k),
`X.lora_B.default.weight` (d, r), with DoRA `X.lora_magnitude_vector.default.weight`, and the layer that was there
before is `X.base_layer`.

Every kind can be read as one matrix W (d, k) with factors A (r, k) and B (d, r): `matrix()` and
`factor_matrices(adapter)`. Merging, DoRA's norms, combining and looking at adapters are written on those alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from hf_tl.architectures import offloaded_to_run_on
from hf_tl.errors import InputError
from hf_tl.lora.config import LoraConfig
from hf_tl.lora.quantised import is_quantised, plain_weight, put_parameter


class Factor(nn.Module):
    """A holder that gives a tensor PEFT's name: `lora_A.default.weight`."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)


class Fixed(nn.Module):
    """Tensors of an adapter that never train.

    Attributes:
        mask: (d, r), what of B may differ from zero, for a part of a fused projection; or None.
        start_a: (r, k), and
        start_b: (d, r): factors that are subtracted, for an init that takes its part out of W; or None.
    """

    mask: Tensor | None
    start_a: Tensor | None
    start_b: Tensor | None

    def __init__(self, *, mask: Tensor | None = None, start_a: Tensor | None = None, start_b: Tensor | None = None):
        super().__init__()
        self.register_buffer("mask", mask)
        self.register_buffer("start_a", start_a)
        self.register_buffer("start_b", start_b)


class _Probed(torch.autograd.Function):
    """A weight as it is, with a probe in the graph of what is computed from it."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, probe: Tensor) -> Tensor:
        return weight.view_as(weight)


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
        calls_layer: whether it calls the frozen layer and adds to what that returns.
        called: in which modes (training or not) the network has called the layer; it may read `weight` instead, as
            Gemma3n does in training.
        asked: what was read through from the frozen layer.
        probe: a scalar that the output depends on where it depends on `weight` as the network reads it; None but in a
            run that looks for it.
        originals: the frozen layer's parameters that a merge replaced, by name.
    """

    base_layer: Any  # of the kind that the subclass wraps
    lora_A: Any  # nn.ModuleDict of Factor, as are the next two
    lora_B: Any
    lora_magnitude_vector: Any
    lora_fixed: Any  # nn.ModuleDict of Fixed

    weight_name = "weight"
    transposed = False
    calls_layer = True

    def __init__(self, base_layer: nn.Module):
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.ModuleDict()
        self.lora_B = nn.ModuleDict()
        self.lora_magnitude_vector = nn.ModuleDict()
        self.lora_fixed = nn.ModuleDict()
        self.r: dict[str, int] = {}
        self.lora_alpha: dict[str, float] = {}
        self.scaling: dict[str, float] = {}
        self.lora_dropout: dict[str, float] = {}
        self.use_dora: dict[str, bool] = {}
        self.freeze_a: dict[str, bool] = {}
        self.active_adapters: list[str] = []
        self.merged_adapters: list[str] = []
        self.originals: dict[str, nn.Parameter] = {}
        self.disable_adapters = False
        self.called: set[bool] = set()
        self.asked: set[str] = set()
        self.probe: Tensor | None = None
        self.training = base_layer.training
        self.register_state_dict_post_hook(_give_originals)
        self.register_load_state_dict_pre_hook(_refuse_if_merged)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__") or "base_layer" not in self.__dict__.get("_modules", {}):
                raise
            if not torch.compiler.is_compiling():
                self.asked.add(name)
            return getattr(self.base_layer, name)

    def add_adapter(self, adapter: str, *, config: LoraConfig, rank: int, alpha: float) -> None:
        """Makes room for an adapter: A is left to `initialise` or to a file, B is zero.

        Args:
            adapter: its name.
            config: dropout and the like.
            rank: of this layer.
            alpha: lora_alpha of this layer.
        """
        self.refuse(config)
        device = offloaded_to_run_on(self.holder)
        if device is not None and not self.calls_layer:
            raise InputError(
                f"a {type(self.holder).__name__} is to be adapted whose weights are offloaded, and the adapter acts "
                "through them; keep it on a device (device_map), or leave it out"
            )
        if config.use_dora or config.subtracts_start:
            self.check_weight()
        weight = self.frozen_weight
        if weight.is_complex():
            raise InputError(f"a {type(self.holder).__name__} of {weight.dtype} is to be adapted; adapters are real")
        dtype, device = torch.float64 if weight.dtype == torch.float64 else torch.float32, device or weight.device
        shape_a, shape_b = self.shapes(rank)
        a = torch.empty(shape_a, dtype=dtype, device=device)
        b = torch.zeros(shape_b, dtype=dtype, device=device)
        self.hold(adapter, a, b, b.new_zeros(shape_b[0]) if config.lora_bias else None)
        self.r[adapter], self.lora_alpha[adapter] = rank, alpha
        self.scaling[adapter] = config.scaling(rank, alpha)
        self.lora_dropout[adapter] = config.lora_dropout
        self.use_dora[adapter] = config.use_dora
        self.freeze_a[adapter] = config.freeze_a
        if config.use_dora:
            self.lora_magnitude_vector[adapter] = Factor(b.new_empty(shape_b[0]).view(self.magnitude_shape()))

    @property
    def frozen_weight(self) -> nn.Parameter:
        """The frozen layer's parameter that is adapted."""
        return getattr(self.holder, self.weight_name)

    @property
    def holder(self) -> nn.Module:
        """The module whose parameter is adapted: the frozen layer."""
        return self.base_layer

    @property
    def path(self) -> str:
        """From the frozen layer to the `holder`, ending in a dot; "" where they are one."""
        return ""

    @property
    def weight(self) -> Tensor:
        """What a network finds that reads the weight by itself: of a layer that it has not called in this mode, with
        adapters."""
        whole = self.training in self.called or is_quantised(self.base_layer)  # of codes only the dtype is read
        weight = self.frozen_weight if whole else self.adapted_weight(self.running)
        return weight if self.probe is None or is_quantised(self.base_layer) else _Probed.apply(weight, self.probe)

    def adapted_weight(self, adapters: Sequence[str]) -> Tensor:
        """The frozen weight with the updates of adapters in it, for a gradient to pass, in its own layout."""
        weight: Tensor = self.frozen_weight
        for adapter in adapters:
            a, b = self.factor_matrices(adapter)
            update = (b @ a) * self.scaling[adapter]
            weight = weight + (update.t() if self.transposed else update).reshape(weight.shape).to(weight.dtype)
            if self.use_dora[adapter]:
                ratio = self.dora_ratio(adapter).flatten()
                ratio = ratio if self.transposed else ratio.view(-1, *(1,) * (weight.dim() - 1))
                weight = (weight * ratio).to(weight.dtype)
        return weight

    def matrix(self) -> Tensor:
        """The frozen weight as (d, k): a view, or dequantised (`plain_weight`, which says what it refuses)."""
        weight = plain_weight(self.base_layer, self.weight_name)
        return weight.t() if self.transposed else weight.flatten(1)

    def adapted_matrix(self, adapters: Sequence[str]) -> Tensor:
        """The frozen weight (d, k) with adapters in it, in float32 or float64: what a merge writes, unrounded."""
        matrix = self.matrix()
        matrix = matrix.to(torch.promote_types(matrix.dtype, torch.float32), copy=True)
        for adapter in adapters:
            self.add_to(matrix, None, adapter)
        return matrix

    def check_weight(self) -> None:
        """Checks that `matrix()` is what the frozen layer computes with.

        Raises:
            InputError: as `matrix()` does, or a subclass of the layer with another forward pass.
        """
        self.matrix()

    def factor_matrices(self, adapter: str) -> tuple[Tensor, Tensor]:
        """A (r, k) and B (d, r), such that merging adds `scaling[adapter] * B @ A` to `matrix()` (but for DoRA)."""
        a, b = self.factors(adapter)
        return a.flatten(1), b.flatten(1)

    def factors(self, adapter: str) -> tuple[Tensor, Tensor]:
        """A and B as they act: without what a mask hides, with what an init took out of W subtracted."""
        a: Tensor
        b: Tensor
        a, b = self.held_factors(adapter)
        if adapter in self.lora_fixed:
            fixed: Fixed = self.lora_fixed[adapter]
            if fixed.mask is not None:
                b = b * fixed.mask
            if fixed.start_a is not None and fixed.start_b is not None:
                a, b = torch.cat([a, fixed.start_a]), torch.cat([b, -fixed.start_b], dim=1)
        return a, b

    def held_factors(self, adapter: str) -> tuple[nn.Parameter, nn.Parameter]:
        """A and B as they are trained."""
        return self.lora_A[adapter].weight, self.lora_B[adapter].weight

    def row_norms(self, adapter: str) -> Tensor:
        """`||W + scaling * B A||` of every row, (d,), in float32 or float64: what DoRA divides by.

        Found without building B A, which is as large as W:
        ||W + s B A||^2 = ||W||^2 + 2 s sum((W A') * B) + s^2 sum((B (A A')) * B), summed over each row.
        """
        with torch.no_grad():
            own, factors, scale = self.matrix(), self.factor_matrices(adapter), self.scaling[adapter]
            dtype = torch.promote_types(own.dtype, factors[0].dtype)
            weight, a, b = (tensor.to(dtype) for tensor in (own, *factors))
            square = torch.linalg.vector_norm(weight, dim=1).square_()
            square += 2 * scale * ((weight @ a.t()) * b).sum(1)
            square += scale * scale * ((b @ (a @ a.t())) * b).sum(1)
            return square.clamp_(min=0).sqrt_()

    def dora_ratio(self, adapter: str) -> Tensor:
        """Learnt norm over present norm of every row, in the shape of the magnitudes (DoRA, section 4.3).

        The norm that divides is taken as a constant. A row of zeros has no direction, and trained convolutions have
        such rows. It stays 0 while B A leaves it, where 0 / 0 would turn all that follows into NaN.
        """
        norms, magnitude = self.row_norms(adapter), self.lora_magnitude_vector[adapter].weight
        return magnitude / norms.masked_fill_(norms == 0, 1.0).view(magnitude.shape)

    def check_mergeable(self, adapter: str) -> None:
        """Checks that the frozen weight can take an adapter.

        Raises:
            InputError: as `check_weight` does, or a bias of B and no bias to take it.
        """
        self.check_weight()
        if self.extra_bias(adapter) is not None and self.base_layer.bias is None:
            raise InputError("lora_bias cannot be merged into a layer without a bias; train without it")

    def add_to(self, matrix: Tensor, bias: Tensor | None, adapter: str) -> None:
        """Adds an adapter to a weight (d, k) and a bias (d,), float32 or float64, in place."""
        with torch.no_grad():
            a, b = (factor.to(matrix.dtype) for factor in self.factor_matrices(adapter))
            ratio = self.dora_ratio(adapter).flatten() if self.use_dora[adapter] else None
            matrix.addmm_(b, a, alpha=self.scaling[adapter])
            extra = self.extra_bias(adapter)
            if ratio is not None:
                matrix *= ratio[:, None]
            if extra is not None and bias is not None:
                bias += extra * self.scaling[adapter] * (1.0 if ratio is None else ratio)

    def adapter_tensors(self, adapter: str, *, export: bool = False) -> Iterator[tuple[str, Tensor]]:
        """The adapter's tensors under the names they have on disk, such as "lora_A.weight".

        Args:
            adapter: which.
            export: with the factors as they act (see `factors`), so that other loaders need to know no more; else
                the live parameters.
        """
        factors = self.factors(adapter) if export else self.held_factors(adapter)
        for name, held, factor in zip(("lora_A", "lora_B"), (self.lora_A, self.lora_B), factors, strict=True):
            yield f"{name}.weight", factor
            if held[adapter].bias is not None:
                yield f"{name}.bias", held[adapter].bias
        if adapter in self.lora_magnitude_vector:
            yield "lora_magnitude_vector", self.lora_magnitude_vector[adapter].weight

    def extra_bias(self, adapter: str) -> Tensor | None:
        """The bias of B, (d,), or None."""
        return self.lora_B[adapter].bias

    def exchange(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """Puts parameters in the places of the frozen layer's, by name; returns those that were there."""
        return {name: put_parameter(self.holder, name, parameter) for name, parameter in parameters.items()}

    def own_bias(self) -> Tensor | None:
        """The bias of the frozen layer, (d,), a view; None where it has none."""
        bias = dict(self.base_layer.named_parameters(recurse=False)).get("bias")
        return None if bias is None else bias.detach()

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
        for held in self.children():  # what holds adapters by name, and the base layer
            if held is not self.base_layer and isinstance(held, (nn.ModuleDict, nn.ParameterDict)) and adapter in held:
                del held[adapter]
        for settings in (self.r, self.lora_alpha, self.scaling, self.lora_dropout, self.use_dora, self.freeze_a):
            settings.pop(adapter, None)
        self.active_adapters = [name for name in self.active_adapters if name != adapter]

    def unwrapped(self) -> nn.Module:
        """The frozen layer, without adapters inside it."""
        return self.base_layer.train(self.training)

    @property
    def running(self) -> list[str]:
        """The adapters that the next call has to add by itself."""
        if self.merged_adapters and self.training and torch.is_grad_enabled():
            warnings.warn("adapters are merged into the weights and do not train; call unmerge_adapter", stacklevel=4)
        return [] if self.disable_adapters or self.merged_adapters else self.active_adapters

    def shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of A and of B."""
        raise NotImplementedError

    def magnitude_shape(self) -> tuple[int, ...]:
        """The shape of DoRA's norms in a file."""
        return (-1,)

    def refuse(self, config: LoraConfig) -> None:
        """Raises InputError for what this kind of layer cannot do."""

    def init(self, config: LoraConfig) -> str:
        """The init that the config means for this kind of layer."""
        return config.init

    def hold(self, adapter: str, a: Tensor, b: Tensor, bias: Tensor | None) -> None:
        """Keeps the factors under the names that PEFT gives them."""
        self.lora_A[adapter] = Factor(a)
        self.lora_B[adapter] = Factor(b, bias)


class SavedModule(nn.Module):
    """A module that trains in full and is saved with the adapter: what was there, and a copy for every adapter.

    Live names are PEFT's: `original_module` and `modules_to_save.<adapter>`. What trains is kept in float32 beside a
    network in half precision, in which small steps would round to nothing.

    Attributes:
        original_module: the module as it was, frozen.
        modules_to_save: a copy by adapter.
        active: the adapter whose copy runs; None for the original.
        trains: by adapter, whether the copy's parameters train.
        disable_adapters: whether the original runs in any case.
    """

    original_module: nn.Module
    modules_to_save: nn.ModuleDict

    def __init__(self, module: nn.Module):
        super().__init__()
        self.original_module = module
        self.modules_to_save = nn.ModuleDict()
        self.active: str | None = None
        self.trains: dict[str, bool] = {}
        self.disable_adapters = False
        self.training = module.training

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__") or name in ("original_module", "modules_to_save"):
                raise
            return getattr(self.current, name)

    def __getitem__(self, key: Any) -> Any:
        return self.current[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.current)

    def __len__(self) -> int:
        return len(self.current)

    def __bool__(self) -> bool:
        return True  # whatever its length

    @property
    def current(self) -> Any:
        """The module that runs."""
        if self.active is None or self.disable_adapters:
            return self.original_module
        return self.modules_to_save[self.active]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module in use returns, in the dtype of the network."""
        current, own = self.current, _dtype(self.original_module)
        dtype = _dtype(current)
        if dtype == own or own is None or dtype is None or _is_cast_on(_device(current)):
            return current(*args, **kwargs)
        args, kwargs = _cast((args, kwargs), own, dtype)
        return _cast(current(*args, **kwargs), dtype, own)

    def add_adapter(self, adapter: str, *, trains: bool = True) -> None:
        """A copy of the original for one more adapter; one that does not train is there for its statistics."""
        if any(offloaded_to_run_on(module) is not None for module in self.original_module.modules()):
            raise InputError(
                f"a {type(self.original_module).__name__} is to be saved with the adapter, but its weights are "
                "offloaded; keep it on a device (device_map), or leave it out of modules_to_save"
            )
        if trains and any(map(is_quantised, self.original_module.modules())):
            raise InputError(
                f"a {type(self.original_module).__name__} is to train in full, but its weights are quantised; load "
                "the network with its head in float (llm_int8_skip_modules of BitsAndBytesConfig names it), or leave "
                "it out of modules_to_save"
            )
        made = deepcopy(self.original_module, _computed(self.original_module))
        half = _dtype(made) in (torch.float16, torch.bfloat16)
        self.modules_to_save[adapter] = made.float() if half and trains else made
        self.trains[adapter] = trains

    def set_adapter(self, adapters: Sequence[str], inference_mode: bool = False) -> None:
        """Runs and trains the copy of the first of the adapters that has one."""
        self.active = next((name for name in adapters if name in self.modules_to_save), None)
        for name, module in self.modules_to_save.items():
            module.requires_grad_(name == self.active and self.trains[name] and not inference_mode)

    def delete_adapter(self, adapter: str) -> None:
        """Forgets the adapter's copy."""
        if adapter in self.modules_to_save:
            del self.modules_to_save[adapter], self.trains[adapter]
        if self.active == adapter:
            self.active = None

    def adapter_tensors(self, adapter: str) -> Iterator[tuple[str, Tensor]]:
        """Parameters and buffers of the adapter's copy by name, as a state dict has them."""
        if adapter in self.modules_to_save:
            yield from self.modules_to_save[adapter].state_dict(keep_vars=True).items()

    def unwrapped(self, *, kept: bool) -> nn.Module:
        """The original; or with `kept` the copy in use, in the dtype of the network."""
        dtype = _dtype(self.original_module)
        return self.current.to(dtype) if kept and dtype is not None else self.original_module


def _give_originals(layer: LoraLayer, state: dict[str, Tensor], prefix: str, metadata: object) -> None:
    """Lets a state dict hold the frozen weights and the adapters apart, while they are merged too."""
    if layer.merged_adapters and not layer.originals:
        raise InputError("adapters were merged for good; call delete_adapter(model, merge=True) before state_dict()")
    if is_quantised(layer.base_layer) and layer.originals:  # several tensors a weight
        merged = layer.exchange(layer.originals)
        state |= {f"{prefix}base_layer.{name}": tensor for name, tensor in layer.base_layer.state_dict().items()}
        layer.exchange(merged)
        return
    for name, parameter in layer.originals.items():
        key = f"{prefix}base_layer.{layer.path}{name}"
        if key in state:
            state[key] = parameter.detach()


def _refuse_if_merged(layer: LoraLayer, *details: object) -> None:
    if layer.merged_adapters:
        raise InputError("adapters are merged into the weights; call unmerge_adapter before load_state_dict")


def _computed(module: nn.Module) -> dict[int, Any]:
    """Copies, by the id of the original, of tensors that modules have computed and torch does not copy.

    A weight under torch.nn.utils.weight_norm is one: the next call computes it anew.
    """
    held = [value for part in module.modules() for value in vars(part).values() if isinstance(value, Tensor)]
    return {id(tensor): tensor.detach().clone() for tensor in held if not tensor.is_leaf}


def _dtype(module: nn.Module) -> torch.dtype | None:
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), None)


def _is_cast_on(device: str) -> bool:
    return device != "meta" and torch.is_autocast_enabled(device)  # which knows no such device


def _device(module: nn.Module) -> str:
    return next(p.device.type for p in module.parameters())


def _cast(value: Any, old: torch.dtype, new: torch.dtype) -> Any:
    """The tensors of one dtype in another, in nested tuples, lists and dictionaries too."""
    if isinstance(value, Tensor):
        return value.to(new) if value.dtype == old else value
    if type(value) in (tuple, list):
        return type(value)(_cast(item, old, new) for item in value)
    return {key: _cast(item, old, new) for key, item in value.items()} if type(value) is dict else value
