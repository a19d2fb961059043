"""Which modules of a network get an adapter, at which rank, and which train in full."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from hf_tl.architectures import (
    CONVOLUTIONS,
    auto_class_named,
    find_output_embeddings,
    has_running_statistics,
    is_container,
    is_convolution,
    is_fully_connected,
    is_transformers,
    n_parameters,
)
from hf_tl.errors import InputError
from hf_tl.layers import head_names, list_layers, select_layers
from hf_tl.lora.config import ALL_LINEAR, LoraConfig
from hf_tl.names import closest, is_inside, match_pattern, peft_matcher
from hf_tl.trace import Batch, Trace, trace


if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
    """

    name: str
    rank: int
    alpha: float
    parts: str | None = None


def find_targets(
    modules: Mapping[str, nn.Module],
    config: LoraConfig,
    *,
    heads: Sequence[str] = (),
    within: Set[str] | None = None,
) -> list[Target]:
    """The modules that the config chooses, in the network's order, with rank and alpha.

    Args:
        modules: the network's modules by name (`base_modules`).
        config: what to adapt.
        heads: names of modules that "all-linear" and the defaults spare, beside `modules_to_save`.
        within: names of the modules in the layers that the config keeps to (`in_layers`); None for all.

    Raises:
        InputError: nothing is chosen.
    """
    saved = saved_names(modules, config.modules_to_save or ())
    named = _named(modules, config, heads=(*heads, *saved), saved=saved)
    excluded = peft_matcher(config.exclude_modules or ())
    chosen = [n for n in named if not excluded(n) and _in_blocks(n, config)]
    if chosen and within is not None and within.isdisjoint(chosen):
        raise InputError(
            f"layers={config.layers!r} holds none of the {len(chosen)} modules that "
            f"target_modules={config.target_modules!r} chooses; the first of them is {chosen[0]!r}"
        )
    chosen = [n for n in chosen if within is None or n in within]
    if not chosen:
        wanted, names = config.target_modules or (), [name for name in modules if name]
        first = wanted if isinstance(wanted, str) else next(iter(wanted), "")
        raise InputError(
            f"target_modules={config.target_modules!r} chooses none of the {len(names)} modules; "
            f"{closest(first, names)}"
        )
    _warn_of_idle_words(modules, config, chosen)
    targets = [
        Target(
            name,
            match_pattern(config.rank_pattern, name, default=config.r),
            match_pattern(config.alpha_pattern, name, default=config.lora_alpha),
        )
        for name in chosen
    ]
    parts = config.fused_parts
    return targets if parts is None else [_part(t, modules[t.name], parts, config.use_rslora) for t in targets]


def _named(
    modules: Mapping[str, nn.Module], config: LoraConfig, *, heads: Sequence[str], saved: Sequence[str]
) -> list[str]:
    """What target_modules chooses."""
    wanted = config.target_modules
    if wanted is None:
        return default_targets(modules, heads=heads)
    free = [n for n in modules if n and not _hidden(n, modules)]
    if isinstance(wanted, str) and wanted.lower() == ALL_LINEAR:
        return [n for n in free if _is_dense(modules[n]) and not is_inside(n, heads)]
    matches = peft_matcher(wanted)
    return [n for n in free if matches(n) and not is_inside(n, saved)]


