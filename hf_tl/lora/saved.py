"""A module that trains in full and is saved with the adapter, the head of a new task above all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

from torch import Tensor, nn


class SavedModule(nn.Module):
    """The module that was there, and a copy of it for every adapter.

    Live names are PEFT's: `original_module` and `modules_to_save.<adapter>`.

    Attributes:
        original_module: the module as it was, frozen.
        modules_to_save: a copy by adapter.
        active: the adapter whose copy runs; None for the original.
        trains: by adapter, whether the copy's parameters train.
    """

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

    @property
    def current(self) -> nn.Module:
        """The module that runs."""
        if self.active is None or self.disable_adapters:
            return self.original_module
        return self.modules_to_save[self.active]

    def forward(self, *args: object, **kwargs: object) -> object:
        """What the module in use returns."""
        return self.current(*args, **kwargs)

    def add_adapter(self, adapter: str, *, trains: bool = True) -> None:
        """A copy of the original for one more adapter; one that does not train is there for its statistics."""
        self.modules_to_save[adapter] = deepcopy(self.original_module)
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
