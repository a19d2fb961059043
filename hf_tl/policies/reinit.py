"""Layers with fresh random values, from the network's own initialiser.

In transformers 5, `module.apply(model._init_weights)` does nothing after `from_pretrained`, as every loaded parameter
is marked as initialised. So the values are taken from a second network, built from the same configuration.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hf_tl.architectures import is_transformers, timm_config
from hf_tl.errors import InputError, in_one_line
from hf_tl.layers import Layer
from hf_tl.names import is_inside


if TYPE_CHECKING:
    from transformers import PreTrainedModel


def reinit_layers(
    model: nn.Module, layers: Sequence[Layer], *, seed: int = 0, build: Callable[[], nn.Module] | None = None
) -> list[str]:
    """Gives every parameter and buffer of the layers the value that it has in a new network; returns their names.

    The values depend on the seed and the name of the tensor alone, not on what else is chosen nor on the state of
    torch's random numbers, which stays as it was.

    Args:
        model: a network, changed in place.
        layers: some of its layers.
        seed: of the values.
        build: makes a new network; by default that is known of transformers' and timm's networks, also within
            another module, and all other modules reset themselves.

    Raises:
        InputError: no new network can be made, or its tensors have other shapes; nothing has changed then.
    """
    values = draw_values(model, layers, seed=seed, build=build)
    write_values(model, values)
    return list(values)


def draw_values(
    model: nn.Module, layers: Sequence[Layer], *, seed: int = 0, build: Callable[[], nn.Module] | None = None
) -> dict[str, Tensor]:
    """The values that `reinit_layers` gives, by name; the network stays as it is."""
    wanted = _tensors(model, layers)
    sources = {"": build} if build is not None else _sources(model)
    found: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for prefix, maker in sources.items():
            if any(_is_under(name, prefix) for name in wanted):
                found |= _new_tensors(model.get_submodule(prefix), maker, prefix, seed)
        rest = {name for name in wanted if not any(_is_under(name, prefix) for prefix in sources)}
        if rest:
            found |= _reset_tensors(model, layers, rest, seed)
    plain = {name: name if name in found else name.replace("_orig_mod.", "") for name in wanted}  # of what is compiled
    found = {name: found[own] for name, own in plain.items() if own in found}
    for name, tensor in wanted.items():
        if name not in found or found[name].shape != tensor.shape:
            shape = tuple(found[name].shape) if name in found else "missing"
            raise InputError(
                f"{name!r} is {tuple(tensor.shape)} here and {shape} in a new {type(model).__name__}, so it "
                f"cannot be reinitialised; give a function that builds this network as build=..."
            )
    return {name: found[name] for name in wanted}


def write_values(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copies values into the parameters and buffers of these names, where FSDP2 has sharded them into its shards."""
    tensors = dict((*model.named_parameters(), *model.named_buffers()))
    with torch.no_grad():
        for name, value in values.items():
            tensors[name].copy_(_sharded_like(tensors[name], value))


def _sharded_like(tensor: Tensor, value: Tensor) -> Tensor:
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(tensor, DTensor):
        return value
    return distribute_tensor(value.to(tensor.device, tensor.dtype), tensor.device_mesh, tensor.placements)


