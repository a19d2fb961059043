"""What trains in full and travels beside the updates: heads, weights that no checkpoint held, new vocabularies."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import nn

from hf_tl.architectures import (
    auto_class_named,
    find_networks,
    find_output_embeddings,
    is_container,
    is_transformers,
    n_parameters,
    without_adapter,
)
from hf_tl.errors import InputError
from hf_tl.layers import head_names
from hf_tl.names import closest_module, is_inside, peft_matcher, peft_saves
from hf_tl.trace import Batch, trace


if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ADDED = re.compile(r"\.(?:modules_to_save\.[^.]+|original_module|base_layer)(?=\.|$)")
"""What adapters that are on the network add to a name."""


def find_head(model: nn.Module, modules: Mapping[str, nn.Module], *, example: Batch | None = None) -> list[str]:
    """Names of the modules that make up the head of the task, the one part that a new task always has to learn.

    In a module of the user's own around networks of transformers or timm it is what stands outside of those. Language
    models have none: what turns their states into words is tied to the embeddings and knows the task.

    Args:
        model: transformers and timm tell what is outside the backbone.
        modules: the network's modules by name.
        example: a batch for a network of another make, which is traced.
    """
    networks = find_networks(model)
    if networks and "" not in networks:
        return list(_outside(model, networks, modules)) or [
            f"{outer}.{name}"
            for outer, network in networks.items()
            for name in find_head(network, _below(outer, modules))
        ]
    kind = auto_class_named(type(model).__name__) if is_transformers(model) else None
    if find_output_embeddings(model) is not None or (kind is not None and kind.name == "AutoModel"):
        return []
    traced = head_names(model, None if example is None else trace(model, example))
    named = dict.fromkeys(_ADDED.sub("", name) for name in traced)
    found = [name for name in named if name in modules and any(True for _ in modules[name].parameters())]
    if not found and is_transformers(model):
        found = _children_of_the_task(model)
    return [name for name in found if not is_inside(name, [other for other in found if other != name])]


def bare_parameters(model: nn.Module) -> list[str]:
    """Names of the parameters that are new and lie in no module that is.

    A module of the user's own around networks holds some itself; so may a network of transformers, as that of two
    towers does, the scale of whose products no checkpoint of a tower has.
    """
    if is_transformers(model):
        modules, new = dict(model.named_modules()), _new_parameters(model)
        return [n for n in new if not _is_all_new(modules[n.rpartition(".")[0]], n.rpartition(".")[0], new)]
    networks = find_networks(model)
    above = {name.rpartition(".")[0] for name in networks if name}
    return [
        name
        for name, _ in model.named_parameters()
        if any(name.rpartition(".")[0] == outer for outer in above) and not is_inside(name, networks)
    ]


def _outside(
    module: nn.Module, networks: Mapping[str, nn.Module], modules: Mapping[str, nn.Module], *, prefix: str = ""
) -> Iterator[str]:
    """Names of the largest modules with parameters that neither are nor hold one of the networks."""
    for child, part in module.named_children():
        name = f"{prefix}{child}"
        if any(is_inside(network, [name]) for network in networks):
            if name not in networks:
                yield from _outside(part, networks, modules, prefix=f"{name}.")
        elif n_parameters(part):
            yield from _called(name, modules)


def _below(outer: str, modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The modules of the network at `outer`, by their names in it."""
    inside = {name: module for name, module in modules.items() if is_inside(name, [outer])}
    return {name[len(outer) + 1 :]: module for name, module in inside.items()}


def _children_of_the_task(model: PreTrainedModel) -> list[str]:
    """The head of a transformers network that is its own base model, such as CLIP's or Whisper's classifiers.

    It is what stands beside other networks of transformers, or else what has an output for each label: Perceiver's
    lies deep in its decoder.
    """
    children = {name: child for name, child in model.named_children() if n_parameters(child)}
    beside = [name for name, child in children.items() if not is_transformers(child)]
    if beside and len(beside) < len(children):
        return beside
    n = model.config.num_labels
    wide = [name for name, child in children.items() if len(children) > 1 and _last_width(child) == n]
    last = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module.out_features == n
    ]
    return wide or (last if len(last) == 1 else [])


