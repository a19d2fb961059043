"""Which values of a network are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Literal, get_args

from torch import Tensor, nn

from hf_tl.embedding.anatomy import attention_output, find_anatomy, hidden_layers, is_adapter, is_router
from hf_tl.embedding.pooling import Pooling, find_pooling
from hf_tl.embedding.strides import strides_of
from hf_tl.errors import InputError, in_one_line
from hf_tl.layers import closest, head_names, is_inside, match_names
from hf_tl.models import Network
from hf_tl.table import format_table
from hf_tl.trace import Batch, Reading, Trace, first_float, is_convolution, trace


LAST = "last"  # the name of the tap on what the classifier reads
Kind = Literal["conv", "linear", "attention", "hidden", "block", "norm", "other", "last"]
PRESETS = {
    "conv": ("conv",),
    "linear": ("linear", "attention", "hidden"),
    "blocks": ("block", "norm"),
}
Selection = str | Sequence[str] | Callable[[str, nn.Module], bool]
"""Which taps:

"auto"    of a CNN every convolution and fully connected layer; of a transformer, block by block, the attention's
          output, the hidden layer of the MLP and the block's output, then the final norm
"blocks"  each block's output, and the final norm
"linear"  every fully connected layer
"conv"    every convolution
"last"    what the classifier reads
[...]     any of these, and glob patterns over layer names, such as ["blocks.1*", "last"]; a pattern that matches no
          layer is matched with all modules
