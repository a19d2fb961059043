"""Every value of a traced network that could be read, and the choice among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from hf_tl.architectures import is_convolution
from hf_tl.embedding.anatomy import attention_output, find_anatomy, hidden_layers, is_adapter, is_router
from hf_tl.embedding.places import Places, select_places, towers_of
from hf_tl.embedding.tap import LAST, PRESETS, Kind, Selection, Tap, match_term, terms_of
from hf_tl.errors import InputError
from hf_tl.layers import head_names
from hf_tl.layers.selection import find_place
from hf_tl.models import Network
from hf_tl.names import is_inside, name_matcher
from hf_tl.trace import Reading, Trace


class Survey:
    """Every value of a traced network that could be read.

    Args:
        network: the network.
        record: a forward pass of it.
        returned: the shape of what each module call returned, in the order in which calls ended.
        rows: number of rows of that pass's batch.
        activation: whether layers are read "after" their activation or "before" it.

    Attributes:
        layers: the taps on convolutions and fully connected layers, by module name and call.
        others: the taps on blocks, attention modules without a layer of their own, and the final norm.
        last: the tap on what the classifier reads, or None.
        left_out: layers that cannot be read: name -> reason.
    """

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
        self.places = Places(network.model, record)
        self.left_out: dict[str, str] = {}
        self.layers = self._layers(activation)
        self.others: dict[tuple[str, int], Tap] = {}
        self.last = _last_tap(record, self.heads, rows)
        self._find_automatic(activation)
        self.layers = self._with_depth(self.layers)
        self.others = self._with_depth(self.others)

    def select(self, selection: Selection) -> list[Tap]:
        """The chosen taps in execution order, "last" behind them.

        Raises:
            InputError: a preset or a pattern that chooses nothing.
        """
        with_last = False
        if callable(selection):
            chosen = self._named(
                [name for name in dict.fromkeys(self.record.modules) if selection(name, self.modules[name])]
            )
        else:
            chosen, terms = {}, terms_of(selection)
            for text, whole, at in terms:
                if text == LAST:
                    if self.last is None and len(terms) == 1:
                        raise InputError(f"{self.network.name} has no last layer that gives one vector a row")
                    with_last = self.last is not None
                else:
                    chosen |= self._term(text, whole, at)
        taps = [chosen[key] for key in sorted(chosen, key=self.order.__getitem__)]
        return [*taps, self.last] if with_last else taps

    def _term(self, text: str, selection: str, position: int) -> dict[tuple[str, int], Tap]:
        """The taps that a term names; `selection` is what it is a part of, from `position` on."""
        found = {**self.layers, **self.others}
        automatic = {key: tap for key, tap in found.items() if tap.auto}
        named = {tap.name: key for key, tap in self.layers.items()}
        places = [tap.place for tap in automatic.values()]
        if text in named:
            return {named[text]: self.layers[named[text]]}
        if text == "auto":
            return automatic
        if text in PRESETS:
            chosen = {key: tap for key, tap in found.items() if tap.kind in PRESETS[text]}
            if not chosen:
                raise InputError(f"{self.network.name} has no layers for taps={text!r}; try taps='auto'")
            return chosen
        if find_place(text, towers_of(places)):
            inside = select_places(places, text, selection=selection, position=position)
            return {key: tap for key, tap in automatic.items() if tap.place in inside}
        try:
            names = match_term(text, list(named), selection=selection, position=position)
        except InputError:
            chosen = self._named(_matched(text, dict.fromkeys(self.record.modules)))
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
                    place=self.places[layer.name],
                )
        return taps

    def _find_automatic(self, activation: str) -> None:
        blocks = self.places.blocks
        anatomy = find_anatomy(self.network.model, self.record, blocks, self.heads)
        for name in blocks:
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
            place=self.places[name],
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


def _matched(pattern: str, names: Sequence[str]) -> list[str]:
    matches = name_matcher(pattern)
    return [] if matches is None else [name for name in names if matches(name)]
