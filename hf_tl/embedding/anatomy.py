"""What of a network can be read: one traced forward pass, the values in it, and the choice among them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from torch import nn

from hf_tl.architectures import is_convolution, is_fully_connected, is_norm
from hf_tl.embedding.isolation import find_mixed, find_unmatched
from hf_tl.embedding.pooling import find_strides, n_prefix_tokens
from hf_tl.embedding.taps import (
    LAST,
    PRESETS,
    Kind,
    Tap,
    TapSelection,
    keep_top,
    match_term,
    select_places,
    terms_of,
    towers_of,
)
from hf_tl.errors import InputError, in_one_line
from hf_tl.example import shapes_of
from hf_tl.layers import head_names, layers_of
from hf_tl.layers.select import find_place
from hf_tl.models import Network
from hf_tl.names import is_inside, name_matcher
from hf_tl.trace import Batch, LayerCall, Reading, Trace, n_samples, trace


ACTIVATED = 2  # the stage of a layer call whose value was followed through an activation
ATTENTION = re.compile("attention|attn", re.IGNORECASE)


def find_taps(
    network: Network,
    example: Batch,
    *,
    activation: Literal["after", "before"],
    selection: TapSelection = ("auto", LAST),
    top: float = 1.0,
    padded: bool = True,
) -> tuple[list[Tap], dict[str, str]]:
    """The chosen values outside the classifier, in execution order, and the tap "last" behind them.

    Args:
        network: any network.
        example: a batch of two samples or more.
        activation: whether a layer is read after its norm and activation, or its own output before them.
        selection: see `TapSelection`.
        top: the share of the chosen taps to keep, counted from the task side.
        padded: whether samples share a batch, padded to one length where they differ.

    Returns:
        The taps, and the layers that cannot be read: name -> reason.

    Raises:
        InputError: the network cannot run on the example, or the selection chooses nothing.
    """
    try:
        record = trace(network.model, example)
    except Exception as error:  # the network is the user's, and so are its errors
        raise InputError(
            f"{network.name} cannot run on its prepared inputs, {shapes_of(example)}: {in_one_line(error)}; "
            f"check what prepares them"
        ) from error
    survey = _Survey(network, record, n_samples(example), activation)
    strides, prefix = find_strides(record, example), n_prefix_tokens(network.model)
    taps = [replace(tap, prefix=prefix, strides=strides.get(tap.n_positions, ())) for tap in survey.select(selection)]
    mixed = find_mixed(network.model, example, taps, several=padded)
    mixed |= find_unmatched(example, [tap for tap in taps if padded and tap.name not in mixed])
    left_out = survey.left_out | mixed
    chosen = [tap for tap in taps if tap.name not in mixed]
    if not chosen and left_out and (taps or selection == "auto"):
        name, reason = next(iter((mixed or survey.left_out).items()))
        raise InputError(f"layer {name!r} of {network.name} cannot be read: {reason}; choose other layers with taps=")
    return keep_top(chosen, top, selection), left_out


def hidden_layers(
    block: str, attentions: Sequence[str], layers: Sequence[LayerCall]
) -> list[tuple[LayerCall, LayerCall | None]]:
    """The layers of a block's MLP that an activation follows; with it, where the MLP is gated, what reads the product.

    In a gated MLP, down(act(gate(x)) * up(x)), the hidden values are what `down` reads, not what the activation
    gives. There `gate` and `up` have one width, run in either order, and `down` is the next layer of another.
    """
    inside = [
        layer
        for layer in layers
        if is_inside(layer.name, [block])
        and not is_inside(layer.name, attentions)
        and is_fully_connected(layer.module)
        and not _is_router(layer.name, layer.module)
    ]
    found = []
    for i, layer in enumerate(inside):
        if layer.stage == ACTIVATED:
            after = inside[i + 1 :]
            down = next((k for k, other in enumerate(after) if other.shape[-1] != layer.shape[-1]), None)
            up_first = i > 0 and inside[i - 1].shape == layer.shape and inside[i - 1].stage != ACTIVATED
            gated = down is not None and (down > 0 or up_first)
            found.append((layer, after[down] if down is not None and gated else None))
    return found


class _Survey:
    """Every value of a traced network that could be read.

    Args:
        network: the network.
        record: a forward pass of it.
        n: number of samples of that pass's batch.
        activation: whether layers are read "after" their activation or "before" it.

    Attributes:
        layers: the taps on convolutions and fully connected layers, by module name and call.
        others: the taps on blocks, attention modules without a layer of their own, and the final norm.
        last: the tap on what the classifier reads, or None.
        left_out: layers that cannot be read: name -> reason.
    """

    def __init__(self, network: Network, record: Trace, n: int, activation: str):
        self.network, self.record, self.n = network, record, n
        self.modules = dict(network.model.named_modules())
        self.order = {key: i for i, key in enumerate(record.returned)}
        self.heads = head_names(network.model, record)
        self.listed = layers_of(network.model, record)
        self.left_out: dict[str, str] = {}
        self.layers = self._layers(activation)
        self.others: dict[tuple[str, int], Tap] = {}
        self.last = self._last()
        self._mark_automatic(activation)
        self.layers = self._with_depth(self.layers)
        self.others = self._with_depth(self.others)

    def select(self, selection: TapSelection) -> list[Tap]:
        """The chosen taps in execution order, "last" behind them.

        Raises:
            InputError: a preset or a pattern that chooses nothing.
        """
        chosen: dict[tuple[str, int], Tap] = {}
        with_last = False
        if callable(selection):
            ran = dict.fromkeys(self.record.modules)
            chosen = self._named([name for name in ran if selection(name, self.modules[name])])
        else:
            terms = terms_of(selection)
            for term, text, at in terms:
                if term != LAST:
                    chosen |= self._term(term, text, at)
                    continue
                if self.last is None and len(terms) == 1:
                    raise InputError(f"{self.network.name} has no last layer that gives one vector a sample")
                with_last = self.last is not None
        taps = [chosen[key] for key in sorted(chosen, key=self.order.__getitem__)]
        return [*taps, self.last] if with_last and self.last is not None else taps

    def _term(self, term: str, text: str, position: int) -> dict[tuple[str, int], Tap]:
        """The taps that a term names; `text` is what it is a part of, from `position` on."""
        found = {**self.layers, **self.others}
        automatic = {key: tap for key, tap in found.items() if tap.auto}
        named = {tap.name: key for key, tap in self.layers.items()}
        places = [tap.place for tap in automatic.values()]
        if term in named:
            return {named[term]: self.layers[named[term]]}
        if term == "auto":
            return automatic
        if term in PRESETS:
            chosen = {key: tap for key, tap in found.items() if tap.kind in PRESETS[term]}
            if not chosen:
                raise InputError(f"{self.network.name} has no layers for taps={term!r}; try taps='auto'")
            return chosen
        if find_place(term, towers_of(places)):
            inside = select_places(places, term, text=text, position=position)
            return {key: tap for key, tap in automatic.items() if tap.place in inside}
        try:
            names = match_term(term, list(named), text=text, position=position)
        except InputError:
            matches = name_matcher(term)
            chosen = self._named([name for name in dict.fromkeys(self.record.modules) if matches and matches(name)])
            if not chosen:
                raise
            return chosen
        return {named[name]: self.layers[named[name]] for name in names}

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
            elif _is_adapter(layer.name):
                self.left_out[name] = "half of an adapter; the layer that it adapts is read"
            elif _is_router(layer.name, layer.module):
                self.left_out[name] = "it chooses experts"
            elif not layer.shape or layer.shape[0] % self.n:
                self.left_out[name] = f"its output {layer.shape} does not have the batch's {self.n} samples first"
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
                    place=self._place(layer.name),
                )
        return taps

    def _mark_automatic(self, activation: str) -> None:
        """Marks what "auto" reads: every layer or, where blocks attend, attention, MLP, blocks and the final norm."""
        blocks = [layer.name for layer in self.listed if layer.kind == "block"]
        attentions = self._attentions(blocks)
        for name in blocks:
            self._add(name, "block", auto=name in attentions)
        if not attentions:
            self.layers = {key: replace(tap, auto=True) for key, tap in self.layers.items()}
            return
        for key, tap in self.layers.items():
            if tap.kind == "conv" and tap.chain and not is_inside(key[0], attentions):
                self.layers[key] = replace(tap, auto=True)
        for block, modules in attentions.items():
            for attention in modules:
                end = _attention_output(attention, self.record.layers)
                ends = [key for key in self.layers if key[0] == end]
                for key in ends:
                    self.layers[key] = replace(self.layers[key], kind="attention", auto=True)
                if not ends:
                    self._add(attention, "attention", auto=True)
            for layer, reader in hidden_layers(block, modules, self.record.layers):
                hidden = self.layers.get((layer.name, layer.call))
                if hidden is None:
                    continue
                if reader is not None and activation == "after":
                    reading = Reading(reader.name, reader.call, side="input")
                    hidden = replace(hidden, reading=reading, chain=(*hidden.chain, "gate"))
                self.layers[layer.name, layer.call] = replace(hidden, kind="hidden", auto=True)
        norm = self._final_norm(blocks)
        if norm is not None:
            self._add(norm, "norm", auto=True)

    def _attentions(self, blocks: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Of each block that attends, the outermost attention modules, known by the names of their classes."""
        found = {}
        ran = list(dict.fromkeys(self.record.modules))
        for block in blocks:
            within = [name for name in ran if is_inside(name, [block]) and name != block]
            named = [name for name in within if ATTENTION.search(type(self.modules[name]).__name__)]
            outer = tuple(name for name in named if not is_inside(name.rpartition(".")[0], named))
            if outer:
                found[block] = outer
        return found

    def _final_norm(self, blocks: Sequence[str]) -> str | None:
        """The name of the norm after the last block."""
        ran = list(dict.fromkeys(self.record.modules))
        start = max(i for i, name in enumerate(ran) if is_inside(name, [blocks[-1]]))
        norms = [name for name in ran[start + 1 :] if is_norm(self.modules[name]) and not is_inside(name, self.heads)]
        return norms[-1] if norms else None

    def _add(self, name: str, kind: Kind, *, auto: bool) -> None:
        for call in range(self.record.calls[name]):
            tap = self._output(name, call, kind)
            known = (name, call) in self.layers  # a plain stack, whose blocks are its layers
            if tap is not None and not known and not is_inside(name, self.network.untrained):
                self.others[name, call] = replace(tap, auto=auto)

    def _output(self, name: str, call: int, kind: Kind) -> Tap | None:
        """A tap on what a module returns; None where that does not have the batch's samples first."""
        shape = self.record.returned.get((name, call), ())
        if len(shape) < 2 or shape[0] % self.n:
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
            place=self._place(name),
        )

    def _last(self) -> Tap | None:
        """What the classifier reads; where there is no classifier, what the network returns."""
        record = self.record
        if self.heads:
            reading, shape = Reading(self.heads[0], 0, side="input"), record.given.get(self.heads[0])
        else:
            reading, shape = Reading("", 0), None if record.output is None else tuple(record.output.shape)
        if shape is None or len(shape) < 2 or shape[0] != self.n:
            return None
        last = len(shape) != 4
        return Tap(LAST, 1.0, reading, shape[-1 if last else 1], last, kind="last", shape=shape, final=not self.heads)

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
        for inside in dict.fromkeys(self.record.modules):  # a block mostly returns what it was given, in that layout
            if is_inside(inside, [name]) and self.record.given.get(inside) == shape:
                known = _reads_last_axis(self.modules[inside])
                if known is not None:
                    return known
        return layer.channels_last if len(layer.shape) == len(shape) else len(shape) == 3

    def _name(self, name: str, call: int) -> str:
        return name if self.record.calls[name] == 1 else f"{name}#{call + 1}"

    def _place(self, module: str) -> str:
        """Where a module stands; "" for one that holds several layers, or none."""
        for layer in self.listed:
            if is_inside(module, [name for name, _ in layer.modules]):
                return layer.place
        return ""

    def _with_depth(self, taps: Mapping[tuple[str, int], Tap]) -> dict[tuple[str, int], Tap]:
        """Depth counts the layers: that of any other module is that of the last layer that ran by its end."""
        ends = sorted(self.order[key] for key in self.layers if key in self.order)
        last = max((self.order.get((layer.name, layer.call), 0) for layer in self.record.layers), default=0)
        deepest = max(len(ends) - 1, 1)
        made = {}
        for key, tap in taps.items():
            passed = sum(end <= self.order[key] for end in ends)
            made[key] = replace(tap, depth=max(passed - 1, 0) / deepest, final=self.order[key] >= last)
        return made


def _attention_output(attention: str, layers: Sequence[LayerCall]) -> str | None:
    """Name of the fully connected layer that an attention module ends in; None where it has none that runs."""
    inside = [layer for layer in layers if is_inside(layer.name, [attention]) and is_fully_connected(layer.module)]
    return inside[-1].name if inside else None


def _is_router(name: str, module: nn.Module) -> bool:
    """Whether a layer chooses experts: its values say where a token goes, not what it means."""
    leaf = name.rpartition(".")[2]
    return leaf in ("gate", "router", "wg") or "router" in name.lower() or "router" in type(module).__name__.lower()


def _is_adapter(name: str) -> bool:
    """Whether a layer is one of an adapter's two thin matrices."""
    return any(part.startswith(("lora_", "vera_", "adapter_")) for part in name.split("."))


def _reads_last_axis(module: nn.Module) -> bool | None:
    """Whether a layer takes its input's last axis for the channels; None for one that does not say."""
    if is_convolution(module) or isinstance(module, (nn.modules.batchnorm._NormBase, nn.GroupNorm)):
        return False
    by_position = (
        isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and "2d" not in type(module).__name__
    )  # timm's permute
    return True if by_position or is_fully_connected(module) else None
