"""Adapters into the frozen weights and out again, and off the network."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_tl.errors import InputError
from hf_tl.lora.adapted import RECORD, AdapterRecord, known, record_of, set_adapter
from hf_tl.lora.layer import LoraLayer
from hf_tl.lora.parameter import LoraParameter
from hf_tl.lora.quantised import is_quantised, requantised
from hf_tl.trace import Batch, evaluating, first_float, forward


@dataclass(frozen=True)
class Merge:
    """What a merge did.

    Attributes:
        layers: how many layers it changed.
        largest_change: the largest absolute difference of the network's output on the example, None without one.
        rounding: of weights that were quantised again, the largest absolute difference from the sum of the
            dequantised weight and the adapters; None where no layer is quantised.
    """

    layers: int
    largest_change: float | None = None
    rounding: float | None = None


def merge_adapter(
    model: nn.Module,
    *,
    adapter_names: Sequence[str] | None = None,
    safe_merge: bool = False,
    reversible: bool = True,
    example: Batch | None = None,
) -> Merge:
    """Adds adapters to the frozen weights, in float32 with one rounding to the weight's dtype.

    A quantised weight is dequantised for it and quantised again as it was, after all adapters, and a warning says by
    how much that rounds. A weight that another module shares (tied embeddings) stays as it is there.

    Args:
        model: a network with adapters.
        adapter_names: which; None for the active ones.
        safe_merge: refuse a merge whose result is not finite, leaving the network as it was; in half precision,
            where a finite sum may overflow, it is refused in any case.
        reversible: keep the original weights, so that unmerge_adapter restores them bit by bit.
        example: a batch on which the network's outputs before and after are compared.

    Raises:
        InputError: no such adapter, one whose head does not run, already merged, not finite, or a layer whose weight
            cannot take its adapter. The network is then what it was.
    """
    record = record_of(model)
    chosen = list(record.active if adapter_names is None else adapter_names)
    known(record, *chosen)
    record.check_enabled("merging")
    if record.is_merged:
        raise InputError("adapters are merged already; call unmerge_adapter first")
    _check_companions(record, chosen)
    if example is not None and chosen != record.active:
        raise InputError(
            f"the example compares with the active adapters {record.active}, but {chosen} are to be merged"
        )
    before = None if example is None else _output(model, example)
    held = {name: [a for a in chosen if a in layer.r] for name, layer in record.layers.items()}
    held = {name: adapters for name, adapters in held.items() if adapters}
    for name, adapters in held.items():
        for adapter in adapters:
            record.layers[name].check_mergeable(adapter)
    owners = Counter(id(p) for _, p in record.model.named_parameters(remove_duplicate=False))
    roundings: list[float] = []
    try:
        for name, adapters in held.items():
            layer = record.layers[name]
            weight = layer.frozen_weight
            # the codes of a quantised layer have a sentence of their own
            if not isinstance(weight, nn.Parameter) and weight.is_floating_point():
                raise InputError(
                    f"{name}.{layer.weight_name} is computed from other tensors, as weight normalisation and pruning "
                    "do; make it a parameter first (torch.nn.utils.remove_weight_norm, prune.remove)"
                )
            if is_quantised(layer.holder):
                roundings.append(_merge_quantised(layer, name, adapters))
            elif reversible or safe_merge or owners[id(weight)] > 1 or not _merge_in_place(layer, adapters):
                _merge(layer, name, adapters, safe=safe_merge)
    except BaseException:
        _restore(record)
        raise
    if not reversible:
        for layer in record.layers.values():
            layer.originals.clear()
    rounding = max(roundings, default=None)
    if rounding is not None:
        warnings.warn(
            f"{len(roundings)} merged weights were quantised again, which moves them by up to {rounding:.2g}; compare "
            "the outputs by merge_adapter(..., example=...), or leave the adapter beside the weights",
            stacklevel=2,
        )
    change = None if example is None or before is None else (_output(model, example) - before).abs().max().item()
    return Merge(len(held), change, rounding)


def _check_companions(record: AdapterRecord, chosen: Sequence[str]) -> None:
    """Checks that heads, rows of tokens and biases of the adapters to be merged are those that run."""
    for adapter in chosen:
        whole = [n for n, saved in record.saved.items() if adapter in saved.trains and saved.active not in chosen]
        rows = [n for n, tokens in record.tokens.items() if adapter in tokens.indices and tokens.active not in chosen]
        if whole or rows:
            raise InputError(
                f"adapter {adapter!r} comes with {', '.join([*whole, *rows])}, which do not run, as "
                f"{record.active} is in use; set_adapter(model, {adapter!r}) before it is merged"
            )


def unmerge_adapter(model: nn.Module) -> None:
    """Takes merged adapters out again: the original weights, bit by bit.

    Args:
        model: a network with merged adapters.

    Raises:
        InputError: nothing is merged, or the originals were not kept.
    """
    record = record_of(model)
    if not record.is_merged:
        raise InputError("no adapter is merged; call merge_adapter first")
    if any(layer.merged_adapters and not layer.originals for layer in record.layers.values()):
        raise InputError(
            "the original weights were not kept; merge with reversible=True to be able to unmerge, or keep what was "
            "merged: delete_adapter(model, merge=True)"
        )
    _restore(record)


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
        InputError: no such adapter, merged adapters with some to stay, or without their original weights.
    """
    record = record_of(model)
    names = record.configs if adapter_names is None else adapter_names
    gone = [names] if isinstance(names, str) else list(names)
    known(record, *gone)
    record.check_enabled("deleting adapters")
    stays = [name for name in record.configs if name not in gone]
    if stays and (merge or record.is_merged):
        raise InputError(
            f"{stays} would stay on weights with adapters merged into them; unmerge_adapter, or remove all"
        )
    if record.is_merged and not merge:
        unmerge_adapter(model)
    elif merge and not record.is_merged:
        merge_adapter(model, reversible=False)
    kept = record.is_merged
    for adapter in gone:
        record.release(adapter, restore=not kept)
        del record.configs[adapter]
    _take_off(record, gone, kept=kept)
    if stays:
        set_adapter(model, [name for name in record.active if name in stays] or stays[:1])
        return model
    record.restore()
    delattr(record.model, RECORD)
    return record.model


