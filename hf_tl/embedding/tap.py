"""One value that is read in each forward pass, and the ways to choose several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from hf_tl.embedding.pooling import Pooling
from hf_tl.errors import InputError
from hf_tl.layers.selection import point_at, split_terms
from hf_tl.names import match_names
from hf_tl.trace import Reading


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
..50%     what "auto" reads in some of the network's layers, in the words of `hf_tl.layers.selection`: "..50%" is the
          first half of the blocks, "-2.." the last two and the norm, "encoder.0..3", "stem"
blocks.1* glob patterns over layer names, or a regular expression between slashes; a pattern that matches no layer
          is matched with all modules, and what they return is read
[...]     any of these together; in one string, a comma stands between them. A layer's own name always means that layer
callable  from a module's name and the module to whether its output is read
"""


def terms_of(selection: str | Sequence[str]) -> list[tuple[str, str, int]]:
    """The terms of one selection or of several: each with the selection that it is in, and its position there."""
    parts = [selection] if isinstance(selection, str) else selection
    return [(text, part, at) for part in parts for text, at in split_terms(part)]


def match_term(text: str, names: Sequence[str], *, selection: str, position: int) -> list[str]:
    """The names that a term matches.

    Raises:
        InputError: none, with a pointer to the term in its selection.
    """
    try:
        return match_names([text], names)
    except InputError as error:
        raise InputError(f"{error}{point_at(selection, text, position)}") from error


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
        place: where in the network it stands, see `places`.
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
    place: str = ""
