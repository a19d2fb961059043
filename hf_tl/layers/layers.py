"""The depth-ordered layers of a network, from data (depth 0) to task (depth 1)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, overload

from torch import nn

from hf_tl import plots
from hf_tl.architectures import inner_network
from hf_tl.errors import DummyInputError, InputError, in_one_line
from hf_tl.example import dummy_batch, shapes_of
from hf_tl.layers.blocks import Blocks, find_blocks
from hf_tl.layers.partition import Kind, Segment, head_names, partition, split_by_leaf
from hf_tl.names import closest, is_inside, match_names
from hf_tl.table import as_html, format_table
from hf_tl.trace import Batch, Trace, trace


Level = Literal["block", "leaf"]

COLORS = {"stem": plots.BLUE, "block": plots.SKY, "norm": plots.GREEN, "head": plots.ORANGE}


@dataclass(frozen=True, eq=False)
class Layer:
    """A part of a network at its place between data and task. Every parameter belongs to exactly one layer.

    Attributes:
        name: the name of its module; for a stem or a head of several modules "stem" or "head", with the tower in
            front ("decoder.stem") in a network of several towers.
        kind: "stem" (up to the first block), "block", "norm" (after the last block) or "head" (what follows).
        modules: names and modules that make it up, in execution order.
        index: number of the block within its tower, from 0; None for the other kinds.
        depth: 0 for the first layer to run, 1 for the last.
        calls: how often it runs in one forward pass.
        split_point: whether exactly one tensor that depends on parameters passes from here to all that follows, so
            that the network can be split behind this layer.
        tower: "encoder", "vision_model", ...; "" in a network of one tower, and for what stands outside all towers.
        place: where it stands, in words that a file can hold: "stem", "3/12" for the fourth of twelve blocks,
            "encoder.0/6", "norm", "head".
        owned: what `parameters()` lists.
    """

    name: str
    kind: Kind
    modules: tuple[tuple[str, nn.Module], ...]
    index: int | None
    depth: float
    calls: int
    split_point: bool
    tower: str = ""
    place: str = ""
    owned: tuple[nn.Parameter, ...] = field(default=(), repr=False)

    @property
    def module(self) -> nn.Module | None:
        """Its module: the largest, if there are several; None for a layer of bare parameters."""
        sizes = [sum(parameter.numel() for parameter in module.parameters()) for _, module in self.modules]
        return self.modules[sizes.index(max(sizes))][1] if sizes else None

    def parameters(self) -> list[nn.Parameter]:
        """Its parameters. One that several layers share is with the first of them to run."""
        return list(self.owned)

    @property
    def n_parameters(self) -> int:
        """Number of scalars in its parameters."""
        return sum(parameter.numel() for parameter in self.owned)

    @property
    def n_trainable(self) -> int:
        """Number of scalars in those of its parameters that require gradients now."""
        return sum(parameter.numel() for parameter in self.owned if parameter.requires_grad)


@dataclass(frozen=True, eq=False)
class Layers(Sequence[Layer]):
    """The layers of a network in execution order.

    Attributes:
        items: the layers.
        tied: groups of parameter names that stand for one parameter, or share its memory.
        towers: names of the towers, in execution order; empty for a network of one tower.
        detector: what found the blocks: "map" (the user's), "checkpointing", "timm", "dataflow" or "leaves",
            joined by "+" where the parts of a network were found differently.
        run_order: names of all modules, in the order in which they started; one that is called twice is there twice.
    """

    items: tuple[Layer, ...]
    tied: tuple[tuple[str, ...], ...] = ()
    towers: tuple[str, ...] = ()
    detector: str = "leaves"
    run_order: tuple[str, ...] = ()

    @overload
    def __getitem__(self, index: int) -> Layer: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Layer, ...]: ...

    def __getitem__(self, index: int | slice) -> Layer | tuple[Layer, ...]:
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def n_parameters(self) -> int:
        """Number of scalars in the parameters of all layers."""
        return sum(layer.n_parameters for layer in self.items)

    def table(self) -> str:
        """One row a layer: its place, name, depth and parameters."""
        rows = [
            [layer.kind if layer.index is None else str(layer.index), layer.name, layer.depth, layer.n_parameters]
            for layer in self
        ]
        return format_table(["layer", "name", "depth", "parameters"], rows)

    def __str__(self) -> str:
        return f"{self.table()}\n\n{len(self)} layers, {self.n_parameters:,} parameters; found by {self.detector}"

    def _repr_html_(self) -> str:
        return as_html(str(self))

    def plot(self, path: str | Path, *, title: str, frozen: Collection[Layer] = ()) -> None:
        """Draws a bar of the number of parameters for each layer, the data at the bottom, the task on top.

        A dashed line stands where one tensor alone passes.

        Args:
            path: of a PNG, SVG or PDF file.
            title: above.
            frozen: layers that are drawn in grey.

        Raises:
            InputError: a file name that ends otherwise.
        """
        grey = {id(layer) for layer in frozen}
        counts = [layer.n_parameters for layer in self]
        with plots.picture(path, title=title, size=(8, 0.2 * len(self) + 1.4)) as (panel,):
            plots.bars(
                panel,
                [_label(layer) for layer in self],
                counts,
                colors=[plots.GREY if id(layer) in grey else COLORS[layer.kind] for layer in self],
                texts=[plots.in_short(count) for count in counts],
            )
            boundaries = [i + 0.5 for i, layer in enumerate(self) if layer.split_point]
            for i, y in enumerate(boundaries):
                plots.level(panel, y, color="#888888", label=None if i else "one tensor passes")
            plots.axes(panel, x="parameters", shortened=True)
            kinds = dict.fromkeys(layer.kind for layer in self if id(layer) not in grey)
            plots.legend(panel, {kind: COLORS[kind] for kind in kinds} | ({"frozen": plots.GREY} if grey else {}))


def list_layers(
    model: nn.Module, level: Level = "block", *, example: Batch | None = None, blocks: Sequence[str] | None = None
) -> Layers:
    """The layers of a network in execution order, found by one forward pass that leaves the network as it was.

    Args:
        model: any network.
        level: "block" for stem, blocks, norm and head, which hold all parameters between them; "leaf" for every
            module that has parameters of its own and runs.
        example: what the network is called with: a mapping of tensors (by keyword) or one tensor; by default it
            is a dummy from the network's configuration.
        blocks: names of the modules that are the blocks, or glob patterns for them, in execution order; by
            default they are found.

    Raises:
        InputError: the network cannot run on the example, or `blocks` does not name modules that run in this order;
            DummyInputError where there is no dummy that it runs on.
    """
    if level not in ("block", "leaf"):
        raise InputError(f"level should be 'block' or 'leaf', got {level!r}")
    model = inner_network(model)
    source, refused = ("a dummy input", DummyInputError) if example is None else ("the example", InputError)
    example = dummy_batch(model, n=1) if example is None else example
    try:
        record = trace(model, example)
    except Exception as error:  # the network is the user's, and so are its errors
        raise refused(
            f"{type(model).__name__} cannot run on {source}, {shapes_of(example)}: {in_one_line(error)}; "
            f"give one that it can be called with as example=..."
        ) from error
    return layers_of(model, record, level, blocks=blocks)


def layers_of(
    model: nn.Module, record: Trace, level: Level = "block", *, blocks: Sequence[str] | None = None
) -> Layers:
    """What `list_layers` gives, from a forward pass that was traced before.

    Args:
        model: any network.
        record: its traced forward pass.
        level: as in `list_layers`.
        blocks: as in `list_layers`.
    """
    heads = head_names(model, record)
    found = find_blocks(record, heads) if blocks is None else _blocks_of_user(blocks, model, record)
    segments, towers = partition(model, record, found, heads)
    if level == "leaf":
        segments = split_by_leaf(model, record, segments)
    return Layers(_layers(segments, record), _tied(model), towers, found.detector, tuple(record.modules))


def write_place(tower: str, kind: str, index: int | None, n_blocks: int) -> str:
    """The place of a layer: its kind, or a block's number and how many blocks its tower has."""
    own = kind if index is None else f"{index}/{n_blocks}"
    return f"{tower}.{own}" if tower else own


def _blocks_of_user(patterns: Sequence[str], model: nn.Module, record: Trace) -> Blocks:
    if isinstance(patterns, str):
        raise InputError(f"blocks should be a list of module names, got the string {patterns!r}; write [{patterns!r}]")
    order = {name: i for i, name in enumerate(dict.fromkeys(record.modules)) if name}
    known = [name for name, _ in model.named_modules() if name]
    chosen: list[str] = []
    for pattern in patterns:
        outermost: list[str] = []
        for name in match_names([pattern], known):
            if not is_inside(name, outermost):
                outermost.append(name)
        ran = sorted((name for name in outermost if name in order), key=order.__getitem__)
        if not ran:
            raise InputError(
                f"blocks names {outermost[0]!r}, which does not run on the example; name modules that are called, "
                f"{closest(outermost[0], list(order))}"
            )
        for name in ran:
            clash = next((other for other in chosen if is_inside(name, [other]) or is_inside(other, [name])), None)
            if clash is not None:
                raise InputError(f"blocks names both {clash!r} and {name!r}, one inside the other; keep one of them")
            if chosen and order[name] < order[chosen[-1]]:
                raise InputError(f"blocks should be in execution order, but {name!r} runs before {chosen[-1]!r}")
            chosen.append(name)
    if not chosen:
        raise InputError("blocks is empty; name at least one module, or leave it out to have the blocks found")
    return Blocks(tuple(chosen), "map")


def _layers(segments: Sequence[Segment], record: Trace) -> tuple[Layer, ...]:
    deepest = max(len(segments) - 1, 1)
    n_blocks = Counter(segment.tower for segment in segments if segment.kind == "block")
    layers, stop = [], 0
    for i, segment in enumerate(segments):
        stop = max(stop, segment.stop)
        following = min((later.start for later in segments[i + 1 :]), default=0)
        layers.append(
            Layer(
                name=segment.name,
                kind=segment.kind,
                modules=tuple(segment.modules),
                index=segment.index,
                depth=i / deepest,
                calls=max((record.calls[name] for name, _ in segment.modules), default=0),
                split_point=following > stop
                and 1 in (record.flow.crossing(stop), record.flow.crossing(following - 1)),
                tower=segment.tower,
                place=write_place(segment.tower, segment.kind, segment.index, n_blocks[segment.tower]),
                owned=tuple(segment.parameters),
            )
        )
    return tuple(layers)


def _tied(model: nn.Module) -> tuple[tuple[str, ...], ...]:
    groups: dict[tuple, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        memory = parameter.data_ptr() if parameter.numel() else 0  # 0 on the meta device, too: nothing is shared there
        groups.setdefault((parameter.device, memory) if memory else (id(parameter),), []).append(name)
    return tuple(tuple(names) for names in groups.values() if len(names) > 1)


def _label(layer: Layer) -> str:
    number = "" if layer.index is None else f"{layer.index}  "
    repeats = f"  x{layer.calls}" if layer.calls > 1 else ""
    return f"{number}{layer.name}{repeats}"
