"""Several adapters on one network: which of them run and train."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from hf_tl.errors import InputError
from hf_tl.lora.record import known, record_of


def set_adapter(model: nn.Module, adapter_names: str | Sequence[str]) -> None:
    """Makes the given adapters, and no others, run and train; the updates of several add up.

    Of `modules_to_save` the copy of the first adapter that has one runs. Biases of the network that train with an
    adapter go with it.

    Args:
        model: a network with adapters.
        adapter_names: one name or several; [] for the frozen network.

    Raises:
        InputError: there is no such adapter, or adapters are merged.
    """
    record = record_of(model)
    adapters = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
    for name in adapters:
        known(record, name)
    if any(layer.merged_adapters for layer in record.layers.values()):
        raise InputError("adapters are merged into the weights; call unmerge_adapter before choosing others")
    record.active = adapters
    for part in (*record.layers.values(), *record.saved.values()):
        part.set_adapter(adapters)
    for adapter, names in record.biases.items():
        for name in names:
            record.model.get_parameter(name).requires_grad_(adapter in adapters)


@contextmanager
def disable_adapters(model: nn.Module) -> Iterator[nn.Module]:
    """The network as it was before any adapter, inside the block: its own head, its own biases.

    Args:
        model: a network with adapters.

    Yields:
        the same model.

    Raises:
        InputError: adapters are merged.
    """
    record = record_of(model)
    if any(layer.merged_adapters for layer in record.layers.values()):
        raise InputError("merged adapters cannot be disabled; call unmerge_adapter first")
    parts = (*record.layers.values(), *record.saved.values())
    before = [part.disable_adapters for part in parts]
    trained = {name: record.model.get_parameter(name).detach().clone() for name in record.original_biases}
    try:
        for part in parts:
            part.disable_adapters = True
        record.set_biases(record.original_biases)
        yield model
    finally:
        for part, disabled in zip(parts, before, strict=True):
            part.disable_adapters = disabled
        record.set_biases(trained)
