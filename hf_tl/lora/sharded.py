"""Adapters on a network that is spread over processes: their tensors whole, and one process that writes.

FSDP2 (`torch.distributed.fsdp.fully_shard`, and Accelerate with it) replaces each parameter by this process's part of
it. DeepSpeed's ZeRO-3 leaves the parameter, empty outside of a call.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hf_tl.architectures import is_partitioned, is_sharded
from hf_tl.errors import InputError, in_one_line
from hf_tl.lora.adapted import CHECKPOINTED, AdapterRecord
from hf_tl.lora.layer import LoraLayer, SavedModule
from hf_tl.lora.token_rows import TokenRows


Result = TypeVar("Result")
Place = tuple[dict[str, Any], str]
"""Where a module keeps a tensor: its parameters or buffers, and the name among them."""


def adapter_places(record: AdapterRecord) -> dict[str, Place]:
    """Where the tensors of all adapters are kept, by the names that the network's state dict has for them."""
    found: dict[str, Place] = {}
    for name, module in record.model.named_modules(remove_duplicate=False):
        for part, held in _holders(module):
            for inner, owner in held.named_modules(prefix=f"{name}.{part}" if name else part):
                place = inner.replace(f"{CHECKPOINTED}.", "")  # a state dict leaves it out
                for kept in (owner._parameters, owner._buffers):
                    found |= {
                        f"{place}.{attribute}": (kept, attribute)
                        for attribute, tensor in kept.items()
                        if tensor is not None and attribute not in owner._non_persistent_buffers_set
                    }
    for adapter in record.configs:
        for name in record.own_names(adapter):
            owner_name, _, attribute = name.rpartition(".")
            found[name] = record.model.get_submodule(owner_name)._parameters, attribute
    return found


def _holders(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The children of what stands in a module's place that belong to its adapters."""
    if isinstance(module, SavedModule):
        yield "modules_to_save", module.modules_to_save
    elif isinstance(module, (LoraLayer, TokenRows)):
        yield from ((name, child) for name, child in module.named_children() if name != "base_layer")


@contextmanager
def whole_adapters(record: AdapterRecord, values: Mapping[str, Tensor] | None = None) -> Iterator[None]:
    """Within, adapters hold whole tensors.

    Args:
        record: of the network.
        values: the tensors, gathered already, as the network's state dict names them; None to gather them here, which
            every process has to do.

    Raises:
        InputError: values without one of the tensors.
    """
    before: list[tuple[Place, Any]] = []
    places = adapter_places(record)
    try:
        if values is None:
            values = _gathered({name: kept[attribute] for name, (kept, attribute) in places.items()})
        for name, (kept, attribute) in places.items():
            tensor: Any = kept[attribute]
            if name not in values:
                raise InputError(f"the state dict to be saved has no {name!r}; pass accelerator.get_state_dict(model)")
            if values[name] is not tensor:
                before.append(((kept, attribute), tensor))
                whole = values[name].detach()
                is_parameter = isinstance(tensor, nn.Parameter)
                kept[attribute] = nn.Parameter(whole, tensor.requires_grad) if is_parameter else whole
        yield
    finally:
        for (kept, attribute), tensor in before:
            kept[attribute] = tensor


def _gathered(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """The same tensors, whole."""
    found = {name: tensor.full_tensor() if is_sharded(tensor) else tensor for name, tensor in tensors.items()}
    partitioned = {name: tensor for name, tensor in tensors.items() if is_partitioned(tensor)}
    if partitioned:
        deepspeed: Any = sys.modules["deepspeed"]  # which made them
        with deepspeed.zero.GatheredParameters([*partitioned.values()]):
            found |= {name: tensor.detach().clone() for name, tensor in partitioned.items()}
    return found


def in_one_process(model: nn.Module, write: Callable[[], Result]) -> Result | None:
    """Writes in the first of the processes that share the network; all go on when it is done.

    Returns:
        what `write` returned, None in the others; where nothing is shared every process writes.

    Raises:
        InputError: the first one failed, in all of them.
    """
    mesh = next((p.device_mesh for p in model.parameters() if is_sharded(p)), None)  # type: ignore[attr-defined]
    if mesh is None and not any(map(is_partitioned, model.parameters())):
        return write()
    groups = [None] if mesh is None else [mesh.get_group(dim) for dim in range(mesh.ndim)]
    result, failed = None, [""]
    if not any(map(torch.distributed.get_rank, groups)):
        try:
            result = write()
        except Exception as error:  # of which the others, who wait, have to hear
            failed = [str(error) if isinstance(error, InputError) else in_one_line(error)]
    for group in groups:
        first = 0 if group is None else torch.distributed.get_global_rank(group, 0)
        torch.distributed.broadcast_object_list(failed, first, group=group)
    if failed[0]:
        raise InputError(failed[0])
    return result


def keep_adapters(tensors: dict[str, Tensor], record: AdapterRecord) -> None:
    """Leaves those of a state dict that belong to adapters."""
    own = adapter_places(record)
    for name in [name for name in tensors if name not in own]:
        del tensors[name]


def missing_tensors(tensors: Mapping[str, Tensor], record: AdapterRecord) -> list[str] | None:
    """What a state dict of `keep_adapters` lacks; None where it is of another kind."""
    own = adapter_places(record)
    return sorted(own.keys() - tensors.keys()) if tensors and tensors.keys() <= own.keys() else None
