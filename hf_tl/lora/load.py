"""load_adapter: a saved adapter onto a network, at the places that the file's own tensors name."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_tl.architectures import is_transformers
from hf_tl.errors import InputError
from hf_tl.lora.adapted import adapter_state_dict, find_network, parameter_names, record_of
from hf_tl.lora.adapter import PREFIX, Adapter, LayerUpdate, alpha_for, is_split, rank_fields, read_adapter, split_key
from hf_tl.lora.adapter_plan import Plan
from hf_tl.lora.config import LoraConfig
from hf_tl.lora.inject import inject, note_container
from hf_tl.lora.merge import delete_adapter
from hf_tl.lora.placement import Placement, place
from hf_tl.lora.quantised import check_quantised, is_quantised
from hf_tl.lora.targets import Target
from hf_tl.models import load_model


_WRAPPED = "timm_model."  # where transformers' wrapper of a timm network keeps it


def load_adapter(
    model: nn.Module,
    folder: str | Path,
    *,
    adapter_name: str = "default",
    revision: str | None = None,
    strict: bool = True,
    is_trainable: bool = False,
) -> nn.Module:
    """Puts a saved adapter on a network, changed in place, and makes it the one that runs.

    Layers are found by the names of the tensors, ranks are those of the tensors, and names from before
    transformers 5 are translated. A load that fails leaves the network as it was.

    Args:
        model: the network that the adapter was trained on, with or without other adapters.
        folder: what `save_adapter`, PEFT or transformers wrote; or "user/name", a repository of the Hub.
        adapter_name: its name on the network.
        revision: branch, tag or commit of a repository; None for main.
        strict: whether everything in the file must have its place, and every place its tensor. Where False, what
            does not fit is left out with a warning.
        is_trainable: whether its training can go on; otherwise nothing of it has a gradient.

    Returns:
        the same model.

    Raises:
        InputError: files that cannot be had, are damaged or of another method than LoRA, or, in one sentence, all
            that is missing, unexpected or of another shape, each with the nearest name in the network.
    """
    saved = read_adapter(folder, revision=revision)
    return put_adapter(model, saved, adapter_name=adapter_name, strict=strict, is_trainable=is_trainable)


def put_adapter(
    model: nn.Module,
    saved: Adapter,
    *,
    adapter_name: str = "default",
    strict: bool = True,
    is_trainable: bool = False,
) -> nn.Module:
    """`load_adapter` for an adapter that is in memory."""
    network = find_network(model)
    check_quantised(network)
    found = place(saved, network)
    complaint = found.complaint()
    if complaint and strict:
        raise InputError(f"{complaint}; load_adapter(..., strict=False) loads the rest")
    if not found.updates:
        raise InputError(f"adapter {saved.folder!r} has no layer that this {type(network).__name__} has")
    if complaint:
        warnings.warn(f"left out of the load: {complaint}", stacklevel=3)
    layers = [name for name in found.updates if name in found.modules]
    codes = [name for name in layers if is_split(saved.config) and is_quantised(found.modules[name])]
    if codes:
        raise InputError(
            f"adapter {saved.folder!r} has init_lora_weights={saved.config['init_lora_weights']!r}: PEFT trained it "
            f"beside weights that it quantised again, as that of {codes[0]!r}, which hf_tl does not repeat; save it "
            "with peft's path_initial_model_for_weight_conversion"
        )
    parameters = found.parameters
    alphas = {n: saved.alpha_of(found.written[n]) for n in layers}
    for name in parameters:
        update = found.updates[name]
        alphas[name] = alpha_for(update.scale, update.rank, use_rslora=saved.settings.use_rslora)
    targets = [Target(n, u.rank, alphas[n], is_parameter=n in parameters) for n, u in _in_order(found)]
    vocabulary = tuple(found.vocabulary)
    plan = Plan(_config(found, alphas), targets, tuple(found.saved), vocabulary=vocabulary, tokens=found.tokens)
    inject(network, plan, adapter_name=adapter_name, empty=not is_split(saved.config))
    try:
        _keep_vocabulary(network, found, adapter_name=adapter_name)
        _fill(network, found, adapter_name=adapter_name, strict=strict)
    except BaseException:
        delete_adapter(network, [adapter_name])
        raise
    note_container(model)
    if not is_trainable:
        _freeze(network, adapter_name)
    return model


def load_base(name: str, adapter: Adapter, *, dtype: torch.dtype | str = torch.float32) -> nn.Module:
    """The network with the head that an adapter fits, in eval mode.

    The user's `name` decides what is loaded; of the adapter's file only the task, the size of its head, whether its
    layers lie in transformers' wrapper of a timm network, and the name of the class count, the latter as a choice
    among the classes that transformers lists for the network.

    A vocabulary that the adapter brings resized is resized here too.

    Args:
        name: as for `load_network`.
        adapter: what `read_adapter` returned.
        dtype: of the weights; "auto" for that of the file.

    Raises:
        InputError: no such network.
    """
    torch.manual_seed(0)  # a head that is in neither file is random, and the same each time
    mapping = adapter.config.get("auto_mapping")
    model = load_model(
        name,
        class_name=mapping.get("base_model_class") if isinstance(mapping, Mapping) else None,
        task_type=adapter.settings.task_type,
        n_labels=adapter.n_labels,
        wrapped=any(layer.startswith(_WRAPPED) for layer in adapter.updates),
        dtype=dtype,
    )
    _resize_vocabulary(model, adapter)
    return model


def _resize_vocabulary(model: nn.Module, adapter: Adapter) -> None:
    """Gives a network of transformers as many words as the embeddings have that the adapter brings."""
    if not is_transformers(model):
        return
    try:
        table = model.get_input_embeddings()
    except NotImplementedError:  # it reads no tokens
        return
    names = [name for name, module in model.named_modules() if module is table]
    brought = [adapter.others.get(f"{name}.{part}") for name in names for part in ("weight", "base_layer.weight")]
    rows = next((len(tensor) for tensor in brought if tensor is not None and tensor.dim() == 2), None)
    if rows is not None and isinstance(table, nn.Embedding) and rows != table.num_embeddings:
        model.resize_token_embeddings(rows, mean_resizing=False)  # the adapter has the values


def _in_order(found: Placement) -> list[tuple[str, LayerUpdate]]:
    """The updates, those of parameters last and in their modules' order, in which their layers are nested."""
    order = {name: i for i, name in enumerate(parameter_names(found.modules))} if found.parameters else {}
    return sorted(found.updates.items(), key=lambda item: order[item[0]] if item[0] in found.parameters else -1)


