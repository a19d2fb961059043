"""Which modules of a network are its blocks: the repeated units between the stem and the head.

Four detectors, from the surest to the most general:

    checkpointing   the innermost modules that transformers marks as units of gradient checkpointing
    timm            the groups of timm's `group_matcher`, unless they are far coarser than what the dataflow shows
    dataflow        a module is replaced by its parts iff their calls form a chain; what is no chain is a block
    leaves          in a plain stack of layers, each is a block

A network may hold others (a detector on a timm backbone): each part is asked in its own way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from hf_tl.architectures import (
    classifiers,
    is_checkpointed,
    is_linear,
    is_norm,
    is_timm,
    is_transformers,
    n_linear,
    n_parameters,
    timm_groups,
)
from hf_tl.dataflow import ModuleCall
from hf_tl.layers.chains import blocks_of_chain, without_stages
from hf_tl.names import is_inside
from hf_tl.trace import Trace


FAR_COARSER = 0.5  # timm's groups are used from this share of the dataflow's blocks on
LARGE = 0.25  # a part with this share of the parameters is searched although it is no network of its own


@dataclass(frozen=True)
class Blocks:
    """The blocks of a network.

    Attributes:
        names: module names, in the order in which they first run.
        detector: what found them; several are joined by "+".
        trailing: names of modules after the last block that the detector counts to that block.
    """

    names: tuple[str, ...] = ()
    detector: str = "leaves"
    trailing: tuple[str, ...] = ()


def find_blocks(record: Trace, heads: Sequence[str]) -> Blocks:
    """The blocks of a traced network; none where it has no more than a stem and a head.

    Args:
        record: the traced forward pass.
        heads: names of the modules that make up the classifier.
    """
    root = record.root
    names, trailing = _checkpointed(root), []
    detectors = ["checkpointing"] if names else []
    for part in _uncovered(root, names):
        groups = groups_of_timm(part)
        if groups is not None:
            names += groups.names
            trailing += groups.trailing
            detectors.append("timm")
    enough = LARGE * n_parameters(root.module)
    for part in _uncovered(root, names):
        network = part is root or is_transformers(part.module) or is_timm(part.module)
        if not is_inside(part.name, [*heads, *trailing]) and (network or n_parameters(part.module) >= enough):
            found = blocks_of_chain(part)
            names += found
            detectors += ["dataflow"] if found else []
    if not names:
        names, detectors = _plain_stack(root, heads), ["leaves"]
    order = {name: i for i, name in enumerate(dict.fromkeys(record.modules))}
    ordered = sorted(set(names), key=order.__getitem__)
    return Blocks(tuple(ordered), "+".join(dict.fromkeys(detectors)), tuple(trailing))


def holds_blocks(call: ModuleCall, names: frozenset[str]) -> bool:
    """Whether a block runs inside the call, the call itself not counted."""
    return any(inner.name in names for child in call.children for inner in child.walk())


def _checkpointed(root: ModuleCall) -> list[str]:
    marked = [call for call in root.walk() if is_checkpointed(call.module)]
    inner = [call for call in marked if not any(other in marked for other in call.walk() if other is not call)]
    inner = without_stages(inner, root)
    deep = [call for call in inner if n_linear(call.module) > 1]  # not the convolutions in front of an encoder
    return list(dict.fromkeys(call.name for call in deep or inner))


def _plain_stack(root: ModuleCall, heads: Sequence[str]) -> list[str]:
    """Bare layers in a row: each between the first and the classifier is a block."""
    layers = [call.name for call in root.walk() if is_linear(call.module) and not is_inside(call.name, heads)]
    return list(dict.fromkeys(layers))[1:]


def _uncovered(root: ModuleCall, names: Sequence[str]) -> list[ModuleCall]:
    """The largest calls that neither hold a block nor are one, in execution order; the network itself at first."""
    blocks = frozenset(names)

    def descend(call: ModuleCall) -> Iterator[ModuleCall]:
        if call.name in blocks:
            return
        if holds_blocks(call, blocks):
            for child in call.children:
                yield from descend(child)
        elif n_parameters(call.module):
            yield call

    return list(descend(root))


@dataclass(frozen=True)
class Groups:
    """The groups of a timm network.

    Attributes:
        names: a module for each group between stem and head.
        trailing: names of modules after the last block that count to that block.
    """

    names: list[str]
    trailing: list[str]


def groups_of_timm(part: ModuleCall) -> Groups | None:
    """The groups of the timm network in this part; None where there is none or the dataflow is far finer."""
    inner = next((call for call in part.walk() if is_timm(call.module)), None)
    if inner is None:
        return None
    network, matcher = inner.module, timm_groups(inner.module)
    groups = _by_pattern(network, matcher) if isinstance(matcher, Mapping) else _by_function(network, matcher)
    prefix = f"{inner.name}." if inner.name else ""
    ran = {call.name for call in inner.walk()}
    names = [  # the norms of a VGG are groups of their own
        prefix + name for name in groups.names if prefix + name in ran and not is_norm(network.get_submodule(name))
    ]
    if not names or len(names) < FAR_COARSER * len(blocks_of_chain(inner)):
        return None
    return Groups(names, [prefix + name for name in groups.trailing])


def _by_pattern(network: nn.Module, matcher: Mapping) -> Groups:
    """Groups by regular expressions: the matched part of a name is the block, unless the pattern has a suffix.

    A suffix orders what is no block of its own: (0,) before the blocks, (99999,) with the block before it.
    """
    patterns = [
        (role, re.compile(item if isinstance(item, str) else item[0]), None if isinstance(item, str) else item[1])
        for role, spec in matcher.items()
        for item in ([spec] if isinstance(spec, str) else spec or ())
    ]
    modules = {name for name, _ in network.named_modules()}
    names, trailing = [], []
    for name, _ in network.named_parameters():
        role, match, suffix = next(
            ((role, found, suffix) for role, test, suffix in patterns if (found := test.match(name))), ("", None, None)
        )
        if match is None or role == "stem":
            continue
        if suffix is None and match.group() in modules:
            names.append(match.group())
        elif suffix is not None and suffix[0]:
            trailing.append(name.rpartition(".")[0])
    return Groups(list(dict.fromkeys(names)), list(dict.fromkeys(trailing)))


def _by_function(network: nn.Module, matcher: Callable) -> Groups:
    """Groups by a function of the parameter's name: the modules of several layers in all but the first."""
    from timm.models import group_parameters

    groups: dict[int, list[str]] = {}
    for name, group in group_parameters(network, matcher, reverse=True).items():
        groups.setdefault(group, []).append(name)
    heads = classifiers(network)
    largest, deep = [], []
    for _, group in sorted(groups.items())[1:]:
        covered = {name: network.get_submodule(name) for name in _covered(network, group)}
        covered = {name: module for name, module in covered.items() if not any(module is head for head in heads)}
        deep += [name for name, module in covered.items() if n_linear(module) > 1]
        if covered:
            largest.append(max(covered, key=lambda name: n_parameters(covered[name])))
    return Groups(deep or largest, [])


def _covered(network: nn.Module, group: Sequence[str]) -> list[str]:
    """The outermost modules all of whose parameters belong to the group."""
    inside, found = set(group), list[str]()
    for name, module in network.named_modules():
        if name and not is_inside(name, found):
            own = [f"{name}.{key}" for key, _ in module.named_parameters()]
            if own and inside.issuperset(own):
                found.append(name)
    return found
