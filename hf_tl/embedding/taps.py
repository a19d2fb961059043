"""A tap: one value that is read in each forward pass; and the ways to choose several, in a network or in a file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from torch import nn

from hf_tl.embedding.pooling import Pooling, Stride, find_pooling
from hf_tl.errors import InputError
from hf_tl.layers import Layer, select_layers
from hf_tl.layers.layers import write_place
from hf_tl.layers.select import KINDS, find_place, point_at, split_terms
from hf_tl.models import Network
from hf_tl.names import closest, match_names
from hf_tl.table import format_table
from hf_tl.trace import Reading


LAST = "last"  # the name of the tap on what the classifier reads
Kind = Literal["conv", "linear", "attention", "hidden", "block", "norm", "other", "last"]
PRESETS = {
    "conv": ("conv",),
    "linear": ("linear", "attention", "hidden"),
    "blocks": ("block", "norm"),
}
TapSelection = str | Sequence[str] | Callable[[str, nn.Module], bool]
"""Which taps:

"auto"    of a CNN every convolution and fully connected layer; of a transformer, block by block, the attention's
          output, the hidden layer of the MLP and the block's output, then the final norm
"blocks"  each block's output, and the final norm
"linear"  every fully connected layer
"conv"    every convolution
"last"    what the classifier reads
..50%     what "auto" reads in some of the network's layers, in the words of `hf_tl.select_layers`: "..50%" is the
          first half of the blocks, "-2.." the last two and the norm, "encoder.0..3", "stem"
blocks.1* glob patterns over layer names, or a regular expression between slashes; a pattern that matches no layer
          is matched with all modules, and what they return is read
[...]     any of these together; in one string, a comma stands between them. A layer's own name always means that layer
callable  from a module's name and the module to whether its output is read
"""
PLACE = re.compile(r"(?:(?P<tower>.+)\.)?(?:(?P<kind>stem|norm|head)|(?P<index>\d{1,4})/(?P<count>\d{1,4}))")


@dataclass(frozen=True)
class Tap:
    """One value that is read in each forward pass: a hook point, and how its positions are pooled.

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
        place: where in the network it stands: "stem", "3/12" for the fourth of twelve blocks, "encoder.0/6", "norm".
        final: whether no layer runs after it, the classifier included.
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
    strides: tuple[Stride, ...] = ()
    calls: int = 1
    auto: bool = False
    place: str = ""
    final: bool = False

    @property
    def n_positions(self) -> int | None:
        """Of a sequence in the example's batch; None for anything else."""
        return self.shape[1 if self.channels_last else 2] if len(self.shape) == 3 else None


def terms_of(selection: str | Sequence[str]) -> list[tuple[str, str, int]]:
    """The terms of one selection or of several: each with the text that it is in, and its position there."""
    parts = [selection] if isinstance(selection, str) else selection
    return [(term, part, at) for part in parts for term, at in split_terms(part)]


def match_term(term: str, names: Sequence[str], *, text: str, position: int) -> list[str]:
    """The names that a term matches.

    Raises:
        InputError: none, with a pointer to the term in its text.
    """
    try:
        return match_names([term], names)
    except InputError as error:
        raise InputError(f"{error}{point_at(text, term, position)}") from error


def select_names(
    names: Sequence[str],
    taps: TapSelection,
    top: float = 1.0,
    *,
    kinds: Sequence[str] = (),
    places: Sequence[str] = (),
) -> list[str]:
    """The names that a selection keeps of taps that were read before, in the order of `names`.

    Args:
        names: tap names from data to task.
        taps: see `TapSelection`; "auto" keeps all but "last", a callable cannot be asked again.
        top: the share of the selected taps to keep, counted from the task side, rounded down, at least one.
        kinds: what each tap is, for the presets.
        places: where each stands, for what is chosen by place.

    Raises:
        InputError: a term that chooses nothing, and a pointer to it; or a share outside (0, 1].
    """
    if callable(taps):
        raise InputError("a function over modules cannot choose among stored layers; give patterns over their names")
    kept: set[str] = set()
    others = [name for name in names if name != LAST]
    for term, text, at in terms_of(taps):
        if term in names:
            kept.add(term)
        elif term == "auto":
            kept.update(others)
        elif term in PRESETS and kinds:
            kept.update(name for name, kind in zip(names, kinds, strict=True) if kind in PRESETS[term])
        elif find_place(term, towers_of(places)):
            chosen = select_places(places, term, text=text, position=at)
            kept.update(name for name, place in zip(names, places, strict=True) if place in chosen)
        else:
            kept.update(match_term(term, names if term == LAST else others, text=text, position=at))
    return keep_top([name for name in names if name in kept], top, taps)


