"""Layers with fresh random values, from the network's own initialiser.

In transformers 5, `module.apply(model._init_weights)` does nothing after `from_pretrained`, as every loaded parameter
is marked as initialised. So the values are taken from a second network, built from the same configuration.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from hf_tl.errors import InputError, in_one_line
from hf_tl.layers import Layer


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
        build: makes a new network; by default that is known of transformers' and timm's networks, and the modules
            of any other reset themselves.

    Raises:
        InputError: no new network can be made, or its tensors have other shapes; nothing has changed then.
    """
    wanted = _tensors(model, layers)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        fresh = _fresh_values(model, layers, wanted, seed, build)
        for name, tensor in wanted.items():
            if name not in fresh or fresh[name].shape != tensor.shape:
                found = tuple(fresh[name].shape) if name in fresh else "missing"
                raise InputError(
                    f"{name!r} is {tuple(tensor.shape)} here and {found} in a new {type(model).__name__}, so it "
                    f"cannot be reinitialised; give a function that builds this network as build=..."
                )
        for name, tensor in wanted.items():
            tensor.copy_(fresh[name])
    return list(wanted)


@runtime_checkable
class _FromConfig(Protocol):
    """A transformers network."""

    config: object
    config_class: type | None

    @property
    def base_model(self) -> nn.Module: ...


@runtime_checkable
class _FromName(Protocol):
    """A timm network."""

    default_cfg: Mapping
    num_classes: int


@runtime_checkable
class _Resets(Protocol):
    def reset_parameters(self) -> None: ...


def _tensors(model: nn.Module, layers: Sequence[Layer]) -> dict[str, Tensor]:
    """The parameters and buffers of some layers by name, in the order of the network."""
    owned = {id(parameter) for layer in layers for parameter in layer.parameters()}
    inside = {
        id(tensor)
        for layer in layers
        for _, module in layer.modules
        for tensor in (*module.parameters(), *module.buffers())
    }
    every = (*model.named_parameters(), *model.named_buffers())
    return {name: tensor for name, tensor in every if id(tensor) in owned | inside}


def _fresh_values(
    model: nn.Module, layers: Sequence[Layer], wanted: Mapping, seed: int, build: Callable[[], nn.Module] | None
) -> dict[str, Tensor]:
    maker = build or _maker(model)
    if maker is None:
        return dict(_reset(model, layers, wanted, seed))
    try:
        with torch.device("cpu"):
            other = maker()
    except Exception as error:  # a foreign constructor can fail in any way
        raise InputError(
            f"a new {type(model).__name__} cannot be built: {in_one_line(error)}; give a function that "
            f"does as build=..."
        ) from error
    return {
        **dict(other.named_parameters(remove_duplicate=False)),
        **dict(other.named_buffers(remove_duplicate=False)),
    }


def _maker(model: nn.Module) -> Callable[[], nn.Module] | None:
    if isinstance(model, _FromConfig):
        return lambda: type(model)(copy.deepcopy(model.config))
    if isinstance(model, _FromName) and "architecture" in model.default_cfg:
        return lambda: _build_timm(model)
    return None


def _build_timm(model: _FromName) -> nn.Module:
    """A new network of timm: of the size in its configuration, or of that of its position embedding."""
    import timm

    name, own = model.default_cfg["architecture"], dict(model.named_parameters())
    options = {"pretrained": False, "num_classes": model.num_classes}
    sized = [{"img_size": size.img_size} for _, size in model.named_children() if isinstance(size, _Sized)]
    first = next((tensor.shape[1] for tensor in own.values() if tensor.ndim == 4), 3)
    tries = [options | extra for extra in (*sized, {})]
    tries = [options | {"in_chans": first} | extra for extra in (*sized, {})] + tries
    for candidate in tries:
        try:
            built = timm.create_model(name, **candidate)
        except TypeError:  # an architecture without this option
            continue
        if {key: value.shape for key, value in built.named_parameters()} == {k: v.shape for k, v in own.items()}:
            return built
    return timm.create_model(name, **options)


@runtime_checkable
class _Sized(Protocol):
    """timm's embedding of patches."""

    img_size: tuple[int, int]


def _reset(model: nn.Module, layers: Sequence[Layer], wanted: Mapping, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Values of modules that can reset themselves: a copy of each does, under a seed of its own."""
    names = {module: name for name, module in model.named_modules()}
    chosen = {inner for layer in layers for _, module in layer.modules for inner in module.modules()}
    covered: set[str] = set()
    for module in chosen:
        name = names[module]
        if isinstance(module, _Resets):
            twin = copy.deepcopy(module)
            digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
            torch.manual_seed(int.from_bytes(digest[:8], "big") % 2**63)
            twin.reset_parameters()
            for own, tensor in (*twin.named_parameters(), *twin.named_buffers()):
                full = f"{name}.{own}" if name else own
                covered.add(full)
                yield full, tensor
    missing = [name for name in wanted if name not in covered]
    if missing:
        raise InputError(
            f"{missing[0]!r} belongs to no module with reset_parameters, so how it begins is not known; "
            f"give a function that builds the network as build=..."
        )
