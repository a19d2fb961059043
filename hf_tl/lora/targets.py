"""Which modules of a network get an adapter, and at which rank."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from torch import nn

from hf_tl.architectures import (
    CONVOLUTIONS,
    is_convolution,
    is_fully_connected,
    is_transformers,
)
from hf_tl.errors import InputError
from hf_tl.layers import list_layers, select_layers
from hf_tl.lora.adapted import parameter_names
from hf_tl.lora.config import ALL_LINEAR, LoraConfig
from hf_tl.lora.linear import computes_otherwise
from hf_tl.names import (
    block_number,
    closest,
    closest_module,
    is_inside,
    match_pattern,
    peft_matcher,
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
    chosen = once(modules, [n for n in chosen if within is None or n in within])
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
        found = _expert_parameters(modules)
        reason = config.unfit_for_parameters
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


def _expert_parameters(modules: Mapping[str, nn.Module]) -> list[str]:
    """The stacked matrices of the experts of mixtures, by name."""
    banks = {n for n, m in modules.items() if n.rpartition(".")[2] == "experts" or "Experts" in type(m).__name__}
    found = [name for name in parameter_names(modules) if name.rpartition(".")[0] in banks]
    return [n for n in found if modules[n.rpartition(".")[0]].get_parameter(n.rpartition(".")[2]).dim() == 3]


def _left_out(modules: Mapping[str, nn.Module], parameters: Sequence[str], *, within: Set[str] | None) -> list[str]:
    """Modules whose stacked matrices no adapter stands beside."""
    taken = {name.rpartition(".")[0] for name in parameters}
    banks = [n for n, module in modules.items() if _holds_experts(module) and ".parametrizations." not in n]
    return [name for name in banks if name not in taken and (within is None or name in within)]


def _narrowing(config: LoraConfig) -> str:
    """The settings that take modules out again, as they were given."""
    fields = ("exclude_modules", "layers_to_transform", "layers_pattern", "layers")
    return " and ".join(f"{name}={value!r}" for name in fields if (value := getattr(config, name)) is not None)


def once(modules: Mapping[str, nn.Module], chosen: Sequence[str]) -> list[str]:
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
    if config.target_modules == ALL_LINEAR and frozen and config.unfit_for_parameters is None:
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
