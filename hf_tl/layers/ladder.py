"""Stem, blocks, norm and head: every module and every parameter of a network gets its place beside the blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from torch import nn

from hf_tl.architectures import base_model_name, is_linear, is_norm
from hf_tl.dataflow import Dataflow, ModuleCall
from hf_tl.layers.blocks import Blocks, holds_blocks
from hf_tl.layers.towers import find_towers, tower_of
from hf_tl.names import is_inside
from hf_tl.trace import Trace


BARE = "(bare)"  # the name of the leaf that holds the network's own parameters


@dataclass
class Rung:
    """A layer in the making; `start` and `stop` are ticks of the clock of `hf_tl.dataflow`."""

    name: str
    kind: str
    tower: str = ""
    index: int | None = None
    modules: list[tuple[str, nn.Module]] = field(default_factory=list)
    parameters: list[nn.Parameter] = field(default_factory=list)
    start: int = 0
    stop: int = 0

    def add(self, unit: _Unit) -> None:
        """Takes the unit's module in."""
        self.start = min(self.start, unit.start) if self.modules else unit.start
        self.stop = max(self.stop, unit.stop)
        self.modules.append((unit.name, unit.module))


@dataclass
class _Unit:
    """The largest called module that neither holds a block nor is part of one; or a block."""

    name: str
    module: nn.Module
    start: int
    stop: int
    read: int  # when what it returned at its first call was read last
    is_block: bool


def build_ladder(
    model: nn.Module, record: Trace, blocks: Blocks, heads: Sequence[str]
) -> tuple[list[Rung], tuple[str, ...]]:
    """The rungs in execution order, which hold every parameter once, and the names of the towers.

    Bare parameters and modules that are never called belong to the stem of their tower, except parameters that
    are first read after the last block (the temperature of CLIP): those belong to the head.
    """
    units = _units(record.flow, blocks, heads)
    towers = find_towers(blocks.names, base_model_name(model))
    paths = list(towers)
    rungs: dict[tuple[str | None, str, int | None], Rung] = {}

    def rung(path: str | None, kind: str, index: int | None = None) -> Rung:
        tower = towers.get(path, "")
        return rungs.setdefault((path, kind, index), Rung(kind, kind, tower, index))

    homes = {unit.name: tower_of(unit.name, paths) for unit in units}
    block_units = {path: [u for u in units if u.is_block and homes[u.name] == path] for path in paths}
    for unit in units:
        path = homes[unit.name]
        if path is None:
            path = _tower_served(unit, units, homes)
            beside = any(kind == "head" and own is not None for own, kind, _ in rungs)  # each tower has its own head
            path = paths[-1] if path is None and beside else path
        own = block_units.get(path, [])
        before = [i for i, block in enumerate(own) if block.start < unit.start]
        after = [i for i, block in enumerate(own) if block.start > unit.start]
        last = rungs.get((path, "block", before[-1])) if before else None
        if unit.is_block:
            rung(path, "block", own.index(unit)).add(unit)
        elif own and not before:
            rung(path, "stem").add(unit)
        elif after:
            ends = last is not None and is_norm(unit.module) and _nearer(unit.name, own[before[-1]], own[after[0]])
            (last if ends else rung(path, "block", after[0])).add(unit)
        elif _ends_block(unit, last, rungs.get((path, "norm", None)), blocks):
            last.add(unit)
        elif last and is_norm(unit.module) and (path, "head", None) not in rungs:
            rung(path, "norm").add(unit)
        elif own or path is None or is_inside(unit.name, heads):
            rung(path, "head").add(unit)
        else:
            rung(path, "stem").add(unit)
    _place_the_rest(model, record, rungs, towers)
    ordered = sorted(rungs.values(), key=lambda rung: rung.start)
    for one in ordered:
        one.name = _name(one, set(blocks.names))
    return ordered, tuple(dict.fromkeys(one.tower for one in ordered if one.tower))


def split_ladder(model: nn.Module, record: Trace, rungs: Sequence[Rung]) -> list[Rung]:
    """One rung for every module that has parameters of its own and runs; kind, tower and index stay."""
    calls: dict[str, list[ModuleCall]] = {}
    for call in record.flow.root.walk():
        calls.setdefault(call.name, []).append(call)
    modules, taken, leaves = dict(model.named_modules()), set(), []
    for name, own_calls in calls.items():
        parameters = list(modules[name].parameters(recurse=False))
        if not parameters:
            continue
        home = next((rung for rung in rungs if is_inside(name, [part for part, _ in rung.modules])), rungs[0])
        inner = any(next(child.module.parameters(), None) is not None for call in own_calls for child in call.children)
        start = own_calls[0].start
        leaf = Rung(name or BARE, home.kind, home.tower, home.index, [(name, modules[name])], start=start)
        leaf.stop = start if inner else own_calls[-1].stop  # its own parameters are read at the start of its call
        leaf.parameters = [parameter for parameter in parameters if id(parameter) not in taken]
        taken.update(map(id, parameters))
        leaves.append(leaf)
    return leaves


