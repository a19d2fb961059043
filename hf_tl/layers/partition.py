"""Stem, blocks, norm and head: every module and every parameter of a network belongs to one segment of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Literal

from torch import nn

from hf_tl.architectures import base_model, base_model_name, classifiers, is_linear, is_norm
from hf_tl.dataflow import ModuleCall
from hf_tl.layers.blocks import Blocks, holds_blocks
from hf_tl.names import is_inside
from hf_tl.trace import Trace


Kind = Literal["stem", "block", "norm", "head"]

BARE = "(bare)"  # the name of the leaf that holds the network's own parameters


@dataclass
class Segment:
    """A layer in the making; `start` and `stop` are ticks of the clock of `hf_tl.dataflow`."""

    name: str
    kind: Kind
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


@dataclass(eq=False)
class _Unit:
    """The largest called module that neither holds a block nor is part of one; or a block."""

    name: str
    module: nn.Module
    start: int
    stop: int
    read: int  # when what it returned at its first call was read last
    is_block: bool


@dataclass
class _Tower:
    """The segments of one tower; that of path None takes what runs after all towers."""

    path: str | None
    name: str
    blocks: list[_Unit] = field(default_factory=list)
    segments: dict[tuple[Kind, int | None], Segment] = field(default_factory=dict)

    def segment(self, kind: Kind, index: int | None = None) -> Segment:
        """One of its segments, which is made when it is first asked for."""
        return self.segments.setdefault((kind, index), Segment(kind, kind, self.name, index))

    def place(self, unit: _Unit, blocks: Blocks, heads: Sequence[str]) -> Segment:
        """The segment that a unit belongs to, once all that ran before it has been placed."""
        if unit.is_block:
            return self.segment("block", self.blocks.index(unit))
        if not self.blocks:
            return self.segment("head" if self.path is None or is_inside(unit.name, heads) else "stem")
        n_before = sum(block.start < unit.start for block in self.blocks)
        if n_before == 0:
            return self.segment("stem")
        last = self.segment("block", n_before - 1)
        if n_before < len(self.blocks):
            ends = is_norm(unit.module) and _is_nearer(unit.name, *self.blocks[n_before - 1 : n_before + 1])
            return last if ends else self.segment("block", n_before)
        if self._ends_block(unit, last, blocks.trailing):
            return last
        return self.segment("norm" if is_norm(unit.module) and ("head", None) not in self.segments else "head")

    def _ends_block(self, unit: _Unit, last: Segment, trailing: Sequence[str]) -> bool:
        """Whether what follows the last block still is part of it: a bare layer's norm, or what the detector says."""
        if ("norm", None) in self.segments:
            return False
        return is_linear(last.modules[-1][1]) if is_norm(unit.module) else is_inside(unit.name, trailing)


def partition(
    model: nn.Module, record: Trace, blocks: Blocks, heads: Sequence[str]
) -> tuple[list[Segment], tuple[str, ...]]:
    """The segments in execution order, which hold every parameter once, and the names of the towers.

    Bare parameters and modules that are never called belong to the stem of their tower, except parameters that
    are first read after the last block (the temperature of CLIP): those belong to the head.
    """
    units = _units(record, blocks, heads)
    paths = find_towers(blocks.names, base_model_name(model))
    parents = {unit.name: tower_of(unit.name, list(paths)) for unit in units}
    towers: dict[str | None, _Tower] = {
        path: _Tower(path, name, [unit for unit in units if unit.is_block and parents[unit.name] == path])
        for path, name in paths.items()
    }
    towers[None] = _Tower(None, "")
    for unit in units:
        path = parents[unit.name]
        if path is None:
            path = _tower_served(unit, units, parents)
            if path is None and any(("head", None) in towers[own].segments for own in paths):
                path = list(paths)[-1]  # where each tower has its own head
        towers[path].place(unit, blocks, heads).add(unit)
    _claim_parameters(towers)
    _place_the_rest(model, record, towers)
    ordered = _in_order(towers)
    for segment in ordered:
        segment.name = _name(segment, set(blocks.names))
    return ordered, tuple(dict.fromkeys(segment.tower for segment in ordered if segment.tower))


