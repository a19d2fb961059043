"""Adapters into the frozen weights and out again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_tl.errors import InputError
from hf_tl.lora.adapters import set_adapter
from hf_tl.lora.kinds import unwrap
from hf_tl.lora.layers import LoraLayer
from hf_tl.lora.linear import LoraLinear
from hf_tl.lora.low_rank import add_product
from hf_tl.lora.record import RECORD, AdapterRecord, known, record_of
from hf_tl.lora.targets import base_modules
from hf_tl.lora.trainer import unfollow_trainer
from hf_tl.trace import Batch, evaluating, first_float, forward


@dataclass(frozen=True)
class Merge:
    """What a merge did.

    Attributes:
        layers: how many layers it changed.
        largest_change: the largest absolute difference of the network's output on the example, None without one.
    """

    layers: int
    largest_change: float | None = None


def merge_adapter(
    model: nn.Module,
    *,
    adapter_names: Sequence[str] | None = None,
    safe_merge: bool = False,
    reversible: bool = True,
    example: Batch | None = None,
) -> Merge:
    """Adds adapters to the frozen weights, in float32 with one rounding to the weight's dtype.

    A weight that another module shares (tied embeddings) is copied first, so that the other keeps its own.

    Args:
        model: a network with adapters.
        adapter_names: which; None for the active ones.
        safe_merge: refuse a merge whose result is not finite, leaving the network as it was.
        reversible: keep the original weights, so that unmerge_adapter restores them bit by bit.
        example: a batch on which the network's outputs before and after are compared.

    Raises:
        InputError: no such adapter, already merged, not finite, or a layer whose weight cannot take its adapter.
    """
    record = record_of(model)
    chosen = list(record.active if adapter_names is None else adapter_names)
    for adapter in chosen:
        known(record, adapter)
    if any(layer.merged_adapters for layer in record.layers.values()):
        raise InputError("adapters are merged already; call unmerge_adapter first")
    if example is not None and chosen != record.active:
        raise InputError(
            f"the example compares with the active adapters {record.active}, but {chosen} are to be merged"
        )
    before = None if example is None else _output(model, example)
    held = {name: [a for a in chosen if a in layer.r] for name, layer in record.layers.items()}
    held = {name: names for name, names in held.items() if names}
    quick = not safe_merge and not reversible
    new = {} if quick else {name: record.layers[name].merged_parameters(names) for name, names in held.items()}
    if safe_merge:
        for name, parameters in new.items():
            _check_finite(name, parameters, record.layers[name])
    tied = _shared(record, held)
    own = {name: record.layers[name] for name in held if name not in tied}
    added = _add_in_place(own, held) if quick else ()
    for name, names in held.items():
        layer = record.layers[name]
        if name not in added:
            _set_parameters(layer, new.get(name) or layer.merged_parameters(names), untie=name in tied)
        if not reversible:
            layer.originals.clear()
        layer.__dict__["merged_adapters"] = names  # nn.Module is slow in taking attributes
    after = None if before is None else _output(model, example)
    return Merge(len(held), None if after is None else (after - before).abs().max().item())


def unmerge_adapter(model: nn.Module) -> None:
    """Takes merged adapters out again: the original weights, bit by bit.

    Args:
        model: a network with merged adapters.

    Raises:
        InputError: nothing is merged, or the originals were not kept.
    """
    record = record_of(model)
    merged = [layer for layer in record.layers.values() if layer.merged_adapters]
    if not merged:
        raise InputError("no adapter is merged; call merge_adapter first")
    if any(not layer.originals for layer in merged):
        raise InputError("the original weights were not kept; merge with reversible=True to be able to unmerge")
    for layer in merged:
        for module, name, parameter, data in layer.originals:
            parameter.data = data
            module._parameters[name] = parameter
        layer.originals, layer.merged_adapters = [], []


def delete_adapter(
    model: nn.Module, adapter_names: str | Sequence[str] | None = None, *, merge: bool = False
) -> nn.Module:
    """Takes adapters off the network; with the last one the original modules come back, bit by bit.

    Args:
        model: a network with adapters.
        adapter_names: one name or several; None for all.
        merge: leave the effect of the active adapters in the weights, and their `modules_to_save` in place.

    Returns:
        the same model, without wrappers once no adapter is left.

    Raises:
        InputError: no such adapter, or merged adapters with some to stay.
    """
    record = record_of(model)
    names = record.configs if adapter_names is None else adapter_names
    gone = [names] if isinstance(names, str) else list(names)
    for adapter in gone:
        known(record, adapter)
    stays = [name for name in record.configs if name not in gone]
    merged = any(layer.merged_adapters for layer in record.layers.values())
    if stays and (merge or merged):
        raise InputError(
            f"{stays} would stay on weights with adapters merged into them; unmerge_adapter, or remove all"
        )
    if merge and not merged:
        merge_adapter(model, reversible=False)
    kept = merge or merged
    if not kept:
        record.set_biases({n: record.original_biases[n] for a in gone for n in record.biases[a]})
    for adapter in gone:
        for name in record.biases.pop(adapter):
            record.original_biases.pop(name, None)
            record.model.get_parameter(name).requires_grad_(False)
    if not stays:
        return _unwrap(record, kept)
    for adapter in gone:
        for part in (*record.layers.values(), *record.saved.values()):
            part.delete_adapter(adapter)
        del record.configs[adapter]
    empty = [name for name, layer in record.layers.items() if not layer.r and ".base_layer." not in name]
    idle = [name for name, saved in record.saved.items() if not saved.modules_to_save]
    record.put({name: unwrap(record.layers.pop(name)) for name in empty})
    record.put({name: record.saved.pop(name).original_module for name in idle})
    for name in empty:
        record.layers.pop(f"{name}.base_layer.out_proj", None)
    set_adapter(model, [a for a in record.active if a in stays] or stays[:1])
    return model


def _unwrap(record: AdapterRecord, kept: bool) -> nn.Module:
    model = record.model
    record.put({name: unwrap(layer) for name, layer in record.layers.items() if ".base_layer." not in name})
    record.put({n: saved.current if kept else saved.original_module for n, saved in record.saved.items()})
    record.restore_settings()
    unfollow_trainer(model)
    del model.__dict__[RECORD]
    record.thaw()
    return model


@torch.no_grad()
def _add_in_place(layers: Mapping[str, LoraLayer], adapters: Mapping[str, Sequence[str]]) -> set[str]:
    """Adds `scaling * B A` to float32 weights without a copy: the names of the layers where no more has to be done."""
    added = set()
    for name, layer in layers.items():
        weight, names = layer._parameter(), adapters[name]
        if not isinstance(layer, LoraLinear) or weight.dtype != torch.float32:
            continue
        if any(layer.use_dora[a] or layer.lora_B[a].bias is not None for a in names):
            continue
        for adapter in names:
            a, b = layer.factors(adapter)
            left, right = (a.t(), b.t()) if layer.transposed else (b, a)
            add_product(weight, left, right, scale=layer.scaling[adapter])
        added.add(name)
    return added


def _set_parameters(layer: LoraLayer, values: Mapping[str, Tensor], *, untie: bool) -> None:
    base = layer.base_layer
    layer.originals = []
    for name, value in values.items():
        parameter = base._parameters[name]
        layer.originals.append((base, name, parameter, parameter.data))
        value = value.to(parameter.dtype).contiguous()
        if untie:
            base._parameters[name] = nn.Parameter(value, requires_grad=parameter.requires_grad)
        else:
            parameter.data = value


def _shared(record: AdapterRecord, names: Mapping[str, object]) -> set[str]:
    """Those of the adapted layers whose weight another module holds too."""
    own = {id(record.layers[name]._parameter()): name for name in names}
    holders: dict[int, int] = {}
    for module in set(base_modules(record.model).values()):  # a module may stand in two places
        for parameter in module._parameters.values():
            if id(parameter) in own:
                holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    shared = {key for key, count in holders.items() if count > 1}
    return {name for name in names if id(record.layers[name]._parameter()) in shared}


def _check_finite(name: str, parameters: Mapping[str, Tensor], layer: LoraLayer) -> None:
    for part, value in parameters.items():
        rounded = value.to(layer.base_layer._parameters[part].dtype)
        if not torch.isfinite(rounded).all():
            raise InputError(
                f"the merged {name}.{part} would not be finite in {rounded.dtype}; the network was left as it was: "
                "look for NaN in the adapter, or merge into a wider dtype"
            )


def _output(model: nn.Module, example: Batch) -> Tensor:
    with evaluating(model), torch.no_grad():
        output = first_float(forward(model, example))
    if output is None:
        raise InputError("the network returned no floating point tensor for the example")
    return output.float()
