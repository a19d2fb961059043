"""Several adapters on one network: which of them run, and which train."""

from __future__ import annotations

from torch import nn

from hf_tl.errors import InputError
from hf_tl.lora.record import record_of


def set_adapter(model: nn.Module, *adapters: str) -> None:
    """Makes the given adapters, and no others, run and train; several add up."""
    record = record_of(model)
    for name in adapters:
        if name not in record.configs:
            raise InputError(f"there is no adapter {name!r}; there are {', '.join(map(repr, record.configs))}")
    record.active = list(adapters)
    for part in (*record.layers.values(), *record.saved.values()):
        part.set_adapter(adapters)
