"""Which modules of a network are its blocks: the repeated units between the stem and the head.

Four detectors, from the surest to the most general:

    checkpointing   the innermost modules that transformers marks as units of gradient checkpointing
    timm            the groups of timm's `group_matcher`, unless they are far coarser than what the dataflow shows
    dataflow        a module is opened iff the calls inside it form a chain; what cannot be opened is a block
    leaves          in a plain stack of layers, each is a block

A network may hold others (a detector on a timm backbone): each part is asked in its own way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hf_tl.architectures import is_checkpointed, is_linear, is_timm, is_transformers, n_linear, n_parameters
from hf_tl.dataflow import ModuleCall
from hf_tl.layers.chains import blocks_of_chain
from hf_tl.layers.groups import groups_of_timm
from hf_tl.names import is_inside
from hf_tl.trace import Trace


LARGE = 0.25  # a part with this share of the parameters is searched although it is no network of its own


@dataclass(frozen=True)
class Blocks:
    """The blocks of a network.

    Attributes:
        names: module names, in the order in which they first run.
        detector: what found them; several are joined by "+".
        trailing: names of modules after the last block that the detector counts to that block.
    """

    names: tuple[str, ...] = ()
    detector: str = "leaves"
    trailing: tuple[str, ...] = ()


def find_blocks(record: Trace, heads: Sequence[str]) -> Blocks:
    """The blocks of a traced network; none where it has no more than a stem and a head.

    Args:
        record: the traced forward pass.
        heads: names of the modules that make up the classifier.
    """
    root = record.flow.root
    names, trailing = _checkpointed(root), []
    detectors = ["checkpointing"] if names else []
    for part in _uncovered(root, names):
        groups = groups_of_timm(part)
        if groups is not None:
            names += groups.names
            trailing += groups.trailing
            detectors.append("timm")
    enough = LARGE * n_parameters(root.module)
    for part in _uncovered(root, names):
        network = part is root or is_transformers(part.module) or is_timm(part.module)
        if not is_inside(part.name, [*heads, *trailing]) and (network or n_parameters(part.module) >= enough):
            found = blocks_of_chain(part)
            names += found
            detectors += ["dataflow"] if found else []
    if not names:
        names, detectors = _plain_stack(root, heads), ["leaves"]
    order = {name: i for i, name in enumerate(dict.fromkeys(record.modules))}
    ordered = sorted(set(names), key=order.__getitem__)
    return Blocks(tuple(ordered), "+".join(dict.fromkeys(detectors)), tuple(trailing))


def holds_blocks(call: ModuleCall, names: frozenset[str]) -> bool:
    """Whether a block runs inside the call, the call itself not counted."""
    return any(inner.name in names for child in call.children for inner in child.walk())


def _checkpointed(root: ModuleCall) -> list[str]:
    marked = [call for call in root.walk() if is_checkpointed(call.module)]
    inner = [call for call in marked if not any(other in marked for other in call.walk() if other is not call)]
    deep = [call for call in inner if n_linear(call.module) > 1]  # not the convolutions in front of an encoder
    return list(dict.fromkeys(call.name for call in deep or inner))


def _plain_stack(root: ModuleCall, heads: Sequence[str]) -> list[str]:
    """Bare layers in a row: each between the first and the classifier is a block."""
    layers = [call.name for call in root.walk() if is_linear(call.module) and not is_inside(call.name, heads)]
    return list(dict.fromkeys(layers))[1:]


def _uncovered(root: ModuleCall, names: Sequence[str]) -> list[ModuleCall]:
    """The largest calls that neither hold a block nor are one, in execution order; the network itself at first."""
    blocks = frozenset(names)

    def descend(call: ModuleCall) -> Iterator[ModuleCall]:
        if call.name in blocks:
            return
        if holds_blocks(call, blocks):
            for child in call.children:
                yield from descend(child)
        elif n_parameters(call.module):
            yield call

    return list(descend(root))
