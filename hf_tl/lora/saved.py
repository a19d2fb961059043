"""A module that trains in full and is saved with the adapter, the head of a new task above all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn


class SavedModule(nn.Module):
    """The module that was there, and a copy of it for every adapter.

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
        if dtype == own or own is None or dtype is None or torch.is_autocast_enabled(_device(current)):
            return current(*args, **kwargs)
        args, kwargs = _cast((args, kwargs), own, dtype)
        return _cast(current(*args, **kwargs), dtype, own)

    def add_adapter(self, adapter: str, *, trains: bool = True) -> None:
        """A copy of the original for one more adapter; one that does not train is there for its statistics."""
        made = deepcopy(self.original_module)
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


def _dtype(module: nn.Module) -> torch.dtype | None:
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), None)


def _device(module: nn.Module) -> str:
    return next(p.device.type for p in module.parameters())


def _cast(value: Any, old: torch.dtype, new: torch.dtype) -> Any:
    """The tensors of one dtype in another, in nested tuples, lists and dictionaries too."""
    if isinstance(value, Tensor):
        return value.to(new) if value.dtype == old else value
    if type(value) in (tuple, list):
        return type(value)(_cast(item, old, new) for item in value)
    return {key: _cast(item, old, new) for key, item in value.items()} if type(value) is dict else value
