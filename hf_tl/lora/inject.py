"""add_lora: a network with adapters, the same object changed in place; adapted.py says what it leaves there.

`inject(model, plan, adapter_name=NAME)` is the lower half: it puts adapters where a `Plan` says, whatever chose the
places, so that a loader can follow the keys it found (`empty=True` skips the initialisation of values that a
checkpoint is about to give).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from hf_tl.architectures import CONVOLUTIONS, is_fully_connected, is_transformers
from hf_tl.errors import InputError
from hf_tl.example import dummy_batch
from hf_tl.lora.adapted import RECORD, AdapterRecord, base_modules, check_new_name, find_network, set_adapter
from hf_tl.lora.attention import LoraAttention
from hf_tl.lora.config import ALL_LINEAR, LoraConfig
from hf_tl.lora.convolution import LoraConv
from hf_tl.lora.embedding_table import LoraEmbedding
from hf_tl.lora.layer import LoraLayer
from hf_tl.lora.linear import LoraLinear
from hf_tl.lora.merge import delete_adapter
from hf_tl.lora.saved import SavedModule
from hf_tl.lora.targets import (
    Target,
    find_head,
    find_new,
    find_targets,
    in_layers,
    output_embeddings,
    resized_vocabulary,
    saved_names,
    with_running_statistics,
)
from hf_tl.lora.trainer import follow_trainer
from hf_tl.names import exact_names, is_inside
from hf_tl.trace import Batch, evaluating, forward


KINDS = "nn.Linear, Conv1D of transformers, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding, nn.MultiheadAttention"


@dataclass(frozen=True)
class Plan:
    """Where an adapter goes.

    Attributes:
        config: its settings.
        targets: the modules that get factors.
        saved: names of the modules that train in full.
        statistics: names of the normalisations that are saved for their running statistics alone.
        frozen: names of the normalisations whose running statistics are to stand still.
        vocabulary: names of the weights of embeddings that travel with the adapter.
    """

    config: LoraConfig
    targets: Sequence[Target]
    saved: Sequence[str] = ()
    statistics: Sequence[str] = ()
    frozen: Sequence[str] = ()
    vocabulary: Sequence[str] = ()


def add_lora(
    model: nn.Module,
    config: LoraConfig,
    *,
    adapter_name: str = "default",
    example: Batch | None = None,
    running_statistics: Literal["save", "freeze", "ignore"] = "save",
) -> nn.Module:
    """Puts a new adapter on the network, changed in place, and makes it the one that runs and trains.

    Everything else is frozen, but for the biases and `modules_to_save` of the config. The output stays what it
    was, except with the init "random".

    Args:
        model: any network; transformers' and timm's classifiers have their head found and trained in full.
        config: what to adapt and how.
        adapter_name: its name.
        example: a batch for a network of your own making, whose head and layers are then found by tracing it.
        running_statistics: what becomes of the means and variances that batch normalisations collect in
            training: "save" them with the adapter, "freeze" them at those of the frozen network, or "ignore" that
            they move and are lost, as PEFT does.

    Returns:
        the same model.

    Raises:
        InputError: the config chooses no module, or one of a kind that cannot be adapted. The network is then what
            it was.
    """
    network = find_network(model)
    plan = plan_adapter(network, config, example=example, running_statistics=running_statistics)
    batch = _dummy_batch(network) if example is None else example
    inject(network, plan, adapter_name=adapter_name)
    idle = [] if batch is None else _idle_layers(network, adapter_name, batch)
    if len(idle) == len(plan.targets):
        delete_adapter(network, [adapter_name])
    if idle:
        message = (
            f"{len(idle)} of {len(plan.targets)} adapted layers, such as {idle[0]!r}, are never called: the network "
            "reads their weights by itself, or does not run them"
        )
        if len(idle) == len(plan.targets):
            raise InputError(f"{message}; choose others in target_modules")
        warnings.warn(f"{message}; their adapters do not train", stacklevel=2)
    return model


def _dummy_batch(network: nn.Module) -> Batch | None:
    try:
        return dummy_batch(network, n=1)
    except InputError:  # it does not tell what it reads
        return None


def _idle_layers(network: nn.Module, adapter: str, batch: Batch) -> list[str]:
    """Names of the layers with the adapter that one forward pass did not call; [] where it came to no end."""
    called: set[nn.Module] = set()
    held = {name: layer for name, layer in vars(network)[RECORD].layers.items() if adapter in layer.r}
    outer = {name: layer for name, layer in held.items() if ".base_layer." not in name}
    handles = [layer.register_forward_pre_hook(lambda layer, args: called.add(layer)) for layer in outer.values()]
    try:
        with evaluating(network), torch.no_grad(), torch.random.fork_rng():
            forward(network, batch)
    except Exception:  # a dummy input is a guess, and a network may refuse it in any way
        return []
    finally:
        for handle in handles:
            handle.remove()
    return [name for name, layer in outer.items() if layer not in called]


def plan_adapter(
    model: nn.Module,
    config: LoraConfig,
    *,
    example: Batch | None = None,
    running_statistics: Literal["save", "freeze", "ignore"] = "ignore",
) -> Plan:
    """Where add_lora would put an adapter; nothing is changed."""
    modules = base_modules(model)
    heads, new = find_head(model, modules, example=example), find_new(model, modules)
    if config.modules_to_save is None:
        saved = [*heads, *(name for name in new if not is_inside(name, heads))]
    else:
        saved = saved_names(modules, config.modules_to_save)
        _warn_of_new([name for name in new if not is_inside(name, saved)])
    config = replace(config, modules_to_save=tuple(saved))
    words = output_embeddings(model, modules)
    within = None if config.layers is None else in_layers(model, modules, config.layers, example=example)
    targets = find_targets(modules, config, heads=(*heads, *words), within=within)
    if not _found_by_name(config):
        exact = exact_names([target.name for target in targets], modules)
        config = replace(config, target_modules=exact, layers=None, layers_to_transform=None, layers_pattern=None)
    moving = [name for name in with_running_statistics(modules) if not is_inside(name, saved)]
    statistics, frozen = (tuple(moving) if running_statistics == word else () for word in ("save", "freeze"))
    vocabulary = [name for name in resized_vocabulary(model) if not is_inside(name, saved)]
    if vocabulary:
        warnings.warn(
            f"the vocabulary has another size than that of {model.name_or_path!r}: {', '.join(vocabulary)} is saved "
            f"with the adapter but frozen; name its module in modules_to_save to train it",
            stacklevel=3,
        )
    return Plan(config, targets, tuple(saved), statistics, frozen, vocabulary)


def inject(model: nn.Module, plan: Plan, *, adapter_name: str = "default", empty: bool = False) -> nn.Module:
    """Puts adapters where the plan says, in place; see add_lora.

    Args:
        model: the network.
        plan: the places.
        adapter_name: the adapter's name.
        empty: leave the new tensors uninitialised for a checkpoint that is about to fill them.

    Raises:
        InputError: an adapter of this name, adapters that are merged, or a layer that cannot take this one; the
            network is then what it was.
    """
    record = vars(model).get(RECORD) or AdapterRecord(model)
    _check(record, plan, adapter_name)
    layers, saved = _make(record, plan, adapter_name, empty=empty)  # the last that can refuse; nothing is in place
    if not record.configs:
        setattr(model, RECORD, record)
        record.freeze()
        record.watch_inputs()
    record.put({name: layer for name, layer in layers.items() if name not in record.layers})
    record.put({name: module for name, module in saved.items() if name not in record.saved})
    record.layers |= layers
    record.saved |= saved
    for name in plan.frozen:
        record.freeze_statistics(model.get_submodule(name))
    base = plan.config.base_model_name_or_path
    if base is None and is_transformers(model):
        base = model.name_or_path or None  # the Hub id or folder that it was loaded from
    record.configs[adapter_name] = replace(
        plan.config, modules_to_save=tuple(saved) or None, base_model_name_or_path=base
    )
    record.keep_biases(adapter_name)
    record.add_vocabulary(adapter_name, plan.vocabulary)
    set_adapter(model, adapter_name)
    follow_trainer(model)
    return model


def wrap(module: nn.Module, name: str) -> LoraLayer:
    """The layer that holds adapters beside a module.

    Args:
        module: what stands in the network.
        name: where, for the message.

    Raises:
        InputError: a kind that cannot be adapted.
    """
    if is_fully_connected(module) and not isinstance(module, nn.Bilinear):
        return LoraLinear(module)
    if isinstance(module, nn.Embedding):
        return LoraEmbedding(module)
    if isinstance(module, nn.MultiheadAttention):
        return LoraAttention(module)
    if not isinstance(module, CONVOLUTIONS):
        raise InputError(
            f"target_modules chooses {name!r}, a {type(module).__name__}, but adapters are made for {KINDS}; "
            "name modules of those kinds, or put it into exclude_modules"
        )
    kind = next(kind for kind in CONVOLUTIONS if isinstance(module, kind))
    if type(module).forward is not kind.forward:
        raise InputError(
            f"{name!r} is a {type(module).__name__} with a convolution of its own making, beside which an adapter "
            "would read another input; put it into exclude_modules"
        )
    return LoraConv(module)


def _warn_of_new(names: Sequence[str]) -> None:
    if names:
        warnings.warn(
            f"the checkpoint has no weights of {', '.join(names)}: what was drawn for them stays frozen, and another "
            f"process draws other values; name them in modules_to_save",
            stacklevel=4,
        )


def _check(record: AdapterRecord, plan: Plan, adapter: str) -> None:
    config = plan.config
    check_new_name(record, adapter)
    if record.is_merged:
        raise InputError("adapters are merged into the weights; call unmerge_adapter before adding another")
    if config.bias != "none" and any(other.bias != "none" for other in record.configs.values()):
        raise InputError(f"bias={config.bias!r} cannot be shared by two adapters; use bias='none' for one of them")
    for target in plan.targets:
        if is_inside(target.name, record.saved):
            raise InputError(
                f"{target.name!r} is to be adapted, but trains in full with another adapter; "
                "put it into exclude_modules, or make the other with modules_to_save=()"
            )
    for name in (*plan.saved, *plan.statistics):
        inner = next((layer for layer in record.layers if is_inside(layer, [name])), None)
        if inner is not None:
            raise InputError(
                f"{name!r} is to train in full, but another adapter adapts {inner!r}; "
                "leave it out of modules_to_save, or give the other exclude_modules"
            )


def _make(
    record: AdapterRecord, plan: Plan, adapter: str, *, empty: bool
) -> tuple[dict[str, LoraLayer], dict[str, SavedModule]]:
    """The layers and saved modules with the new adapter, by name; those that are new stand nowhere yet."""
    layers: dict[str, LoraLayer] = {}
    saved: dict[str, SavedModule] = {}
    try:
        for target in plan.targets:
            name = target.name
            layers[name] = layer = record.layers.get(name) or wrap(record.model.get_submodule(name), name)
            if isinstance(layer, LoraAttention):
                layers[f"{name}.base_layer.out_proj"] = layer.output
            parts = (layer, layer.output) if isinstance(layer, LoraAttention) else (layer,)
            for one in parts:
                one.add_adapter(
                    adapter,
                    config=plan.config,
                    rank=target.rank,
                    alpha=target.alpha,
                    parts=target.parts,
                    empty=empty,
                )
        for name in (*plan.saved, *plan.statistics):
            saved[name] = record.saved.get(name) or SavedModule(record.model.get_submodule(name))
            saved[name].add_adapter(adapter, trains=name in plan.saved)
    except BaseException:  # what was on the network before must not keep a part of it
        for before in record.parts:
            before.delete_adapter(adapter)
        raise
    return layers, saved


def _found_by_name(config: LoraConfig) -> bool:
    """Whether any loader finds the same modules from the config as it stands."""
    wanted, blocks = config.target_modules, (config.layers, config.layers_to_transform)
    return wanted is not None and wanted != ALL_LINEAR and blocks == (None, None)