def split_by_leaf(model: nn.Module, record: Trace, segments: Sequence[Segment]) -> list[Segment]:
    """One segment for every module that has parameters of its own and runs; kind, tower and index stay."""
    calls: dict[str, list[ModuleCall]] = {}
    for call in record.root.walk():
        calls.setdefault(call.name, []).append(call)
    modules, taken, leaves = dict(model.named_modules()), set[int](), []
    for name, own_calls in calls.items():
        parameters = list(modules[name].parameters(recurse=False))
        if not parameters:
            continue
        home = next(
            (segment for segment in segments if is_inside(name, [part for part, _ in segment.modules])), segments[0]
        )
        inner = any(next(child.module.parameters(), None) is not None for call in own_calls for child in call.children)
        start = own_calls[0].start
        leaf = Segment(name or BARE, home.kind, home.tower, home.index, [(name, modules[name])], start=start)
        leaf.stop = start if inner else own_calls[-1].stop  # its own parameters are read at the start of its call
        leaf.parameters = [parameter for parameter in parameters if id(parameter) not in taken]
        taken.update(map(id, parameters))
        leaves.append(leaf)
    return leaves


def head_names(model: nn.Module, record: Trace | None = None) -> tuple[str, ...]:
    """Names of the modules that make up the classifier, in execution order; empty for a bare backbone.

    timm models name theirs; in transformers it is what stands outside the base model; where neither tells, it
    is the layer whose output the network returns untouched.
    """
    base = base_model(model)
    found = [name for name, part in model.named_children() if part is not base] if base is not model else []
    if not found:  # transformers' wrapper of timm keeps the classifier inside
        known = classifiers(base)
        found = [name for name, module in model.named_modules() if any(module is part for part in known)]
    if record is None:  # nothing ran: in the order in which they were made
        return tuple(name for name, _ in model.named_modules() if name in found)
    if not found and record.last is not None:
        found = [record.last.name]
    return tuple(name for name in dict.fromkeys(record.modules) if name in found)


def find_towers(blocks: Sequence[str], base: str = "") -> dict[str, str]:
    """The path of each tower -> its name; {"": ""} for a network of one tower.

    Below their last common ancestor, blocks part into towers by the child they stand in. Children whose names
    differ in a number alone (layer1, layer2) are stages of one tower; blocks that are such children themselves, and
    mere lists of blocks, are no towers.

    Args:
        blocks: module names.
        base: name of transformers' base model, which is called "encoder" where its one sibling is a "decoder".
    """
    paths = _split(list(blocks))
    if len(paths) < 2:
        return {"": ""}
    common = _common(paths)
    names = {path: path[len(common) + 1 if common else 0 :] for path in paths}
    if base and set(names.values()) == {base, "decoder"}:
        names = {path: "encoder" if name == base else name for path, name in names.items()}
    return names


def tower_of(name: str, paths: Sequence[str]) -> str | None:
    """The path of the tower that a module stands in, None for one outside all towers."""
    inside = [path for path in paths if not path or name == path or name.startswith(f"{path}.")]
    return max(inside, key=len, default=None)


def _units(record: Trace, blocks: Blocks, heads: Sequence[str]) -> list[_Unit]:
    names = frozenset(blocks.names)
    units: dict[str, _Unit] = {}

    def descend(call: ModuleCall) -> None:
        is_block = call.name in names
        holds_head = any(head != call.name and is_inside(head, [call.name]) for head in heads)
        without_blocks = call is record.root and bool(call.children)
        if not is_block and (holds_blocks(call, names) or holds_head or without_blocks):
            for child in call.children:
                descend(child)
        elif is_block or next(call.module.parameters(), None) is not None:
            read = record.flow.last_read(call.outputs)
            unit = _Unit(call.name, call.module, call.start, call.stop, read, is_block)
            known = units.setdefault(call.name, unit)
            if is_block:
                known.stop = call.stop

    descend(record.root)
    return sorted(units.values(), key=lambda unit: unit.start)


def _tower_served(unit: _Unit, units: Sequence[_Unit], parents: dict[str, str | None]) -> str | None:
    """The tower of a module outside all towers: the next, if that reads its output, else the one before.

    None for what runs after the last tower.
    """
    following = next((parents[other.name] for other in units if other.is_block and other.start > unit.start), None)
    if following is None:
        return None
    end = max(other.stop for other in units if other.is_block and parents[other.name] == following)
    previous = [parents[other.name] for other in units if other.is_block and other.start < unit.start]
    return previous[-1] if previous and unit.read > end else following


