"""load_adapter: a saved adapter onto a network, at the places that the file's own tensors name."""

from __future__ import annotations

import warnings
from dataclasses import fields
from pathlib import Path

import torch
from torch import nn

from hf_tl.errors import InputError
from hf_tl.lora.adapter import Adapter, read_adapter
from hf_tl.lora.adapter_config import is_split
from hf_tl.lora.config import LoraConfig
from hf_tl.lora.inject import Plan, inject
from hf_tl.lora.merge import delete_adapter
from hf_tl.lora.placement import Placement, place
from hf_tl.lora.record import PREFIX, RECORD, adapter_state_dict, record_of
from hf_tl.lora.resize import rank_fields
from hf_tl.lora.targets import Target


def load_adapter(
    model: nn.Module,
    folder: str | Path,
    *,
    adapter: str = "default",
    revision: str | None = None,
    strict: bool = True,
    trainable: bool = False,
) -> nn.Module:
    """Puts a saved adapter on a network, changed in place, and makes it the one that runs.

    Layers are found by the names of the tensors, ranks are those of the tensors, and names from before
    transformers 5 are translated. A load that fails leaves the network as it was.

    Args:
        model: the network that the adapter was trained on, with or without other adapters.
        folder: what `save_adapter`, PEFT or transformers wrote; or "user/name", a repository of the Hub.
        adapter: its name on the network.
        revision: branch, tag or commit of a repository; None for main.
        strict: whether everything in the file must have its place, and every place its tensor. Where False, what
            does not fit is left out with a warning.
        trainable: whether it can go on training; otherwise nothing of it has a gradient.

    Returns:
        the same model.

    Raises:
        InputError: files that cannot be had, are damaged or of another method than LoRA, or, in one sentence, all
            that is missing, unexpected or of another shape, each with the nearest name in the network.
    """
    saved = read_adapter(folder, revision=revision)
    return put_adapter(model, saved, adapter=adapter, strict=strict, trainable=trainable)


def put_adapter(
    model: nn.Module, saved: Adapter, *, adapter: str = "default", strict: bool = True, trainable: bool = False
) -> nn.Module:
    """`load_adapter` for an adapter that is in memory."""
    found = place(saved, model)
    complaint = found.complaint(saved, model)
    if complaint and strict:
        raise InputError(f"{complaint}; load_adapter(..., strict=False) loads the rest")
    if not found.updates:
        raise InputError(f"adapter {saved.folder!r} has no layer that this {type(model).__name__} has")
    if complaint:
        warnings.warn(f"left out of the load: {complaint}", stacklevel=3)
    record = model.__dict__.get(RECORD)
    if record is not None and any(layer.merged_adapters for layer in record.layers.values()):
        raise InputError("adapters are merged into the weights; call unmerge_adapter before loading another")
    targets = [Target(name, update.rank, found.alphas[name]) for name, update in found.updates.items()]
    plan = Plan(_config(saved, found), targets, tuple(found.saved))
    inject(model, plan, adapter_name=adapter, empty=not is_split(saved.config))
    try:
        _fill(model, found, adapter=adapter, strict=strict)
    except BaseException:
        delete_adapter(model, adapter_names=[adapter])
        raise
    if not trainable:
        _freeze(model, adapter)
    return model


def _freeze(model: nn.Module, adapter: str) -> None:
    record = record_of(model)
    for part in (*record.layers.values(), *record.saved.values()):
        part.set_adapter(record.active, inference_mode=True)
    for name in record.biases.get(adapter, ()):
        record.model.get_parameter(name).requires_grad_(False)


def _config(saved: Adapter, found: Placement) -> LoraConfig:
    """The file's settings in the network's names; which layers they choose is settled already."""
    known = {field.name for field in fields(LoraConfig)}
    chosen = {name: value for name, value in saved.config.items() if name in known and value is not None}
    for name in ("exclude_modules", "layers_to_transform", "layers_pattern"):
        chosen.pop(name, None)
    chosen["target_modules"] = tuple(found.updates)
    chosen["modules_to_save"] = tuple(found.saved)
    if not is_split(saved.config):
        chosen["init_lora_weights"] = True  # how it started does not matter any more
    if found.renamed:
        ranks = {name: update.rank for name, update in found.updates.items()}
        scales = {name: update.scale for name, update in found.updates.items()}
        chosen = rank_fields(chosen, ranks, scales)
    return LoraConfig(**{**chosen, "inference_mode": False})


def _fill(model: nn.Module, found: Placement, *, adapter: str, strict: bool) -> None:
    """Copies the tensors in; whatever the network has and the file has not is an error, or keeps its value."""
    live = {
        key.removeprefix(PREFIX): tensor for key, tensor in adapter_state_dict(model, adapter_name=adapter).items()
    }
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
        parameters = dict(model.named_parameters()) if found.base else {}
        for name, tensor in found.base.items():
            owner, _, part = name.rpartition(".")
            own = parameters.get(name, parameters.get(f"{owner}.base_layer.{part}"))
            if own is not None and not torch.equal(own, tensor.to(own)):
                own.copy_(tensor)
