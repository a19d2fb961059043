"""Blocks from the dataflow: a module is replaced by its parts iff these form a chain; what is no chain is a block.

A residual connection reaches past a module's neighbour, so a residual block is no chain, while a stage of such
blocks is one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from torch import nn

from hf_tl.architectures import is_transformers, n_linear, n_parameters
from hf_tl.dataflow import ModuleCall


def blocks_of_chain(part: ModuleCall) -> list[str]:
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


def without_stages(calls: Sequence[ModuleCall], root: ModuleCall) -> list[ModuleCall]:
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
    """Where no chain shows: the outermost modules of several layers whose class recurs, if they weigh something."""
    often = Counter(type(module) for module in {call.module for call in part.walk()})

    def descend(call: ModuleCall) -> Iterator[ModuleCall]:
        for child in call.children:
            if often[type(child.module)] > 1 and n_linear(child.module) > 1:
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