def keep_top(taps: list, top: float, selection: TapSelection) -> list:
    """The share of some taps that is nearest to the task, one at least.

    Raises:
        InputError: no taps, or a share outside (0, 1].
    """
    if not 0 < top <= 1:
        raise InputError(f"top must be above 0 and at most 1, the share of layers to keep, got {top}")
    if not taps:
        raise InputError(f"taps={selection!r} selects none of the layers of the network")
    return taps[-max(1, int(top * len(taps))) :]


def towers_of(places: Sequence[str]) -> list[str]:
    """The towers that some places name, in their order."""
    return list(dict.fromkeys(layer.tower for layer in _layers_of(places) if layer.tower))


def select_places(places: Sequence[str], term: str, *, text: str, position: int) -> set[str]:
    """Those of some places that a term of the selection language names.

    Places are words that a file can hold, so that stored layers are chosen by the same words, with the same meaning,
    as those of the network itself.

    Args:
        places: of all taps there are, from data to task.
        term: the term.
        text: what it is a part of, for error messages.
        position: where in there it begins.

    Raises:
        InputError: a term that names nothing, or no tap; the message points at it.
    """
    layers = _layers_of(places)
    if not layers:
        raise InputError(
            f"{term!r} says where layers stand, which is not known of these; choose them by their names"
            f"{point_at(text, term, position)}"
        )
    found = select_layers(layers, text, start=position, stop=position + len(term))
    chosen = {layer.name for layer in found} & set(places)
    if not chosen:
        known = ", ".join(dict.fromkeys(place for place in places if place))
        raise InputError(f"nothing is read in {term!r}, but in {known}{point_at(text, term, position)}")
    return chosen


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


def describe_taps(taps: Sequence[Tap], left_out: Mapping[str, str]) -> str:
    """A table of what is read, after what, its shape in a batch of two, its pooling and columns; and what is not."""
    lines, start = [], 0
    for tap in taps:
        columns = f"{start}:{start + tap.n_features}"
        how = tap.pool if isinstance(tap.pool, str) else type(tap.pool).__name__
        lines.append([tap.name, tap.kind, " + ".join(tap.chain), str(tap.shape), how, columns])
        start += tap.n_features
    table = format_table(["tap", "kind", "after", "shape", "pool", "columns"], lines)
    reasons: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        reasons.setdefault(reason, []).append(name)
    return "\n".join([table, *(f"not read: {', '.join(names)}: {reason}" for reason, names in reasons.items())])


def _layers_of(places: Sequence[str]) -> list[Layer]:
    """The layers of a network as far as some places tell of it: a tower with all its blocks, if it has one of them."""
    layers: dict[str, Layer] = {}
    for found in filter(None, (PLACE.fullmatch(place) for place in places)):
        tower, count = found["tower"] or "", int(found["count"] or 0)
        for kind in KINDS:
            name = write_place(tower, kind, None, count)
            layers.setdefault(name, Layer(name, kind, (), None, depth=0.0, calls=1, split_point=False, tower=tower))
        for i in range(count):
            name = write_place(tower, "block", i, count)
            layers.setdefault(name, Layer(name, "block", (), i, depth=0.0, calls=1, split_point=False, tower=tower))
    return list(layers.values())