def _warn_of_idle_words(modules: Mapping[str, nn.Module], config: LoraConfig, chosen: Sequence[str]) -> None:
    """Names every word of the config that matches nothing, as a misspelt one does."""
    names = [name for name in modules if name]
    idle = []
    for field in ("target_modules", "exclude_modules"):
        words = getattr(config, field)
        if words is not None and words != ALL_LINEAR:
            for word in [words] if isinstance(words, str) else words:
                if not any(map(peft_matcher(words if isinstance(words, str) else [word]), names)):
                    idle.append((field, word, names if "." in word else sorted({n.rpartition(".")[2] for n in names})))
    for field in ("rank_pattern", "alpha_pattern"):
        for word in getattr(config, field):
            if not any(match_pattern({word: True}, name) for name in chosen):
                idle.append((field, word, list(chosen)))
    blocks = {_block(name, config) for name in names}
    for index in _indices(config):
        if index not in blocks:
            idle.append(("layers_to_transform", str(index), [str(block) for block in blocks if block is not None]))
    for field, word, near in idle:
        warnings.warn(f"{word!r} in {field} matches nothing in the network; {closest(word, near)}", stacklevel=5)
    if config.target_modules == ALL_LINEAR:
        banks = [name for name, module in modules.items() if _holds_experts(module)]
        if banks:
            warnings.warn(
                f"the weights of {len(banks)} modules such as {banks[0]!r} are stacked, as those of experts are, and "
                "stay frozen: hf_tl adapts single layers only",
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
    convolution after the first.
    """
    body = [n for n in modules if n and not is_inside(n, heads) and not _hidden(n, modules)]
    linear = [n for n in body if _is_dense(modules[n])]
    convolutions = [n for n in body if isinstance(modules[n], CONVOLUTIONS)]
    endings = {ending for family in (*ATTENTION, FUSED) for ending in family}
    attention = [n for n in linear if n.rpartition(".")[2] in endings or isinstance(modules[n], nn.MultiheadAttention)]
    blocks = {_stem(n) for n in (*linear, *convolutions[1:])} - {""}
    found: set[str] = set()
    for tier in (attention, linear, [n for n in convolutions[1:] if _is_ungrouped(modules[n])]):
        found |= set(tier)
        if found and 2 * len({_stem(n) for n in found} - {""}) >= len(blocks):
            break
    return [n for n in body if n in found]


def _is_ungrouped(module: nn.Module) -> bool:
    return isinstance(module, CONVOLUTIONS) and module.groups == 1


def _stem(name: str) -> str:
    """The block that a module lies in: its name up to the last number; "" for none."""
    found = re.match(r"(.*\.|)\d+(?=\.)", name)
    return found.group() if found else ""


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


def find_head(model: nn.Module, modules: Mapping[str, nn.Module], *, example: Batch | None = None) -> list[str]:
    """Names of the modules that make up the head of the task, the one part that a new task always has to learn.

    Language models have none: what turns their states into words is tied to the embeddings and knows the task.

    Args:
        model: transformers and timm tell what is outside the backbone.
        modules: the network's modules by name.
        example: a batch for a network of another make, which is traced.
    """
    kind = auto_class_named(type(model).__name__) if is_transformers(model) else None
    if find_output_embeddings(model) is not None or (kind is not None and kind.name == "AutoModel"):
        return []
    record = Trace(modules=list(modules)) if example is None else trace(model, example)
    found = [name for name in head_names(model, record) if any(True for _ in modules[name].parameters())]
    if not found and is_transformers(model):
        found = _children_of_the_task(model)
    return [name for name in found if not is_inside(name, [other for other in found if other != name])]


def _children_of_the_task(model: PreTrainedModel) -> list[str]:
    """The head of a transformers network that is its own base model, such as CLIP's or Whisper's classifiers.

    It is what stands beside other networks of transformers, or else what has an output for each label.
    """
    children = {name: child for name, child in model.named_children() if n_parameters(child)}
    beside = [name for name, child in children.items() if not is_transformers(child)]
    if len(beside) < len(children):
        return beside
    n = model.config.num_labels
    return [name for name, child in children.items() if _last_width(child) == n]


def _last_width(module: nn.Module) -> int | None:
    widths = [m.out_features for m in module.modules() if isinstance(m, nn.Linear)]
    return widths[-1] if widths else None


def find_new(model: nn.Module, modules: Mapping[str, nn.Module]) -> list[str]:
    """Names of the modules with weights of their own that `from_pretrained` drew, as the checkpoint has none.

    BERT's pooler, from a checkpoint of masked words, beside a head; [] where nothing is known of a checkpoint. Then
    the network was made from its configuration, or copied.
    """
    if not is_transformers(model):
        return []
    # not public: transformers marks what it has loaded, so as not to draw it; tests/lora/test_targets.py watches
    loaded = {id(p) for p in model.parameters() if "_is_hf_initialized" in vars(p)}
    resized = resized_vocabulary(model) if loaded else []
    return [
        name
        for name, module in modules.items()
        if any(
            loaded and id(p) not in loaded and f"{name}.{part}" not in resized
            for part, p in module.named_parameters(recurse=False)
        )
    ]


def output_embeddings(model: nn.Module, modules: Mapping[str, nn.Module]) -> list[str]:
    """The name of the layer that turns states into words, if there is one."""
    words = find_output_embeddings(model)
    return [name for name, module in modules.items() if words is not None and module is words]


def resized_vocabulary(model: nn.Module) -> list[str]:
    """Names of the weights of a transformers network's embeddings, where its checkpoint has fewer or more rows.

    Of tied weights the first name; [] where the checkpoint is not on this disk.
    """
    if not is_transformers(model) or not model.name_or_path:
        return []
    from transformers import AutoConfig

    try:
        checkpoint = AutoConfig.from_pretrained(model.name_or_path, local_files_only=True).get_text_config()
        embeddings = model.get_input_embeddings()
    except (OSError, ValueError, KeyError, NotImplementedError):  # it has no name that can be read, or no embeddings
        return []
    size = checkpoint.to_dict().get("vocab_size")
    if not isinstance(embeddings, nn.Embedding) or size in (None, embeddings.num_embeddings):
        return []
    tables = [embeddings, model.get_output_embeddings()]
    return [name for name, p in model.named_parameters() if any(t is not None and p is t.weight for t in tables)]


def saved_names(modules: Mapping[str, nn.Module], wanted: Sequence[str]) -> list[str]:
    """The modules that the names of modules_to_save mean: whole names or their last parts."""
    if not wanted:
        return []
    matches = peft_matcher(tuple(wanted))
    found = [name for name in modules if name and matches(name)]
    for name in wanted:
        if not any(n == name or n.endswith(f".{name}") for n in found):
            raise InputError(f"modules_to_save names {name!r}, which is no module; {closest(name, list(modules))}")
    found = [name for name in found if not is_inside(name, [other for other in found if other != name])]
    return [part for name in found for part in _called(name, modules)]


def _called(name: str, modules: Mapping[str, nn.Module]) -> list[str]:
    """A module's name; of a list or dictionary of modules, which is never called itself, the names of its children."""
    module = modules[name]
    if not is_container(module):
        return [name]
    if next(module.parameters(recurse=False), None) is not None:
        raise InputError(f"modules_to_save names {name!r}, a {type(module).__name__}, which only holds parameters")
    return [part for child, _ in module.named_children() for part in _called(f"{name}.{child}", modules)]


def with_running_statistics(modules: Mapping[str, nn.Module]) -> list[str]:
    """Names of the normalisations whose statistics move during training."""
    return [n for n, m in modules.items() if has_running_statistics(m)]


def _is_dense(module: nn.Module) -> bool:
    return is_fully_connected(module) or isinstance(module, nn.MultiheadAttention)


def _hidden(name: str, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a module is the output projection of a torch attention, which is adapted with it, if at all."""
    parent, _, child = name.rpartition(".")
    return child == "out_proj" and isinstance(modules.get(parent), nn.MultiheadAttention)


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
    pattern = config.layers_pattern
    if not pattern:
        match = re.match(r"(?:.*?\.)?[^.]*\.(\d+)\.", name)
    else:
        lists = [pattern] if isinstance(pattern, str) else pattern
        match = next((m for p in lists if (m := re.match(rf"(?:^|.*?\.){p}\.(\d+)\.", name))), None)
    return None if match is None else int(match.group(1))