def _take_off(record: AdapterRecord, adapters: Sequence[str], *, kept: bool) -> None:
    """Puts the original modules back where no other adapter is left; with `kept`, what was merged and trained."""
    bare = {name: layer for name, layer in record.layers.items() if not set(layer.r) - set(adapters)}
    single = {name: layer for name, layer in bare.items() if not isinstance(layer, LoraParameter)}
    outer = {name: layer.unwrapped() for name, layer in single.items() if ".base_layer." not in name}
    outer |= _without(record.model, [name for name in bare if name not in single])
    idle = {name: saved for name, saved in record.saved.items() if not set(saved.trains) - set(adapters)}
    left = {name: rows for name, rows in record.tokens.items() if not set(rows.indices) - set(adapters)}
    record.put(outer | {name: saved.unwrapped(kept=kept) for name, saved in idle.items()})
    # output layers first, as they take what is tied to the embeddings before that changes
    ordered = sorted(left.items(), key=lambda item: isinstance(item[1].base_layer, nn.Embedding))
    record.put({name: rows.unwrapped(kept=kept) for name, rows in ordered})
    for part in record.parts:
        for adapter in adapters:
            part.delete_adapter(adapter)
    record.layers = {name: layer for name, layer in record.layers.items() if name not in bare}
    record.saved = {name: saved for name, saved in record.saved.items() if name not in idle}
    record.tokens = {name: rows for name, rows in record.tokens.items() if name not in left}


