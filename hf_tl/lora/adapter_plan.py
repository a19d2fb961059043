"""Where an adapter goes: the modules that get factors, those that train in full, and what travels with them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import nn

from hf_tl.architectures import has_running_statistics, is_transformers
from hf_tl.lora.adapted import base_modules
from hf_tl.lora.config import ALL_LINEAR, LoraConfig
from hf_tl.lora.targets import Target, find_targets, in_layers, names_of_experts, once
from hf_tl.lora.trained_modules import (
    bare_parameters,
    covers_new,
    find_head,
    find_new,
    find_tokens,
    output_embeddings,
    resized_vocabulary,
    saved_names,
    ties_to_break,
    whole_names,
)
from hf_tl.names import exact_names, is_inside, peft_saves
from hf_tl.trace import Batch


_PEFT_REFUSES = ("out_proj", "conv1d")  # in networks of Mamba's kind, whose fused kernels read the weights


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
        tokens: name of an embedding, or of the layer before the logits -> its rows that train.
    """

    config: LoraConfig
    targets: Sequence[Target]
    saved: Sequence[str] = ()
    statistics: Sequence[str] = ()
    frozen: Sequence[str] = ()
    vocabulary: Sequence[str] = ()
    tokens: Mapping[str, Sequence[int]] = field(default_factory=dict)


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
        saved = whole_names(modules, [*heads, *new])
    else:
        saved = saved_names(modules, config.modules_to_save)
        new = [name for name in new if not is_inside(name, saved)]
        if new:
            warnings.warn(
                f"the checkpoint has no weights of {', '.join(new)}: what was drawn for them stays frozen, and "
                f"another process draws other values; name them in modules_to_save",
                stacklevel=3,
            )
    bare = bare_parameters(model)
    if bare:
        warnings.warn(
            f"{', '.join(bare)} belong to no module that could be saved: they stay frozen and are not in the "
            "adapter's file; put them into a module of their own to train them",
            stacklevel=3,
        )
    saved = once(modules, saved)
    untied = ties_to_break(modules, saved)
    if untied and config.modules_to_save is not None:
        first, other = next(iter(untied.items()))
        warnings.warn(
            f"{first!r} is the same weight as {other!r} ({len(untied)} such): a copy of it trains in full, and the "
            "two are no longer tied",
            stacklevel=3,
        )
    config = replace(config, modules_to_save=tuple(saved))
    words = output_embeddings(model, modules)
    within = None if config.layers is None else in_layers(model, modules, config.layers, example=example)
    experts = names_of_experts(model)
    targets = find_targets(modules, config, heads=(*heads, *words), within=within, experts=experts)
    if not _found_by_name(config):
        exact = exact_names([target.name for target in targets if not target.is_parameter], modules)
        config = replace(config, target_modules=exact, layers=None, layers_to_transform=None, layers_pattern=None)
    parameters = [target.name for target in targets if target.is_parameter]
    config = replace(config, target_parameters=tuple(parameters) or None)
    refused = [t.name for t in targets if t.name.rpartition(".")[2] in _PEFT_REFUSES and _is_mamba(model)]
    if refused:
        warnings.warn(
            f"PEFT cannot load this adapter: it refuses layers such as {refused[0]!r} in networks of Mamba's kind; "
            "put them into exclude_modules to have it do so",
            stacklevel=3,
        )
    renamed = _renamed_by_peft(model, [target.name for target in targets if not target.is_parameter])
    if renamed:
        first, other = next(iter(renamed.items()))
        warnings.warn(
            f"PEFT cannot load this adapter: it takes {len(renamed)} of its names for those of old checkpoints, such "
            f"as {first!r}, in whose place it looks for {other!r}; merge the adapter first, or put these layers "
            "into exclude_modules",
            stacklevel=3,
        )
    moving = [name for name in with_running_statistics(modules) if not is_inside(name, saved)]
    statistics, frozen = (tuple(moving) if running_statistics == word else () for word in ("save", "freeze"))
    statistics += tuple(_taken_besides(modules, (*saved, *statistics), [target.name for target in targets]))
    tables = {name: model.get_parameter(name) for name in resized_vocabulary(model) if not is_inside(name, saved)}
    vocabulary = [name for name, table in tables.items() if next(n for n, t in tables.items() if t is table) == name]
    tokens = find_tokens(model, modules, config.trainable_token_indices)
    config = replace(config, trainable_token_indices=tokens or None)
    whole = {id(modules[name].get_parameter("weight")) for name, rows in tokens.items() if covers_new(model, rows)}
    vocabulary = [name for name in vocabulary if id(tables[name]) not in whole]
    if vocabulary:
        warnings.warn(
            f"the vocabulary has another size than that of {model.name_or_path!r}: {', '.join(vocabulary)} is saved "
            f"with the adapter but frozen; name its module in modules_to_save to train it, or its new rows in "
            "trainable_token_indices to have these alone train and travel",
            stacklevel=3,
        )
    return Plan(config, targets, tuple(saved), statistics, frozen, vocabulary, tokens)


def _taken_besides(modules: Mapping[str, nn.Module], saved: Sequence[str], targets: Sequence[str]) -> list[str]:
    """What PEFT would look for in the file too, as its names end like those of `saved`; it is saved, and not trained.

    What holds an adapter, or a part of `saved`, cannot be saved whole: a warning names it.
    """
    more = [name for name in peft_saves(modules, saved) if not is_inside(name, saved)] if saved else []
    mixed = [name for name in more if any(is_inside(other, [name]) for other in (*targets, *saved))]
    if mixed:
        warnings.warn(
            f"PEFT cannot load this adapter: by {_ending_of(mixed[0], saved)!r} in modules_to_save it means "
            f"{mixed[0]!r} as well, which stays as it is here; name both in modules_to_save",
            stacklevel=4,
        )
    return [name for name in more if name not in mixed and not is_inside(name, mixed)]


def _ending_of(name: str, saved: Sequence[str]) -> str:
    return next(one for one in saved if name.endswith(one))


def _is_mamba(model: nn.Module) -> bool:
    return is_transformers(model) and model.config.model_type in (
        "falcon_h1",
        "falcon_mamba",
        "mamba",
        "mamba2",
        "nemotron_h",
    )


def _renamed_by_peft(model: nn.Module, names: Sequence[str]) -> dict[str, str]:
    """Layers whose tensors PEFT looks for elsewhere when it loads a file for this network -> where.

    It renames all of a file's keys as transformers renames those of old checkpoints, be they old or not.
    """
    if not is_transformers(model):
        return {}
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    renamings = [change for change in get_model_conversion_mapping(model) if isinstance(change, WeightRenaming)]
    found = {}
    for name in names:
        key = f"{name}.lora_A.weight"
        for renaming in renamings:
            key, _ = renaming.rename_source_key(key)
        if not f"{name}.lora_A.weight".endswith(key):  # PEFT takes back what only shortens a name
            found[name] = key.removesuffix(".lora_A.weight")
    return found


def with_running_statistics(modules: Mapping[str, nn.Module]) -> list[str]:
    """Names of the normalisations whose statistics move during training."""
    return [n for n, m in modules.items() if has_running_statistics(m)]


def _found_by_name(config: LoraConfig) -> bool:
    """Whether any loader finds the same modules from the config as it stands."""
    wanted, blocks = config.target_modules, (config.layers, config.layers_to_transform)
    return wanted is not None and wanted != ALL_LINEAR and blocks == (None, None)