def _is_nearer(name: str, previous: _Unit, following: _Unit) -> bool:
    """Whether a norm between two blocks stands with the first: it is not in a closer container with the second."""
    return _n_shared(name, previous.name) >= _n_shared(name, following.name)


def _n_shared(one: str, other: str) -> int:
    parts = zip(one.split("."), other.split("."), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], parts))


def _in_order(towers: dict[str | None, _Tower]) -> list[Segment]:
    every = [segment for tower in towers.values() for segment in tower.segments.values()]
    return sorted(every, key=lambda segment: segment.start)


def _claim_parameters(towers: dict[str | None, _Tower]) -> None:
    """Gives each segment the parameters of its modules; one that several share is with the first of them to run."""
    taken: set[int] = set()
    for segment in _in_order(towers):
        for _, module in segment.modules:
            for parameter in module.parameters():
                if id(parameter) not in taken:
                    taken.add(id(parameter))
                    segment.parameters.append(parameter)


def _place_the_rest(model: nn.Module, record: Trace, towers: dict[str | None, _Tower]) -> None:
    """Gives the parameters that are in no segment, and the modules that are never called, to a stem or a head."""
    placed = _in_order(towers)
    taken = {id(parameter) for segment in placed for parameter in segment.parameters}
    called = {call.name for call in record.root.walk()}
    end = max((segment.stop for segment in placed if segment.kind == "block"), default=None)
    for name, parameter in model.named_parameters():
        if id(parameter) in taken:
            continue
        taken.add(id(parameter))
        read, owner = record.flow.first_read.get(id(parameter)), name.rpartition(".")[0]
        if end is not None and read is not None and read > end:
            segment = (towers[""] if "" in towers else towers[None]).segment("head")
            segment.start = segment.start or read
            segment.stop = segment.stop or read
        else:
            tower = _tower_of_parameter(owner, read, towers)
            first = min((segment.start for segment in tower.segments.values()), default=1)
            segment = tower.segment("stem")
            segment.start = segment.start or first - 1
        segment.parameters.append(parameter)
        idle = _idle(owner, called)
        if idle is not None and idle not in [part for part, _ in segment.modules]:
            segment.modules.append((idle, model.get_submodule(idle)))


def _tower_of_parameter(owner: str, read: int | None, towers: dict[str | None, _Tower]) -> _Tower:
    """The tower of a parameter of the module `owner`; outside all, that which runs when it is first read."""
    path = tower_of(owner, [path for path in towers if path is not None])
    if path is not None:
        return towers[path]
    inside = [tower for path, tower in towers.items() if path is not None]
    placed = [(segment, tower) for tower in inside for segment in tower.segments.values()]
    placed.sort(key=lambda pair: pair[0].start)
    return next((tower for segment, tower in placed if read is not None and segment.stop > read), placed[0][1])


def _idle(owner: str, called: set[str]) -> str | None:
    """The largest module around `owner` in which nothing is ever called; None if `owner` is."""
    if not owner or any(is_inside(name, [owner]) for name in called):
        return None
    parent = owner.rpartition(".")[0]
    return _idle(parent, called) or owner


def _name(segment: Segment, blocks: set[str]) -> str:
    if segment.kind == "block":
        return next(name for name, _ in segment.modules if name in blocks)
    if segment.kind == "norm":
        return segment.modules[0][0]
    return f"{segment.tower}.{segment.kind}" if segment.tower else segment.kind


def _split(names: Sequence[str]) -> list[str]:
    common = _common(names)
    depth = common.count(".") + 1 if common else 0
    groups: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".")
        if len(parts) <= depth + 1 or (len(parts) == depth + 2 and parts[-1].isdigit()):  # no more than a list
            return [common]
        groups.setdefault(re.sub(r"\d+", "#", parts[depth]), []).append(name)
    if len(groups) < 2:
        return [common]
    if any(len({name.split(".")[depth] for name in group}) > 1 for group in groups.values()):
        return [common]  # a row of stages among other things
    return [path for group in groups.values() for path in _towers_below(group, depth)]


def _towers_below(group: Sequence[str], depth: int) -> list[str]:
    deeper = _split(group)
    return deeper if len(deeper) > 1 else [".".join(group[0].split(".")[: depth + 1])]


def _common(names: Sequence[str]) -> str:
    """The last module that holds all of the names, itself none of them."""
    rows = [name.split(".")[:-1] for name in names]
    common = []
    for level in zip(*rows, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return ".".join(common)