def _last_width(module: nn.Module) -> int | None:
    widths = [m.out_features for m in module.modules() if isinstance(m, nn.Linear)]
    return widths[-1] if widths else None


def find_new(model: nn.Module, modules: Mapping[str, nn.Module]) -> list[str]:
    """Names of the modules with weights of their own that `from_pretrained` drew, as the checkpoint has none.

    BERT's pooler, from a checkpoint of masked words, beside a head; [] where nothing is known of a checkpoint. Then
    the network was made from its configuration, or copied.
    """
    if not is_transformers(model):
        networks = {outer: network for outer, network in find_networks(model).items() if outer}
        return [
            f"{outer}.{name}"
            for outer, network in networks.items()
            for name in find_new(network, _below(outer, modules))
        ]
    new = _new_parameters(model)
    return [
        name
        for name in dict.fromkeys(one.rpartition(".")[0] for one in new)
        if _is_all_new(modules.get(name), name, new)
    ]


def _is_all_new(module: nn.Module | None, name: str, new: Collection[str]) -> bool:
    """Whether all that a module holds was drawn, so that it can train and be saved as a whole."""
    return bool(name) and module is not None and all(f"{name}.{part}" in new for part, _ in module.named_parameters())


def _new_parameters(model: nn.Module) -> list[str]:
    """Names of the parameters that `from_pretrained` drew; [] where it did not make the network."""
    # not public: transformers marks what it has loaded; tests/lora/test_trained_modules.py watches
    # what is offloaded has lost its mark with its values
    new = [n for n, p in model.named_parameters() if "_is_hf_initialized" not in vars(p) and not p.is_meta]
    if len(new) == len([*model.parameters()]):
        return []
    resized = resized_vocabulary(model)
    return [name for name in new if name not in resized]


def output_embeddings(model: nn.Module, modules: Mapping[str, nn.Module]) -> list[str]:
    """The name of the layer that turns states into words, if there is one."""
    found = find_output_embeddings(model)
    words = None if found is None else without_adapter(found)
    return [name for name, module in modules.items() if words is not None and module is words]


def resized_vocabulary(model: nn.Module) -> list[str]:
    """Names of the weights of a transformers network's embeddings, where its checkpoint has fewer or more rows.

    Of tied weights every name; [] where the checkpoint is not on this disk.
    """
    size = _checkpoint_vocabulary(model)
    if size is None or not is_transformers(model):
        return []
    embeddings = without_adapter(model.get_input_embeddings())
    if not isinstance(embeddings, nn.Embedding) or size == embeddings.num_embeddings:
        return []
    tables = [embeddings, model.get_output_embeddings()]
    named = model.named_parameters(remove_duplicate=False)
    return [name for name, p in named if any(t is not None and p is t.weight for t in tables)]


def _checkpoint_vocabulary(model: nn.Module) -> int | None:
    """The number of rows that the embeddings of a network's checkpoint have; None where that is not known."""
    if not is_transformers(model) or not model.name_or_path:
        return None
    from transformers import AutoConfig

    try:
        checkpoint = AutoConfig.from_pretrained(model.name_or_path, local_files_only=True).get_text_config()
        model.get_input_embeddings()
    except (OSError, ValueError, KeyError, NotImplementedError):  # it has no name that can be read, or no embeddings
        return None
    return checkpoint.to_dict().get("vocab_size")


def covers_new(model: nn.Module, rows: Sequence[int]) -> bool:
    """Whether rows hold all that a vocabulary has got since its checkpoint, so that these alone need to travel."""
    size = _checkpoint_vocabulary(model)
    if size is None or not is_transformers(model):
        return False
    now = without_adapter(model.get_input_embeddings()).num_embeddings
    return isinstance(now, int) and now > size and set(range(size, now)) <= set(rows)