def _config(found: Placement, alphas: Mapping[str, float]) -> LoraConfig:
    """The file's settings in the network's names; which layers they choose is settled already."""
    changes: dict[str, Any] = {
        "target_modules": tuple(name for name in found.updates if name in found.modules),
        "target_parameters": tuple(found.parameters) or None,
        "modules_to_save": tuple(found.saved),
        "trainable_token_indices": found.tokens or None,
        "inference_mode": False,
    }
    if not is_split(found.adapter.config):
        changes["init_lora_weights"] = True  # how it started does not matter any more
    if found.renamed:
        changes |= rank_fields({name: update.rank for name, update in found.updates.items()}, alphas)
    return replace(found.adapter.settings, **changes)


def _keep_vocabulary(model: nn.Module, found: Placement, *, adapter_name: str) -> None:
    """Keeps the network's own embeddings where the file brings others.

    Raises:
        InputError: another adapter brought some already, and this one has others.
    """
    record = record_of(model)
    for name in record.vocabulary[adapter_name]:
        own = record.model.get_parameter(name)
        if torch.equal(own, found.tensors[name].to(own)):
            continue
        for other, names in record.vocabulary.items():
            if other != adapter_name and name in names:
                raise InputError(
                    f"adapter {adapter_name!r} brings other values of {name!r} than adapter {other!r} did; "
                    f"delete {other!r} first"
                )
        record.keep_originals([name])


def _fill(model: nn.Module, found: Placement, *, adapter_name: str, strict: bool) -> None:
    """Copies the tensors in; whatever the network has and the file has not is an error, or keeps its value."""
    state = adapter_state_dict(model, adapter_name=adapter_name)
    live = {key.removeprefix(PREFIX): tensor for key, tensor in state.items()}
    lacking = [name for name in live if name not in found.tensors]
    foreign = [name for name in found.tensors if name not in live]
    if strict and (lacking or foreign):
        raise InputError(
            f"the adapter does not fit this {type(model).__name__}: {len(lacking)} tensors are missing, "
            f"{lacking[:3]}, and {len(foreign)} unexpected, {foreign[:3]}"
        )
    with torch.no_grad():
        for name, tensor in found.tensors.items():
            if name in live:
                live[name].copy_(tensor)
        for name in lacking:
            if split_key(name)[1] is not None:
                live[name].zero_()  # inject left it empty


def _freeze(model: nn.Module, adapter_name: str) -> None:
    record = record_of(model)
    for part in record.parts:
        part.set_adapter(record.active, inference_mode=True)
    for name in record.biases.get(adapter_name, ()):
        record.model.get_parameter(name).requires_grad_(False)