callable  from a module's name and the module to whether its output is read
"""


@dataclass(frozen=True)
class Tap:
    """One value that is read in each forward pass.

    Attributes:
        name: the layer's name, with "#2" for its second call in a pass and so on; "last" for the classifier's input.
        depth: 0 for the first tap to be reached, 1 for the last.
        reading: where the value is read.
        n_features: its number of channels.
        channels_last: whether channels are its last axis.
        chain: what stands between the layer's own output and the value: a norm, an activation, both or nothing.
        kind: what the value is in the network.
        shape: of the value for the example's batch.
        pool: how its positions become one number per channel.
        prefix: number of tokens before the patches, which "patch-mean" leaves out.
        strides: the convolutions over time between the attention mask and the value, see `pooling.resample`.
        calls: how often its module runs in one pass.
        auto: whether "auto" reads it.
    """

    name: str
    depth: float
    reading: Reading
    n_features: int
    channels_last: bool
    chain: tuple[str, ...] = ()
    kind: Kind = "other"
    shape: tuple[int, ...] = ()
    pool: str | Pooling = "mean"
    prefix: int = 0
    strides: tuple[tuple[int, int, int, int], ...] = ()
    calls: int = 1
    auto: bool = False


def find_taps(
    network: Network,
    example: Batch,
    *,
    activation: Literal["after", "before"],
    selection: Selection = ("auto", LAST),
    top: float = 1.0,
) -> tuple[list[Tap], dict[str, str]]:
    """The chosen values outside the classifier, in execution order, and the tap "last" behind them.

    Args:
        network: any network.
        example: a batch of two rows or more.
        activation: whether a layer is read after its norm and activation, or its own output before them.
        selection: see `Selection`.
        top: the share of the chosen taps to keep, counted from the task side.

    Returns:
        The taps, and the layers that cannot be read: name -> reason.

    Raises:
        InputError: the network cannot run on the example, or the selection chooses nothing.
    """
    returned: dict[tuple[str, int], tuple[int, ...]] = {}
    try:
        with _watching(network.model, returned):
            record = trace(network.model, example)
    except Exception as error:  # the network is the user's, and so are its errors
        raise InputError(
            f"{network.name} cannot run on its prepared inputs, {_shapes(example)}: {in_one_line(error)}; "
            f"check the image size and what prepares the inputs"
        ) from error
    survey = _Survey(network, record, returned, n_rows(example), activation)
    taps = survey.select(selection)
    strides = strides_of(record, example)
    prefix = _n_prefix_tokens(network.model)
    taps = [
        replace(tap, prefix=prefix, strides=strides.get(_n_positions(tap), ())) for tap in _top(taps, top, selection)
    ]
    return taps, survey.left_out


def select_names(names: Sequence[str], taps: Selection, top: float = 1.0, *, kinds: Sequence[str] = ()) -> list[str]:
    """The names that a selection keeps of taps that were read before, in the order of `names`.

    Args:
        names: tap names from data to task.
        taps: see `Selection`; "auto" keeps all but "last", a callable cannot be asked again.
        top: the share of the selected taps to keep, counted from the task side, rounded down, at least one.
        kinds: what each tap is, for the presets.

    Raises:
        InputError: a pattern that matches nothing, or a share outside (0, 1].
    """
    if callable(taps):
        raise InputError("a function over modules cannot choose among stored layers; give patterns over their names")
    kept: set[str] = set()
    others = [name for name in names if name != LAST]
    for pattern in [taps] if isinstance(taps, str) else taps:
        if pattern == "auto":
            kept.update(others)
        elif pattern in PRESETS and kinds:
            kept.update(n for n, kind in zip(names, kinds, strict=True) if kind in PRESETS[pattern])
        else:
            kept.update(match_names([pattern], names if pattern == LAST else others))
    return _top([name for name in names if name in kept], top, taps)


def with_pooling(
    taps: Sequence[Tap], pool: str | Pooling | Mapping[str, str | Pooling], network: Network
) -> list[Tap]:
    """The taps with their pooling.

    Args:
        taps: from `find_taps`.
        pool: a name in `POOLINGS` or a pooling of your own, for all taps, or one for each kind of tap, such as
            {"conv": "max", "block": "cls"}; the mean for kinds that are not named. "auto" is the mean.
        network: what the taps belong to.

    Raises:
        InputError: an unknown pooling or kind; "cls" where there is no class token.
    """
    kinds = get_args(Kind)
    wanted = dict(pool) if isinstance(pool, Mapping) else dict.fromkeys(kinds, pool)
    for kind, how in wanted.items():
        if kind not in kinds:
            raise InputError(f"there is no kind of tap {kind!r}; {closest(kind, kinds)}")
        wanted[kind] = "mean" if how == "auto" else how
        find_pooling(wanted[kind])
    made = [replace(tap, pool=wanted.get(tap.kind, "mean")) for tap in taps]
    if network.modality == "image" and any(tap.pool == "cls" and tap.prefix == 0 for tap in made):
        raise InputError(f"{network.name} has no class token for pool='cls'; use 'mean' or 'max'")
    return made


def describe_taps(taps: Sequence[Tap]) -> str:
    """A table: each tap, what it is, after what it is read, its shape in a batch of two, its pooling and columns."""
    rows, start = [], 0
    for tap in taps:
        columns = f"{start}:{start + tap.n_features}"
        how = tap.pool if isinstance(tap.pool, str) else type(tap.pool).__name__
        rows.append([tap.name, tap.kind, " + ".join(tap.chain), str(tap.shape), how, columns])
        start += tap.n_features
    return format_table(["tap", "kind", "after", "shape", "pool", "columns"], rows)


def n_rows(batch: Batch) -> int:
    """Number of rows of a batch: the length of its first tensor."""
    return len(batch) if isinstance(batch, Tensor) else len(next(iter(batch.values())))


class _Survey:
    """Every value of a traced network that could be read."""

    def __init__(
        self,
        network: Network,
        record: Trace,
        returned: Mapping[tuple[str, int], tuple[int, ...]],
        rows: int,
        activation: str,
    ):
        self.network, self.record, self.returned, self.rows = network, record, returned, rows
        self.modules = dict(network.model.named_modules())
        self.order = {key: i for i, key in enumerate(returned)}
        self.heads = head_names(network.model, record)
        self.left_out: dict[str, str] = {}
        self.layers = self._layers(activation)
        self.others: dict[tuple[str, int], Tap] = {}
        self.last = _last_tap(record, self.heads, rows)
        self._find_automatic(activation)
        self.layers = self._with_depth(self.layers)
        self.others = self._with_depth(self.others)

    def select(self, selection: Selection) -> list[Tap]:
        found = {**self.layers, **self.others}
        if callable(selection):
            chosen = self._named(
                [name for name in dict.fromkeys(self.record.modules) if selection(name, self.modules[name])]
            )
        else:
            chosen = {}
            for pattern in [selection] if isinstance(selection, str) else selection:
                if pattern == LAST:
                    if self.last is None:
                        raise InputError(f"{self.network.name} has no last layer that gives one vector a row")
                elif pattern == "auto":
                    chosen |= {key: tap for key, tap in found.items() if tap.auto}
                elif pattern in PRESETS:
                    chosen |= {key: tap for key, tap in found.items() if tap.kind in PRESETS[pattern]}
                    if not chosen:
                        raise InputError(f"{self.network.name} has no layers for taps={pattern!r}; try taps='auto'")
                else:
                    chosen |= self._matching(pattern)
        taps = [chosen[key] for key in sorted(chosen, key=self.order.__getitem__)]
        wanted = [] if callable(selection) else [selection] if isinstance(selection, str) else selection
        return [*taps, self.last] if LAST in wanted else taps

    def _matching(self, pattern: str) -> dict[tuple[str, int], Tap]:
        names = {tap.name: key for key, tap in self.layers.items()}
        try:
            return {names[name]: self.layers[names[name]] for name in match_names([pattern], list(names))}
        except InputError:
            chosen = self._named(_globbed(pattern, dict.fromkeys(self.record.modules)))
            if not chosen:
                raise
            return chosen

    def _named(self, names: Sequence[str]) -> dict[tuple[str, int], Tap]:
        """The taps on some modules: a layer after its activation, of any other module its output."""
        found = {**self.layers, **self.others}
        chosen = {}
        for name in names:
            for call in range(self.record.calls[name]):
                tap = found.get((name, call)) or self._output(name, call, "other")
                if tap is not None and not is_inside(name, self.heads):
                    chosen[name, call] = tap
        return self._with_depth(chosen)

    def _layers(self, activation: str) -> dict[tuple[str, int], Tap]:
        taps = {}
        for layer in self.record.layers:
            name = self._name(layer.name, layer.call)
            if is_inside(layer.name, self.heads):
                self.left_out[name] = "the classifier of the source task"
            elif is_inside(layer.name, self.network.untrained):
                self.left_out[name] = "its weights are not in the checkpoint"
            elif is_adapter(layer.name):
                self.left_out[name] = "half of an adapter; the layer that it adapts is read"
            elif is_router(layer.name, layer.module):
                self.left_out[name] = "it chooses experts"
            elif not layer.shape or layer.shape[0] % self.rows:
                self.left_out[name] = f"its output {layer.shape} does not have the batch's {self.rows} rows first"
            else:
                convolution = is_convolution(layer.module)
                taps[layer.name, layer.call] = Tap(
                    name,
                    0.0,
                    layer.after if activation == "after" else layer.before,
                    layer.shape[1 if convolution else -1],
                    channels_last=not convolution,
                    chain=layer.chain if activation == "after" else (),
                    kind="conv" if convolution else "linear",
                    shape=layer.shape,
                    calls=self.record.calls[layer.name],
                )
        return taps

    def _find_automatic(self, activation: str) -> None:
        anatomy = find_anatomy(self.network.model, self.record, self.heads)
        for name in anatomy.blocks:
            self._add(name, "block", auto=name in anatomy.attentions)
        if not anatomy.attentions:
            self.layers = {key: replace(tap, auto=True) for key, tap in self.layers.items()}
            return
        for key, tap in self.layers.items():
            if tap.kind == "conv" and tap.chain and not is_inside(key[0], anatomy.attentions):
                self.layers[key] = replace(tap, auto=True)
        for block, attentions in anatomy.attentions.items():
            for attention in attentions:
                end = attention_output(attention, self.record.layers)
                ends = [key for key in self.layers if key[0] == end]
                for key in ends:
                    self.layers[key] = replace(self.layers[key], kind="attention", auto=True)
                if not ends:
                    self._add(attention, "attention", auto=True)
            for layer, reader in hidden_layers(block, attentions, self.record.layers):
                tap = self.layers.get((layer.name, layer.call))
                if tap is None:
                    continue
                if reader is not None and activation == "after":
                    tap = replace(
                        tap, reading=Reading(reader.name, reader.call, side="input"), chain=(*tap.chain, "gate")
                    )
                self.layers[layer.name, layer.call] = replace(tap, kind="hidden", auto=True)
        if anatomy.final_norm is not None:
            self._add(anatomy.final_norm, "norm", auto=True)

    def _add(self, name: str, kind: Kind, *, auto: bool) -> None:
        for call in range(self.record.calls[name]):
            tap = self._output(name, call, kind)
            known = (name, call) in self.layers  # a plain stack, whose blocks are its layers
            if tap is not None and not known and not is_inside(name, self.network.untrained):
                self.others[name, call] = replace(tap, auto=auto)

    def _output(self, name: str, call: int, kind: Kind) -> Tap | None:
        """A tap on what a module returns; None where that does not have the batch's rows first."""
        shape = self.returned.get((name, call), ())
        if len(shape) < 2 or shape[0] % self.rows:
            return None
        channels_last = self._channels_last(name, shape)
        return Tap(
            self._name(name, call),
            0.0,
            Reading(name, call),
            shape[-1 if channels_last else 1],
            channels_last=channels_last,
            kind=kind,
            shape=shape,
            calls=self.record.calls[name],
        )

    def _channels_last(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether channels are a module's last axis: that of the width of the last layer that ran by its end."""
        end = self.order[name, 0]
        before = [
            key for key in self.layers if self.order.get(key, end + 1) <= end and len(self.layers[key].shape) > 1
        ]
        if len(shape) == 2 or not before:
            return len(shape) != 4
        layer = self.layers[max(before, key=self.order.__getitem__)]
        width = layer.shape[-1 if layer.channels_last else 1]
        if (shape[-1] == width) != (shape[1] == width):
            return shape[-1] == width
        return layer.channels_last if len(layer.shape) == len(shape) else len(shape) == 3

    def _name(self, name: str, call: int) -> str:
        return name if self.record.calls[name] == 1 else f"{name}#{call + 1}"

    def _with_depth(self, taps: Mapping[tuple[str, int], Tap]) -> dict[tuple[str, int], Tap]:
        """Depth counts the layers: that of any other module is that of the last layer that ran by its end."""
        ends = sorted(self.order[key] for key in self.layers if key in self.order)
        deepest = max(len(ends) - 1, 1)
        made = {}
        for key, tap in taps.items():
            passed = sum(end <= self.order[key] for end in ends)
            made[key] = replace(tap, depth=max(passed - 1, 0) / deepest)
        return made


def _last_tap(record: Trace, heads: Sequence[str], rows: int) -> Tap | None:
    """What the classifier reads; where there is no classifier, what the network returns."""
    if heads:
        reading, shape = Reading(heads[0], 0, side="input"), record.given.get(heads[0])
    else:
        reading, shape = Reading("", 0), None if record.output is None else tuple(record.output.shape)
    if shape is None or len(shape) < 2 or shape[0] != rows:
        return None
    channels_last = len(shape) != 4
    return Tap(LAST, 1.0, reading, shape[-1 if channels_last else 1], channels_last, kind="last", shape=shape)


@contextmanager
def _watching(model: nn.Module, returned: dict[tuple[str, int], tuple[int, ...]]) -> Iterator[None]:
    """Fills in the shape of what each module call returns, in the order in which calls end."""
    calls: dict[str, int] = {}

    def watch(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, output: object) -> None:
            call = calls.get(name, 0)
            calls[name] = call + 1
            value = first_float(output)
            returned[name, call] = () if value is None else tuple(value.shape)

        return hook

    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(module.register_forward_hook(watch(name)).remove)
        yield


def _top(taps: list, top: float, selection: Selection) -> list:
    if not 0 < top <= 1:
        raise InputError(f"top must be above 0 and at most 1, the share of layers to keep, got {top}")
    if not taps:
        raise InputError(f"taps={selection!r} selects none of the layers of the network")
    return taps[-max(1, int(top * len(taps))) :]


def _globbed(pattern: str, names: Sequence[str]) -> list[str]:
    try:
        return match_names([pattern], list(names))
    except InputError:
        return []


def _n_positions(tap: Tap) -> int | None:
    return tap.shape[1 if tap.channels_last else 2] if len(tap.shape) == 3 else None


PREFIX_TOKENS = {"cls_token", "class_token", "class_embedding", "dist_token", "distillation_token"}
REGISTERS = {"reg_token", "register_tokens"}


def _n_prefix_tokens(model: nn.Module) -> int:
    """Tokens before the patches: class, distillation and register tokens, by the names of their parameters."""
    count = 0
    for name, parameter in model.named_parameters():
        leaf = name.rpartition(".")[2]
        count += 1 if leaf in PREFIX_TOKENS else parameter.shape[1] if leaf in REGISTERS else 0
    return count


def _shapes(batch: Batch) -> str:
    parts = {"input": batch} if isinstance(batch, Tensor) else batch
    return ", ".join(f"{name} {tuple(value.shape)}" for name, value in parts.items())
