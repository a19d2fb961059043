"""Blocks from the dataflow: a module is opened iff the calls inside it form a chain; what stays shut is a block.

A residual connection reaches past a module's neighbour, so a residual block stays shut, while a stage of such
blocks opens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from torch import nn

from hf_tl.architectures import is_transformers, n_linear, n_parameters
from hf_tl.dataflow import ModuleCall


def blocks_of_chain(part: ModuleCall) -> list[str]:
    """Names of modules of several layers whose class recurs, and of what lies among them; [] for fewer than two."""
    rungs = [call for call in _rungs(part) if not _is_leaf(call)]
    often = Counter(type(call.module) for call in rungs)
    recurring = [call for call in rungs if often[type(call.module)] > 1]
    found = [call for call in recurring if n_linear(call.module) > 1] or recurring[
        1:
    ]  # of bare layers, one is the stem
    if len(found) < 2:
        return _recurring(part)
    homes = {call.name.rpartition(".")[0] for call in found}
    first, last = found[0].start, found[-1].start

    def belongs(call: ModuleCall) -> bool:  # one of another class, among the blocks or in a row with them
        home, _, own = call.name.rpartition(".")
        beside = first <= call.start <= last or (home != part.name and own.isdigit())
        return home in homes and beside and n_linear(call.module) > 1

    return list(dict.fromkeys(call.name for call in rungs if call in found or belongs(call)))


def _rungs(root: ModuleCall) -> list[ModuleCall]:
    """What is left when every module that is a chain of calls has been opened, in execution order."""
    calls = [call for call in root.walk() if not _is_leaf(call) and type(call.module) is not nn.Sequential]
    shut = {type(call.module) for call in calls if not _opens(call, root)}  # one instance stands for its class
    shut |= _pairs(calls)

    def descend(call: ModuleCall) -> Iterator[ModuleCall]:
        always = call is root or is_transformers(call.module)
        if _opens(call, root) and (always or type(call.module) not in shut):
            for child in call.children:
                yield from descend(child)
        elif n_parameters(call.module):
            yield call

    return list(descend(root))


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


def _opens(call: ModuleCall, root: ModuleCall) -> bool:
    """Whether a chain of calls, none of them reaching past its neighbour, makes most of the module's output."""
    if _is_leaf(call):
        return False
    if call is root or is_transformers(call.module):
        return True
    half = n_parameters(call.module) / 2
    for chain in _chains(call):
        weighted = [child for child in chain if n_parameters(child.module)]
        if not chain[-1].outputs & call.outputs or sum(n_parameters(child.module) for child in weighted) < half:
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
