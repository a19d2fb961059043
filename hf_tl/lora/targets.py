"""Which modules of a network get an adapter, at which rank, and which train in full."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from hf_tl.architectures import (
    CONVOLUTIONS,
    has_running_statistics,
    is_convolution,
    is_fully_connected,
    is_transformers,
)
from hf_tl.errors import InputError
from hf_tl.layers import list_layers, select_layers
from hf_tl.lora.adapted import base_modules
from hf_tl.lora.config import ALL_LINEAR, LoraConfig
from hf_tl.lora.linear import computes_otherwise
from hf_tl.lora.parameter import expert_parameters, parameter_names, refusal
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
from hf_tl.names import (
    block_number,
    closest,
    closest_module,
    exact_names,
    is_inside,
    match_pattern,
    peft_matcher,
    peft_saves,
)
from hf_tl.trace import Batch


ATTENTION = (  # the names of the query and value projections, by family
    ("query", "value"),
    ("q_proj", "v_proj"),
    ("query_proj", "value_proj"),
    ("q_lin", "v_lin"),
    ("q", "v"),
)
FUSED = ("qkv", "c_attn", "query_key_value", "Wqkv", "qkv_proj", "in_proj")
STACKED = ("qkv", "c_attn", "Wqkv", "qkv_proj", "in_proj")  # of those: queries, keys and values one below the other


_PEFT_REFUSES = ("out_proj", "conv1d")  # in networks of Mamba's kind, whose fused kernels read the weights


@dataclass(frozen=True)
class Target:
    """One module that gets an adapter.

    Attributes:
        name: its name in the network.
        rank: of the update.
        alpha: lora_alpha of this module.
        parts: of a fused projection, the adapted thirds as letters of "qkv"; None for all of it.
        is_parameter: whether it is a parameter of a module, and no module.
    """

    name: str
    rank: int
    alpha: float
    parts: str | None = None
    is_parameter: bool = False


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
    tokens: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)


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
    saved = _once(modules, saved)
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


def find_targets(
    modules: Mapping[str, nn.Module],
    config: LoraConfig,
    *,
    heads: Sequence[str] = (),
    within: Set[str] | None = None,
    experts: Set[str] = frozenset(),
) -> list[Target]:
    """The modules that the config chooses, in the network's order, with rank and alpha.

    Args:
        modules: the network's modules by name (`base_modules`).
        config: what to adapt, with whole names in `modules_to_save`.
        heads: names of modules that "all-linear" and the defaults spare, beside `modules_to_save`.
        within: names of the modules in the layers that the config keeps to (`in_layers`); None for all.
        experts: last names that a file cannot hold for this network (`names_of_experts`).

    Raises:
        InputError: nothing is chosen, or a module that other loaders would take for experts.
    """
    saved = config.modules_to_save or ()
    named = _named(modules, config, heads=(*heads, *saved), saved=saved, experts=experts)
    excluded = peft_matcher(config.exclude_modules or ())
    chosen = [n for n in named if not excluded(n) and _in_blocks(n, config)]
    if chosen and within is not None and within.isdisjoint(chosen):
        raise InputError(
            f"layers={config.layers!r} holds none of the {len(chosen)} modules that "
            f"target_modules={config.target_modules!r} chooses; the first of them is {chosen[0]!r}"
        )
    chosen = _once(modules, [n for n in chosen if within is None or n in within])
    parameters = _chosen_parameters(modules, config, within=within)
    if not chosen and not parameters:
        wanted, names = config.target_modules or (), [name for name in modules if name]
        whole = [name for name in saved if wanted not in ((), ALL_LINEAR) and peft_matcher(wanted)(name)]
        if config.target_modules is None:
            whole = list(saved) if default_targets(modules) else []
        if whole:
            raise InputError(
                f"target_modules={wanted!r} chooses only modules that train in full ({', '.join(whole)}); "
                "leave them out of modules_to_save, () for none, or choose others"
            )
        if named:
            raise InputError(
                f"{_narrowing(config)} leaves none of the {len(named)} modules that target_modules chooses, the first "
                f"of which is {named[0]!r}"
            )
        if wanted == ALL_LINEAR:
            raise InputError("target_modules='all-linear': there is no linear layer but in the head; leave it out")
        first = wanted if isinstance(wanted, str) else next(iter(wanted), "")
        raise InputError(
            f"target_modules={config.target_modules!r} chooses none of the {len(names)} modules; "
            f"{closest_module(first, names)}"
        )
    _warn_of_idle_words(modules, config, [*chosen, *parameters], frozen=_left_out(modules, parameters, within=within))
    targets = [
        Target(
            name,
            match_pattern(config.rank_pattern, name, default=config.r),
            match_pattern(config.alpha_pattern, name, default=config.lora_alpha),
            is_parameter=name in parameters,
        )
        for name in (*chosen, *parameters)
    ]
    parts = config.fused_parts
    if parts is None:
        return targets
    if parameters:
        raise InputError(f"fused_parts={parts!r} is for layers, not for parameters such as {parameters[0]!r}")
    return [_part(t, modules[t.name], parts, config.use_rslora) for t in targets]


def _chosen_parameters(modules: Mapping[str, nn.Module], config: LoraConfig, *, within: Set[str] | None) -> list[str]:
    """The parameters that target_parameters chooses, or with "all-linear" the stacked experts, in the modules' order.

    Raises:
        InputError: a name of target_parameters that is no parameter's of two or three axes.
    """
    wanted, excluded = config.target_parameters, peft_matcher(config.exclude_modules or ())
    if wanted:
        known = parameter_names(modules)
        for word in wanted:
            if not any(map(peft_matcher([word]), known)):
                raise InputError(
                    f"target_parameters names {word!r}, which is no parameter of two or three axes; "
                    f"{closest(word, known)}"
                )
        found = list(filter(peft_matcher(wanted), known))
    elif config.target_modules == ALL_LINEAR:
        found = expert_parameters(modules)
        reason = refusal(config)
        if found and reason is not None:
            warnings.warn(
                f"{len(found)} parameters of stacked experts such as {found[0]!r} are left out: {reason} is not for "
                "them; leave it out to adapt them",
                stacklevel=5,
            )
            found = []
    else:
        return []
    owners = {name: name.rpartition(".")[0] for name in found}
    kept = [n for n in found if not excluded(n) and not excluded(owners[n]) and _in_blocks(n, config)]
    return [
        n
        for n in kept
        if (within is None or owners[n] in within) and not is_inside(owners[n], config.modules_to_save or ())
    ]


def _left_out(modules: Mapping[str, nn.Module], parameters: Sequence[str], *, within: Set[str] | None) -> list[str]:
    """Modules whose stacked matrices no adapter stands beside."""
    taken = {name.rpartition(".")[0] for name in parameters}
    banks = [n for n, module in modules.items() if _holds_experts(module) and ".parametrizations." not in n]
    return [name for name in banks if name not in taken and (within is None or name in within)]


def _is_mamba(model: nn.Module) -> bool:
    return is_transformers(model) and model.config.model_type in (
        "falcon_h1",
        "falcon_mamba",
        "mamba",
        "mamba2",
        "nemotron_h",
    )


def _narrowing(config: LoraConfig) -> str:
    """The settings that take modules out again, as they were given."""
    fields = ("exclude_modules", "layers_to_transform", "layers_pattern", "layers")
    return " and ".join(f"{name}={value!r}" for name in fields if (value := getattr(config, name)) is not None)


def _once(modules: Mapping[str, nn.Module], chosen: Sequence[str]) -> list[str]:
    """The first name of each module, and a warning of those that have several, of which PEFT changes the first."""
    first: dict[int, str] = {}
    again = {n: first[id(m)] for n, m in modules.items() if first.setdefault(id(m), n) != n}
    shared = [name for name in again if name in chosen or again[name] in chosen]
    if shared:
        warnings.warn(
            f"{shared[0]!r} is the same layer as {again[shared[0]]!r} ({len(shared)} such): what trains there acts "
            "wherever the layer stands, and in PEFT at the first place only; merge it for others than hf_tl",
            stacklevel=5,
        )
    return list(dict.fromkeys(again.get(name, name) for name in chosen))


def _named(
    modules: Mapping[str, nn.Module],
    config: LoraConfig,
    *,
    heads: Sequence[str],
    saved: Sequence[str],
    experts: Set[str],
) -> list[str]:
    """What target_modules chooses."""
    wanted = config.target_modules
    taken = [n for n, m in modules.items() if n.rpartition(".")[2] in experts and _is_dense(m)]
    if wanted is None:
        return default_targets(modules, heads=(*heads, *taken))
    free = [n for n in modules if n and not _hidden(n, modules)]
    if wanted == ALL_LINEAR:
        if taken:
            warnings.warn(
                f"{len(taken)} layers such as {taken[0]!r} are left out: PEFT and transformers take "
                f"{', '.join(sorted(experts))} in a file for this kind of network for its experts, so that a file "
                "could not hold them",
                stacklevel=5,
            )
        return [n for n in free if _is_dense(modules[n]) and not is_inside(n, (*heads, *taken))]
    matches = peft_matcher(wanted)
    chosen = [n for n in free if matches(n) and not is_inside(n, saved)]
    excluded = peft_matcher(config.exclude_modules or ())
    lost = next((n for n in taken if n in chosen and not excluded(n)), None)
    if lost is not None:
        raise InputError(
            f"target_modules chooses {lost!r}, but PEFT and transformers take {', '.join(sorted(experts))} in a file "
            "for this kind of network for its experts, so that a file could not hold it; put these names into "
            "exclude_modules, and adapt the experts by target_parameters"
        )
    return chosen


def names_of_experts(model: nn.Module) -> frozenset[str]:
    """Last names of layers that PEFT and transformers take for experts when they load a file for this network.

    The experts of a mixture were layers of their own, and are one stacked parameter since transformers 5. Where a file
    names such a layer, be it a shared expert or the dense MLP of the first blocks, they adapt the stacked parameter.
    """
    if not is_transformers(model):
        return frozenset()
    from transformers.conversion_mapping import get_model_conversion_mapping

    old = [name for change in get_model_conversion_mapping(model) for name in change.source_patterns]
    found = {name.removesuffix(".weight").rpartition(".")[2] for name in old if ".experts." in name}
    return frozenset(found | {"gate"} if found else ())


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


def _warn_of_idle_words(
    modules: Mapping[str, nn.Module], config: LoraConfig, chosen: Sequence[str], *, frozen: Sequence[str]
) -> None:
    """Names every word of the config that matches nothing, as a misspelt one does."""
    names = [name for name in modules if name]
    idle = []
    for field in ("target_modules", "exclude_modules"):
        words = getattr(config, field)
        if words is not None and words != ALL_LINEAR:
            parts = field == "exclude_modules" and (config.target_parameters or config.target_modules == ALL_LINEAR)
            among = [*names, *parameter_names(modules)] if parts else names
            for word in [words] if isinstance(words, str) else words:
                if not any(map(peft_matcher(words if isinstance(words, str) else [word]), among)):
                    idle.append((field, word, names if "." in word else sorted({n.rpartition(".")[2] for n in names})))
    for field in ("rank_pattern", "alpha_pattern"):
        for word in getattr(config, field):
            if not any(match_pattern({word: True}, name, default=False) for name in chosen):
                idle.append((field, word, list(chosen)))
    blocks = {_block(name, config) for name in names} if _indices(config) else set()
    for index in _indices(config):
        if index not in blocks:
            idle.append(("layers_to_transform", str(index), [str(block) for block in blocks if block is not None]))
    for word in _lists(config):
        if all(block_number(f"{name}.", word) is None for name in names):
            idle.append(("layers_pattern", word, sorted({part for name in names for part in name.split(".")})))
    for field, word, near in idle:
        warnings.warn(f"{word!r} in {field} matches nothing in the network; {closest(word, near)}", stacklevel=5)
    if config.target_modules == ALL_LINEAR and frozen and refusal(config) is None:
        warnings.warn(
            f"the weights of {len(frozen)} modules such as {frozen[0]!r} are stacked, as those of experts are, and "
            "stay frozen; name them in target_parameters to adapt them",
            stacklevel=5,
        )


def _holds_experts(module: nn.Module) -> bool:
    """True for a module with matrices stacked in a parameter of its own, and no convolution."""
    own = [parameter for _, parameter in module.named_parameters(recurse=False)]
    return not is_convolution(module) and any(p.dim() == 3 and min(p.shape) > 1 for p in own)


def default_targets(modules: Mapping[str, nn.Module], *, heads: Sequence[str] = ()) -> list[str]:
    """What is adapted where the config does not say.

    The queries and values of attention, or its fused projection (what PEFT's table says for text models); if these
    lie in less than half of the network's blocks, every linear layer too; if that does not do either, every ungrouped
    convolution after the first. A stage of the network that would go without, while others like it do not, gets its
    linear layers or else its convolutions.
    """
    body = [n for n in modules if n and not is_inside(n, heads) and not _hidden(n, modules)]
    linear = [n for n in body if _is_dense(modules[n])]
    convolutions = [n for n in body if isinstance(modules[n], CONVOLUTIONS)]
    whole = [n for n in convolutions[1:] if modules[n].groups == 1]
    endings = {ending for family in (*ATTENTION, FUSED) for ending in family}
    attention = [n for n in linear if n.rpartition(".")[2] in endings or isinstance(modules[n], nn.MultiheadAttention)]
    blocks = {_stem(n) for n in (*linear, *convolutions[1:])} - {""}
    found: set[str] = set()
    for tier in (attention, linear, whole):
        found |= set(tier)
        if found and 2 * len({_stem(n) for n in found} - {""}) >= len(blocks):
            break
    reached = {_stage(n) for n in found}
    lists = {stage for stage, _ in reached} - {""}
    for tier in (linear, whole):
        left: dict[tuple[str, str], list[str]] = {}
        for n in tier:
            if _stage(n)[0] in lists and _stage(n) not in reached:
                left.setdefault(_stage(n), []).append(n)
        more = {stage: names for stage, names in left.items() if len(names) > 1}  # one is a step between two stages
        found |= {n for names in more.values() for n in names}
        reached |= more.keys()
    return [n for n in body if n in found]


def _stem(name: str) -> str:
    """The block that a module lies in: its name up to the last number; "" for none."""
    found = re.match(r"(.*\.|)\d+(?=\.)", name)
    return found.group() if found else ""


def _stage(name: str) -> tuple[str, str]:
    """The outermost list that a module lies in, and its place there: ("layers", "2"); ("", "") for none."""
    found = re.match(r"(.*?)\.?(\d+)\.", name)
    return (found.group(1), found.group(2)) if found else ("", "")


def in_layers(
    model: nn.Module, modules: Mapping[str, nn.Module], selection: str, *, example: Batch | None = None
) -> set[str]:
    """Names of the modules that lie in the layers that a selection names (`hf_tl.select_layers`).

    Args:
        model: the network, which runs once to have its layers found.
        modules: its modules by name (`base_modules`).
        selection: such as "50%.., head".
        example: a batch that it accepts; made up for networks of transformers and timm.

    Raises:
        InputError: a selection that is malformed or names nothing, with a pointer into it.
    """
    chosen = select_layers(list_layers(model, example=example), selection)
    inside = {id(part) for layer in chosen for _, module in layer.modules for part in module.modules()}
    return {name for name, module in modules.items() if id(module) in inside}


def with_running_statistics(modules: Mapping[str, nn.Module]) -> list[str]:
    """Names of the normalisations whose statistics move during training."""
    return [n for n, m in modules.items() if has_running_statistics(m)]


def _is_dense(module: nn.Module) -> bool:
    linear = is_fully_connected(module) and not computes_otherwise(module)
    return linear or isinstance(module, nn.MultiheadAttention)


def _hidden(name: str, modules: Mapping[str, nn.Module]) -> bool:
    """Whether no adapter acts beside a module: the output projection of a torch attention, which is adapted with the
    attention, if at all, and what computes a parametrised weight."""
    parent, _, child = name.rpartition(".")
    inside = child == "out_proj" and isinstance(modules.get(parent), nn.MultiheadAttention)
    return inside or ".parametrizations." in name


def _part(target: Target, module: nn.Module, parts: str, use_rslora: bool) -> Target:
    kind = target.name.rpartition(".")[2]
    rows, columns = (0, 0)
    if is_fully_connected(module):
        weight = module.get_parameter("weight")
        rows, columns = weight.shape if isinstance(module, nn.Linear) else weight.shape[::-1]
    if kind not in STACKED or rows != 3 * columns:
        raise InputError(
            f"fused_parts={parts!r} needs projections of queries, keys and values one below the other "
            f"(named {', '.join(STACKED)}), but target_modules chooses {target.name!r} ({rows} x {columns})"
        )
    n = len(parts)
    scaled = target.alpha * (n**0.5 if use_rslora else n)  # the scaling stays that of one part
    return Target(target.name, target.rank * n, scaled, parts)


def _indices(config: LoraConfig) -> list[int]:
    wanted = config.layers_to_transform
    return [] if wanted is None else [wanted] if isinstance(wanted, int) else list(wanted)


def _in_blocks(name: str, config: LoraConfig) -> bool:
    return config.layers_to_transform is None or _block(name, config) in _indices(config)


def _block(name: str, config: LoraConfig) -> int | None:
    """The index of the block that a module lies in, in the list that layers_pattern names; None outside of it."""
    patterns: list[str | None] = [*_lists(config)] or [None]
    return next((number for pattern in patterns if (number := block_number(name, pattern)) is not None), None)


def _lists(config: LoraConfig) -> list[str]:
    """What layers_pattern names."""
    pattern = config.layers_pattern or ()
    return [pattern] if isinstance(pattern, str) else list(pattern)


def _found_by_name(config: LoraConfig) -> bool:
    """Whether any loader finds the same modules from the config as it stands."""
    wanted, blocks = config.target_modules, (config.layers, config.layers_to_transform)
    return wanted is not None and wanted != ALL_LINEAR and blocks == (None, None)