def find_tokens(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    wanted: Sequence[int] | Mapping[str, Sequence[int]] | None,
) -> dict[str, tuple[int, ...]]:
    """The rows that trainable_token_indices names, by the whole name of their module.

    Raises:
        InputError: a name that is none, or a list for a network that does not say which its input embeddings are.
    """
    if wanted is None:
        return {}
    if isinstance(wanted, Mapping):
        found: dict[str, tuple[int, ...]] = {}
        for word, rows in wanted.items():
            named = list(filter(peft_matcher([word]), modules))
            if not named:
                near = closest_module(word, [name for name in modules if name])
                raise InputError(f"trainable_token_indices names {word!r}, which is no module; {near}")
            found |= {name: tuple(rows) for name in named}
        return found
    embeddings = [name for name, module in modules.items() if isinstance(module, nn.Embedding)]
    if is_transformers(model):
        own = without_adapter(model.get_input_embeddings())
        embeddings = [name for name, module in modules.items() if module is own][:1]
    if len(embeddings) != 1:
        raise InputError(
            f"trainable_token_indices needs the name of an embedding here, as in {{'embedding': [7, 8]}}: there are "
            f"{', '.join(embeddings) or 'none'}"
        )
    return {embeddings[0]: tuple(wanted)}


def saved_names(modules: Mapping[str, nn.Module], wanted: Sequence[str]) -> list[str]:
    """The modules that the names of modules_to_save mean, as PEFT takes them: all that end so."""
    if not wanted:
        return []
    for name in wanted:
        if not name or not any(n == name or n.endswith(f".{name}") for n in modules):
            near = closest_module(name, [n for n in modules if n])
            raise InputError(f"modules_to_save names {name!r}, which is no module; {near}")
    return whole_names(modules, peft_saves(modules, wanted))


def ties_to_break(modules: Mapping[str, nn.Module], saved: Sequence[str]) -> dict[str, str]:
    """Parameters in modules that train in full -> another name of each, outside of its module."""
    owners: dict[int, list[str]] = {}
    first = {id(module): name for name, module in reversed([*modules.items()])}
    for name, module in modules.items():
        for part, parameter in module.named_parameters(recurse=False) if first[id(module)] == name else ():
            owners.setdefault(id(parameter), []).append(f"{name}.{part}")
    found = {}
    for names in owners.values() if saved else ():
        for name in names:
            whole = [one for one in saved if is_inside(name, [one])]
            others = [other for other in names if whole and not is_inside(other, whole)]
            if others:
                found[name] = others[0]
    return found


def whole_names(modules: Mapping[str, nn.Module], names: Sequence[str]) -> list[str]:
    """Modules to train in full, none inside another, under names for which PEFT takes no part of them besides.

    "head" means "head.head" too: of a head that has such a part, the parts that have parameters are named.
    """
    found = [name for name in names if not is_inside(name, [other for other in names if other != name])]
    plain = []
    for name in found:
        inner = [part for part in modules if part != name and is_inside(part, [name])]
        own = next(modules[name].parameters(recurse=False), None)
        if own is None and peft_saves(inner, [name]):
            plain += [f"{name}.{child}" for child, part in modules[name].named_children() if n_parameters(part)]
        else:
            plain.append(name)
    return [part for name in plain for part in _called(name, modules)]


def _called(name: str, modules: Mapping[str, nn.Module]) -> list[str]:
    """A module's name; of a list or dictionary of modules, which is never called itself, the names of its children."""
    module = modules[name]
    if not is_container(module):
        return [name]
    if next(module.parameters(recurse=False), None) is not None:
        raise InputError(f"modules_to_save names {name!r}, a {type(module).__name__}, which only holds parameters")
    return [part for child, _ in module.named_children() for part in _called(f"{name}.{child}", modules)]
