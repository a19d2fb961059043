"""Where in the network a tap stands, in the words of the selection language: "stem", "3/12", "encoder.0/6", "norm".

A place is a word that a file can hold, so that layers which were read and stored are chosen by the same words, with
the same meaning, as those of the network itself. A block's has its number and how many there are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from hf_tl.errors import InputError
from hf_tl.layers import Layer, layers_of, select
from hf_tl.layers.selection import KINDS, point_at
from hf_tl.names import is_inside
from hf_tl.trace import Trace


PLACE = re.compile(r"(?:(?P<tower>.+)\.)?(?:(?P<kind>stem|norm|head)|(?P<index>\d{1,4})/(?P<count>\d{1,4}))")


class Places:
    """The places of the modules of a traced network.

    Args:
        model: the network.
        record: its traced forward pass.
    """

    def __init__(self, model: nn.Module, record: Trace):
        self._layers = layers_of(model, record)

    @property
    def blocks(self) -> list[str]:
        """The names of the network's blocks."""
        return [layer.name for layer in self._layers if layer.kind == "block"]

    def __getitem__(self, module: str) -> str:
        """Where a module stands; "" for one that holds several layers, or none."""
        for layer in self._layers:
            if is_inside(module, [name for name, _ in layer.modules]):
                return _write(layer.tower, layer.kind, layer.index, self._count(layer.tower))
        return ""

    def _count(self, tower: str) -> int:
        return sum(layer.tower == tower and layer.kind == "block" for layer in self._layers)


def towers_of(places: Sequence[str]) -> list[str]:
    """The towers that some places name, in their order."""
    return list(dict.fromkeys(layer.tower for layer in _ladder(places) if layer.tower))


def select_places(places: Sequence[str], text: str, *, selection: str, position: int) -> set[str]:
    """Those of some places that a term of the selection language names.

    Args:
        places: of all taps there are, from data to task.
        text: the term.
        selection: what it is a part of, for error messages.
        position: where in there it begins.

    Raises:
        InputError: a term that names nothing, or no tap; the message points at it.
    """
    ladder = _ladder(places)
    if not ladder:
        raise InputError(
            f"{text!r} says where layers stand, which is not known of these; choose them by their names"
            f"{point_at(selection, text, position)}"
        )
    found = select(ladder, selection, start=position, stop=position + len(text))
    chosen = {layer.name for layer in found} & set(places)
    if not chosen:
        known = ", ".join(dict.fromkeys(place for place in places if place))
        raise InputError(f"nothing is read in {text!r}, but in {known}{point_at(selection, text, position)}")
    return chosen


def _ladder(places: Sequence[str]) -> list[Layer]:
    """The layers of a network as far as some places tell of it: a tower with all its blocks, if it has one of them."""
    ladder: dict[str, Layer] = {}
    for found in filter(None, (PLACE.fullmatch(place) for place in places)):
        tower, count = found["tower"] or "", int(found["count"] or 0)
        for kind, index in [*((kind, None) for kind in KINDS), *(("block", i) for i in range(count))]:
            name = _write(tower, kind, index, count)
            ladder.setdefault(name, Layer(name, kind, (), index, depth=0.0, calls=1, cut=False, tower=tower))
    return list(ladder.values())


def _write(tower: str, kind: str, index: int | None, count: int) -> str:
    own = kind if index is None else f"{index}/{count}"
    return f"{tower}.{own}" if tower else own