def _without(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    """By module, what stands in its place without the layers that adapt these of its parameters."""
    found: dict[str, nn.Module] = {}
    for module in dict.fromkeys(name.rpartition(".")[0] for name in names):
        layer, kept = model.get_submodule(module), []
        while isinstance(layer, LoraParameter):
            if f"{module}.{layer.weight_name}" not in names:
                kept.append(layer)
            layer = layer.base_layer
        for outer in reversed(kept):
            outer.base_layer = layer
            layer = outer
        found[module] = layer.train(model.get_submodule(module).training)
    return found


def _merge_in_place(layer: LoraLayer, adapters: list[str]) -> bool:
    """Adds to the frozen parameters themselves, which needs no second copy; False where that would round twice."""
    matrix, bias = layer.matrix(), layer.own_bias()
    wide = all(t is None or t.dtype in (torch.float32, torch.float64) for t in (matrix, bias))
    if not wide or matrix.data_ptr() != layer.frozen_weight.data_ptr():  # a copy, of a weight with its channels last
        return False
    for adapter in adapters:
        layer.add_to(matrix, bias, adapter)
    layer.merged_adapters = adapters
    return True


def _merge(layer: LoraLayer, name: str, adapters: list[str], *, safe: bool) -> None:
    """Puts new parameters in the places of the frozen ones, which are kept."""
    matrix, bias = layer.matrix(), layer.own_bias()
    wide = torch.promote_types(matrix.dtype, torch.float32)
    matrix, bias = matrix.to(wide, copy=True), None if bias is None else bias.to(wide, copy=True)
    for adapter in adapters:
        layer.add_to(matrix, bias, adapter)
    if layer.transposed:
        matrix = matrix.t()
    values = {layer.weight_name: matrix.reshape(layer.frozen_weight.shape)}
    if bias is not None and any(layer.extra_bias(adapter) is not None for adapter in adapters):
        values["bias"] = bias
    for part, value in values.items():
        parameter = getattr(layer.holder, part)
        value = value.to(parameter.dtype).contiguous()
        narrow = value.dtype in (torch.float16, torch.bfloat16)  # in which a sum that is finite may not be
        if (safe or narrow) and not torch.isfinite(value).all():
            raise InputError(
                f"the merged {name}.{part} would not be finite in {value.dtype}; the network was left as it was: "
                "look for NaN in the adapter, or merge into a dtype of a larger range"
            )
        layer.originals[part] = parameter
        # what is tied to the old parameter stays
        setattr(layer.holder, part, nn.Parameter(value, requires_grad=parameter.requires_grad))
    layer.merged_adapters = adapters


def _merge_quantised(layer: LoraLayer, name: str, adapters: list[str]) -> float:
    """`_merge` for a weight that is stored in fewer bits; returns by how much the largest rounding moves it."""
    matrix, bias = layer.matrix().float(), layer.own_bias()
    wide = None if bias is None else bias.float()
    for adapter in adapters:
        layer.add_to(matrix, wide, adapter)
    if not torch.isfinite(matrix).all():
        raise InputError(
            f"the merged {name}.{layer.weight_name} would not be finite; the network was left as it was: look for NaN "
            "in the adapter"
        )
    made = {layer.weight_name: requantised(layer.base_layer, matrix)}
    if bias is not None and wide is not None and any(layer.extra_bias(adapter) is not None for adapter in adapters):
        made["bias"] = nn.Parameter(wide.to(bias.dtype), requires_grad=layer.base_layer.bias.requires_grad)
    layer.originals = layer.exchange(made)
    layer.merged_adapters = adapters
    return (layer.matrix() - matrix).abs().max().item()


def _restore(record: AdapterRecord) -> None:
    for layer in record.layers.values():
        layer.exchange(layer.originals)
        layer.originals, layer.merged_adapters = {}, []


def _output(model: nn.Module, example: Batch) -> Tensor:
    with evaluating(model), torch.no_grad():
        output = first_float(forward(model, example))
    if output is None:
        raise InputError("the network returned no floating point tensor for the example")
    return output.float()