def _tensors(model: nn.Module, layers: Sequence[Layer]) -> dict[str, Tensor]:
    """The parameters and buffers of some layers by name, in the order of the network."""
    chosen = {id(parameter) for layer in layers for parameter in layer.parameters()}
    for module in (module for layer in layers for _, module in layer.modules):
        chosen |= {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    every = (*model.named_parameters(), *model.named_buffers())
    return {name: tensor for name, tensor in every if id(tensor) in chosen}


def _sources(model: nn.Module) -> dict[str, Callable[[], nn.Module]]:
    """The outermost networks of transformers and timm in a module, by name, with functions that make them anew."""
    found: dict[str, Callable[[], nn.Module]] = {}
    for name, module in model.named_modules():
        if any(_is_under(name, prefix) for prefix in found):
            continue
        if is_transformers(module):
            found[name] = partial(_build_transformers, module)
        elif "architecture" in timm_config(module):
            found[name] = partial(_build_timm, module)
    return found


def _is_under(name: str, prefix: str) -> bool:
    return not prefix or is_inside(name, [prefix])


def _new_tensors(network: nn.Module, maker: Callable[[], nn.Module], prefix: str, seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    try:
        with torch.device("cpu"):
            other = maker()
    except Exception as error:  # a foreign constructor can fail in any way
        raise InputError(
            f"a new {type(network).__name__} cannot be built: {in_one_line(error)}; give a function that "
            f"does as build=..."
        ) from error
    parameters = other.named_parameters(prefix, remove_duplicate=False)
    return dict((*parameters, *other.named_buffers(prefix, remove_duplicate=False)))


@runtime_checkable
class _Initialises(Protocol):
    """A network that sets all of its weights itself, as many of timm's do."""

    def init_weights(self) -> None: ...


@runtime_checkable
class _Resets(Protocol):
    def reset_parameters(self) -> None: ...


def _build_transformers(network: PreTrainedModel) -> nn.Module:
    return type(network)(copy.deepcopy(network.config))


def _build_timm(network: Any) -> nn.Module:
    """A new network of timm: of the name's widths at the size of the images, or a copy that initialises itself."""
    import timm

    name, shapes = timm_config(network)["architecture"], _shapes(network)
    first = next((shape[1] for shape in shapes.values() if len(shape) == 4), 3)
    sizes = [{"img_size": part.img_size} for part in network.children() if isinstance(part, _Sized)]
    for extra in [{"in_chans": first} | size for size in (*sizes, {})] + [*sizes, {}]:
        try:
            built = timm.create_model(name, pretrained=False, num_classes=network.num_classes, **extra)
        except TypeError:  # an architecture without this option
            continue
        if _shapes(built) == shapes:
            return built
    return _initialised_copy(network, built) if isinstance(network, _Initialises) else built


def _initialised_copy(network: Any, named: nn.Module) -> nn.Module:
    """A copy of a network with its own fresh values, of other widths than those of its name.

    What is one number throughout in the network of the name (a norm that begins at 0) is that number here, where the
    initialiser leaves it out or its module alone says another one.
    """
    twin: nn.Module = _blank_copy(network)
    for module in twin.modules():
        if isinstance(module, _Resets):
            module.reset_parameters()
    if isinstance(twin, _Initialises):
        twin.init_weights()
    constants = {name: value.flatten()[0] for name, value in named.named_parameters() if value.unique().numel() == 1}
    varied = dict(named.named_parameters()).keys() - constants.keys()
    for name, parameter in twin.named_parameters():
        unset = bool(parameter.isnan().any())
        if name in constants and (unset or parameter.unique().numel() == 1):
            parameter.fill_(constants[name])
        elif unset or (name in varied and parameter.unique().numel() == 1):
            raise ValueError(f"its init_weights does not give {name!r} what its constructor does")
    return twin


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}


@runtime_checkable
class _Sized(Protocol):
    """timm's embedding of patches."""

    img_size: tuple[int, int]


def _blank_copy(module: Any) -> Any:
    """A copy without parameters: an initialiser that leaves one out leaves NaN."""
    twin = copy.deepcopy(module)
    for parameter in twin.parameters():
        if parameter.is_floating_point():
            parameter.fill_(float("nan"))
    return twin


def _reset_tensors(model: nn.Module, layers: Sequence[Layer], wanted: set[str], seed: int) -> dict[str, Tensor]:
    """Values of modules that can reset themselves: a copy of each does, under a seed of its own.

    Of modules within one another, the outer one decides on parameters, as it may treat those of the inner one in its
    own way; buffers are the inner one's.
    """
    chosen = {inner for layer in layers for _, module in layer.modules for inner in module.modules()}
    found: dict[str, Tensor] = {}
    for prefix, module in model.named_modules():
        if module in chosen and isinstance(module, _Resets) and any(_is_under(name, prefix) for name in wanted):
            digest = hashlib.sha256(f"{seed}:{prefix}".encode()).digest()
            torch.manual_seed(int.from_bytes(digest[:8], "big") % 2**63)
            try:
                parameters, buffers = _reset(module, prefix)
            except Exception as error:  # a foreign reset_parameters can fail in any way
                raise InputError(
                    f"{prefix!r} cannot be reset: {in_one_line(error)}; give a function that builds the network as "
                    f"build=..."
                ) from error
            found = {name: value for name, value in parameters.items() if not value.isnan().any()} | found | buffers
    missing = sorted(wanted - found.keys())
    if missing:
        raise InputError(
            f"{missing[0]!r} belongs to no module with reset_parameters that sets it, so how it begins is not known; "
            f"give a function that builds the network as build=..."
        )
    return found


def _reset(module: Any, prefix: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameters and buffers of a module that was reset, by name."""
    twin = _blank_copy(module)
    if not parametrize.is_parametrized(module):
        twin.reset_parameters()
        return dict(twin.named_parameters(prefix)), dict(twin.named_buffers(prefix))
    # an initialiser writes into what the parametrization computes, where it is lost: reset without, then assign
    plain = copy.deepcopy(module)
    plain.__class__ = parametrize.type_before_parametrizations(module)  # all copies share the other one
    del plain.parametrizations
    for name in module.parametrizations:
        plain.register_parameter(name, nn.Parameter(getattr(module, name).detach().clone()))
    plain = _blank_copy(plain)
    plain.reset_parameters()
    twin = copy.deepcopy(module)
    for name, parameter in plain.named_parameters(recurse=False):
        setattr(twin, name, parameter.detach() if name in module.parametrizations else parameter)
    return dict(twin.named_parameters(prefix)), dict(twin.named_buffers(prefix))
