"""Blocks from timm's own groups of layers, which it keeps for layer-wise learning rates."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from hf_tl.architectures import is_norm, is_timm, n_linear, n_parameters
from hf_tl.dataflow import ModuleCall
from hf_tl.layers.chains import blocks_of_chain
from hf_tl.names import is_inside


FAR_COARSER = 0.5  # the groups are used from this share of the dataflow's blocks on


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
    network, matcher = inner.module, inner.module.group_matcher(coarse=False)
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
    classifier = network.get_classifier()
    largest, deep = [], []
    for _, group in sorted(groups.items())[1:]:
        covered = {name: network.get_submodule(name) for name in _covered(network, group)}
        covered = {name: module for name, module in covered.items() if module is not classifier}
        deep += [name for name, module in covered.items() if n_linear(module) > 1]
        if covered:
            largest.append(max(covered, key=lambda name: n_parameters(covered[name])))
    return Groups(deep or largest, [])


def _covered(network: nn.Module, group: Sequence[str]) -> list[str]:
    """The outermost modules all of whose parameters belong to the group."""
    inside, found = set(group), []
    for name, module in network.named_modules():
        if name and not is_inside(name, found):
            own = [f"{name}.{key}" for key, _ in module.named_parameters()]
            if own and inside.issuperset(own):
                found.append(name)
    return found