def _units(flow: Dataflow, blocks: Blocks, heads: Sequence[str]) -> list[_Unit]:
    root = flow.root
    names, units = frozenset(blocks.names), {}

    def unit_of(call: ModuleCall) -> _Unit:
        read = flow.last_read(call.outputs)
        return units.setdefault(
            call.name, _Unit(call.name, call.module, call.start, call.stop, read, call.name in names)
        )

    def descend(call: ModuleCall) -> None:
        if call.name in names:
            unit_of(call).stop = call.stop
        elif holds_blocks(call, names) or any(head != call.name and is_inside(head, [call.name]) for head in heads):
            for child in call.children:
                descend(child)
        elif next(call.module.parameters(), None) is not None:
            if call is root and call.children:  # a network without blocks
                for child in call.children:
                    descend(child)
            else:
                unit_of(call)

    descend(root)
    return sorted(units.values(), key=lambda unit: unit.start)


def _tower_served(unit: _Unit, units: Sequence[_Unit], homes: dict[str, str | None]) -> str | None:
    """The tower of a module outside all towers: the next, if that reads its output, else the one before.

    None for what runs after the last tower.
    """
    following = next((homes[other.name] for other in units if other.is_block and other.start > unit.start), None)
    if following is None:
        return None
    end = max(other.stop for other in units if other.is_block and homes[other.name] == following)
    previous = [homes[other.name] for other in units if other.is_block and other.start < unit.start]
    return previous[-1] if previous and unit.read > end else following


def _nearer(name: str, previous: _Unit, following: _Unit) -> bool:
    """Whether a norm between two blocks stands with the first: it is not in a closer container with the second."""
    return len(_shared(name, previous.name)) >= len(_shared(name, following.name))


def _shared(one: str, other: str) -> list[str]:
    parts = zip(one.split("."), other.split("."), strict=False)
    return [mine for mine, _ in takewhile(lambda pair: pair[0] == pair[1], parts)]


def _ends_block(unit: _Unit, last: Rung | None, norm: Rung | None, blocks: Blocks) -> bool:
    """Whether what follows the last block still is part of it: a bare layer's norm, or what the detector says."""
    if last is None or norm is not None:
        return False
    if is_norm(unit.module):
        return is_linear(last.modules[-1][1])
    return is_inside(unit.name, blocks.trailing)


def _place_the_rest(
    model: nn.Module, record: Trace, rungs: dict[tuple[str | None, str, int | None], Rung], towers: dict[str, str]
) -> None:
    ordered = sorted(rungs.items(), key=lambda item: item[1].start)
    taken: set[int] = set()
    for _, rung in ordered:
        for _, module in rung.modules:
            for parameter in module.parameters():
                if id(parameter) not in taken:
                    taken.add(id(parameter))
                    rung.parameters.append(parameter)
    called = {call.name for call in record.flow.root.walk()}
    end = max((rung.stop for (_, kind, _), rung in ordered if kind == "block"), default=None)
    for name, parameter in model.named_parameters():
        if id(parameter) in taken:
            continue
        taken.add(id(parameter))
        read = record.flow.first_read.get(id(parameter))
        owner = name.rpartition(".")[0]
        path = tower_of(owner, list(towers))
        if end is not None and read is not None and read > end:
            whole = "" if "" in towers else None
            home = rungs.setdefault((whole, "head", None), Rung("head", "head", start=read, stop=read))
        else:
            if path is None and ordered:  # outside all towers: it serves the one that runs when it is first read
                towered = [(own, rung) for (own, _, _), rung in ordered if own is not None]
                path = next((own for own, rung in towered if read is not None and rung.stop > read), towered[0][0])
            first = min((rung.start for (own, _, _), rung in ordered if own == path), default=1)
            home = rungs.setdefault((path, "stem", None), Rung("stem", "stem", towers.get(path, ""), start=first - 1))
        home.parameters.append(parameter)
        idle = _idle(owner, called)
        if idle is not None and idle not in [part for part, _ in home.modules]:
            home.modules.append((idle, model.get_submodule(idle)))


def _idle(owner: str, called: set[str]) -> str | None:
    """The largest module around `owner` in which nothing is ever called; None if `owner` is."""
    if not owner or any(is_inside(name, [owner]) for name in called):
        return None
    parent = owner.rpartition(".")[0]
    return _idle(parent, called) or owner


def _name(rung: Rung, blocks: set[str]) -> str:
    if rung.kind == "block":
        return next(name for name, _ in rung.modules if name in blocks)
    if rung.kind == "norm":
        return rung.modules[0][0]
    return f"{rung.tower}.{rung.kind}" if rung.tower else rung.kind
