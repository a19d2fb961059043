"""Which modules of a network are its blocks: the repeated units between the stem and the head.

Four detectors, from the surest to the most general:

    checkpointing   the innermost modules that transformers marks as units of gradient checkpointing
    timm            the groups of timm's `group_matcher`, unless they are far coarser than what the dataflow shows
    dataflow        a module is replaced by its parts iff their calls form a chain; what is no chain is a block: a
                    residual connection reaches past a module's neighbour, so a residual block is no chain, while a
                    stage of such blocks is one
    leaves          in a plain stack of layers, each is a block

A network may hold others (a detector on a timm backbone): each part is asked in its own way.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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
        groups = _groups_of_timm(part)
        if groups is not None:
            names += groups.names
            trailing += groups.trailing
            detectors.append("timm")
    enough = LARGE * n_parameters(root.module)
    for part in _uncovered(root, names):
        network = part is root or is_transformers(part.module) or is_timm(part.module)
        if not is_inside(part.name, [*heads, *trailing]) and (network or n_parameters(part.module) >= enough):
            found = _of_chain(part)
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
    inner = _without_stages(inner, root)
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


class _Groups(NamedTuple):
    """The groups of a timm network: a module for each between stem and head, and what counts to the last block."""

    names: list[str]
    trailing: list[str]


def _groups_of_timm(part: ModuleCall) -> _Groups | None:
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
    if not names or len(names) < FAR_COARSER * len(_of_chain(inner)):
        return None
    return _Groups(names, [prefix + name for name in groups.trailing])


def _by_pattern(network: nn.Module, matcher: Mapping) -> _Groups:
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
    return _Groups(list(dict.fromkeys(names)), list(dict.fromkeys(trailing)))


def _by_function(network: nn.Module, matcher: Callable) -> _Groups:
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
    return _Groups(deep or largest, [])


def _covered(network: nn.Module, group: Sequence[str]) -> list[str]:
    """The outermost modules all of whose parameters belong to the group."""
    inside, found = set(group), list[str]()
    for name, module in network.named_modules():
        if name and not is_inside(name, found):
            own = [f"{name}.{key}" for key, _ in module.named_parameters()]
            if own and inside.issuperset(own):
                found.append(name)
    return found


def _of_chain(part: ModuleCall) -> list[str]:
    """Names of modules of several layers whose class recurs, and of what lies among them; [] for fewer than two."""
    calls = [call for call in _expanded(part) if not _is_leaf(call)]
    often = Counter(type(call.module) for call in calls)
    recurring = [call for call in calls if often[type(call.module)] > 1]
    found = [call for call in recurring if n_linear(call.module) > 1] or recurring[
        1:
    ]  # of bare layers, one is the stem
    if len(found) < 2:
        return _recurring(part)
    parents = {call.name.rpartition(".")[0] for call in found}
    first, last = found[0].start, found[-1].start

    def belongs(call: ModuleCall) -> bool:  # one of another class, among the blocks or in a row with them
        parent, _, own = call.name.rpartition(".")
        beside = first <= call.start <= last or (parent != part.name and own.isdigit())
        return parent in parents and beside and n_linear(call.module) > 1

    return list(dict.fromkeys(call.name for call in calls if call in found or belongs(call)))


def _without_stages(calls: Sequence[ModuleCall], root: ModuleCall) -> list[ModuleCall]:
    """Those of some calls that are no stages: a stage is a chain of blocks."""
    closed = _closed_classes(root)
    return [call for call in calls if type(call.module) in closed or not _is_chain(call, root)]


def _expanded(root: ModuleCall) -> list[ModuleCall]:
    """What is left when every module that is a chain of calls is replaced by them, in execution order."""
    closed = _closed_classes(root)

    def descend(call: ModuleCall) -> Iterator[ModuleCall]:
        always = call is root or is_transformers(call.module)
        if _is_chain(call, root) and (always or type(call.module) not in closed):
            for child in call.children:
                yield from descend(child)
        elif n_parameters(call.module):
            yield call

    return list(descend(root))


def _closed_classes(root: ModuleCall) -> set[type[nn.Module]]:
    """The classes of modules that are not replaced by their parts."""
    calls = [call for call in root.walk() if not _is_leaf(call) and type(call.module) is not nn.Sequential]
    unchained = {type(call.module) for call in calls if not _is_chain(call, root)}  # one instance stands for its class
    return unchained | _pairs(calls)


def _pairs(calls: list[ModuleCall]) -> set[type[nn.Module]]:
    """Classes that recur and never hold two parts of one class: attention and MLP in a row are one block."""
    often = Counter(type(module) for module in {call.module for call in calls})
    repeats = {type(call.module) for call in calls if max(Counter(map(type, _parts(call))).values(), default=0) > 1}
    return {kind for kind, times in often.items() if times > 1 and kind not in repeats}


def _parts(call: ModuleCall) -> Iterator[nn.Module]:
    for child in call.children:
        if isinstance(child.module, nn.Sequential):
            yield from _parts(child)
        elif not _is_leaf(child):
            yield child.module


def _recurring(part: ModuleCall) -> list[str]:
    """Where no chain shows: the outermost modules of several layers whose class recurs, if they weigh something.

    Of stages that are chains themselves, between which the network reshapes (PVTv2), their blocks.
    """
    often = Counter(type(module) for module in {call.module for call in part.walk()})
    closed = _closed_classes(part)

    def descend(call: ModuleCall) -> Iterator[ModuleCall]:
        for child in call.children:
            stage = type(child.module) not in closed and _is_chain(child, part)
            if often[type(child.module)] > 1 and n_linear(child.module) > 1 and not stage:
                yield child
            else:
                yield from descend(child)

    found = {call.name: call.module for call in descend(part)}
    heavy = sum(n_parameters(module) for module in found.values()) >= n_parameters(part.module) / 4
    return list(found) if len(found) > 1 and heavy else []


def _is_chain(call: ModuleCall, root: ModuleCall) -> bool:
    """Whether a chain of calls, none of them reaching past its neighbour, makes most of the module's output."""
    if _is_leaf(call):
        return False
    if call is root or is_transformers(call.module):
        return True
    half = n_parameters(call.module) / 2
    for chain in _chains(call):
        weighted = [child for child in chain if n_parameters(child.module)]
        reaches_end = chain[-1].outputs & call.outputs
        if not reaches_end or sum(n_parameters(child.module) for child in weighted) < half:
            continue
        plain = all(_is_leaf(child) for child in weighted)
        if not plain or (isinstance(call.module, nn.Sequential) and len(weighted) >= 4):
            return True
    return False


def _chains(call: ModuleCall) -> list[list[ModuleCall]]:
    chains: list[list[ModuleCall]] = []
    newest: frozenset[int] = frozenset()  # outputs of the previous sibling
    older: frozenset[int] = frozenset()  # and of those before it
    for child in call.children:
        follows = child.inputs & newest
        if follows and not child.inputs & (older - newest):
            chains[-1].append(child)
        else:
            chains.append([child])
        older |= newest
        newest = child.outputs
    return chains


def _is_leaf(call: ModuleCall) -> bool:
    return not any(n_parameters(child.module) for child in call.children)
