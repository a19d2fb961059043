"""add_lora: a network with adapters, the same object changed in place; record.py says what it leaves there.

`inject(model, plan, adapter=NAME)` is the lower half: it puts adapters where a `Plan` says, whatever chose the
places, so that a loader can follow the keys it found (`empty=True` skips the initialisation of values that a
checkpoint is about to give).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from hf_tl.errors import InputError
from hf_tl.layers import is_inside
from hf_tl.lora.adapters import set_adapter
from hf_tl.lora.config import ALL_LINEAR, LoraConfig
from hf_tl.lora.kinds import unwrap, wrap
from hf_tl.lora.layers import LoraLayer
from hf_tl.lora.record import RECORD, AdapterRecord
from hf_tl.lora.saved import SavedModule
from hf_tl.lora.targets import (
    Target,
    base_modules,
    exact_targets,
    find_head,
    find_targets,
    output_embeddings,
    saved_names,
    with_running_statistics,
)
from hf_tl.lora.trainer import follow_trainer
from hf_tl.trace import Batch


@dataclass(frozen=True)
class Plan:
    """Where an adapter goes.

    Attributes:
        config: its settings.
        targets: the modules that get factors.
        saved: names of the modules that train in full.
        statistics: names of the normalisations that are saved for their running statistics alone.
    """

    config: LoraConfig
    targets: Sequence[Target]
    saved: Sequence[str] = ()
    statistics: Sequence[str] = ()


def add_lora(
    model: nn.Module,
    config: LoraConfig,
    *,
    adapter: str = "default",
    example: Batch | None = None,
    running_statistics: Literal["save", "freeze", "ignore"] = "save",
) -> nn.Module:
    """Puts a new adapter on the network, changed in place, and makes it the one that runs and trains.

    Everything else is frozen, but for the biases and `modules_to_save` of the config. The output stays what it
    was, except with the init "random".

    Args:
        model: any network; transformers' and timm's classifiers have their head found and trained in full.
        config: what to adapt and how.
        adapter: its name.
        example: a batch for a network of your own making, whose head is then found by tracing it.
        running_statistics: what becomes of the means and variances that batch normalisations collect in
            training: "save" them with the adapter, "freeze" them at those of the frozen network, or "ignore" that
            they move and are lost, as PEFT does.

    Returns:
        the same model.

    Raises:
        InputError: the config chooses no module, or one of a kind that cannot be adapted.
    """
    plan = plan_adapter(model, config, example=example, running_statistics=running_statistics)
    return inject(model, plan, adapter=adapter)


def plan_adapter(
    model: nn.Module,
    config: LoraConfig,
    *,
    example: Batch | None = None,
    running_statistics: Literal["save", "freeze", "ignore"] = "ignore",
) -> Plan:
    """Where add_lora would put an adapter; nothing is changed, but "freeze" sets normalisations to keep still."""
    modules = base_modules(model)
    heads = find_head(model, modules, example=example)
    saved = heads if config.modules_to_save is None else saved_names(modules, config.modules_to_save)
    config = replace(config, modules_to_save=tuple(saved))
    words = output_embeddings(model, modules)
    targets = find_targets(modules, config, heads=(*heads, *words))
    if not _found_by_name(config):
        exact = exact_targets([target.name for target in targets], modules)
        config = replace(config, target_modules=exact, layers_to_transform=None, layers_pattern=None)
    moving = [name for name in with_running_statistics(modules) if not is_inside(name, saved)]
    if running_statistics == "freeze":
        for name in moving:
            modules[name].momentum = 0.0
            modules[name].eval()
    statistics = tuple(moving) if running_statistics == "save" else ()
    return Plan(config, targets, tuple(saved), statistics)


def inject(model: nn.Module, plan: Plan, *, adapter: str = "default", empty: bool = False) -> nn.Module:
    """Puts adapters where the plan says, in place; see add_lora.

    Args:
        model: the network.
        plan: the places.
        adapter: the adapter's name.
        empty: leave the new tensors uninitialised for a checkpoint that is about to fill them.
    """
    if not adapter or "." in adapter:
        raise InputError(f"an adapter's name must be a word without dots, got {adapter!r}")
    record = model.__dict__.get(RECORD)
    if record is None:
        record = AdapterRecord(model)
        record.trained_before = frozenset(n for n, p in model.named_parameters() if p.requires_grad)
    if adapter in record.configs:
        raise InputError(f"there is an adapter {adapter!r} already; choose another name or remove it first")
    config = plan.config
    if config.bias != "none" and any(other.bias != "none" for other in record.configs.values()):
        raise InputError(f"bias={config.bias!r} cannot be shared by two adapters; use bias='none' for one of them")
    layers: dict[str, LoraLayer] = {}
    try:
        for target in plan.targets:
            name = target.name
            layers[name] = record.layers.get(name) or wrap(model.get_submodule(name), name)
            _add(layers[name], adapter, config, target, empty)
    except InputError:  # leave everything as it was
        for name, layer in layers.items():
            if name in record.layers:
                layer.delete_adapter(adapter)
            else:
                unwrap(layer)
        raise
    nested = {f"{n}.base_layer.out_proj": m.base_layer.out_proj for n, m in layers.items() if _is_attention(m)}
    if RECORD not in model.__dict__:
        model.__dict__[RECORD] = record
        model.requires_grad_(False)
        record.watch_inputs()
    for name, layer in layers.items():
        if name not in record.layers:
            record.layers[name] = layer
            record.put(name, layer)
    record.layers.update(nested)
    for name in (*plan.saved, *plan.statistics):
        if name not in record.saved:
            record.saved[name] = SavedModule(model.get_submodule(name))
            record.put(name, record.saved[name])
        record.saved[name].add_adapter(adapter, trains=name in plan.saved)
    saved = (*plan.saved, *plan.statistics)
    record.configs[adapter] = replace(config, modules_to_save=saved or None)
    record.keep_biases(adapter)
    set_adapter(model, adapter)
    follow_trainer(model)
    return model


def _add(layer: LoraLayer, adapter: str, config: LoraConfig, target: Target, empty: bool) -> None:
    parts = [layer, layer.base_layer.out_proj] if _is_attention(layer) else [layer]
    for part in parts:
        part.add_adapter(adapter, config=config, rank=target.rank, alpha=target.alpha, parts=target.parts, empty=empty)


def _found_by_name(config: LoraConfig) -> bool:
    """Whether any loader finds the same modules from the config as it stands."""
    wanted = config.target_modules
    return wanted is not None and wanted != ALL_LINEAR and config.layers_to_transform is None


def _is_attention(layer: nn.Module) -> bool:
    return isinstance(layer.base_layer, nn.MultiheadAttention)
