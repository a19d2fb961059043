"""What stands in a transformer's blocks: attention and the hidden layer of the MLP; and the norm after them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from hf_tl.architectures import is_fully_connected
from hf_tl.names import is_inside
from hf_tl.trace import LayerCall, Trace


ACTIVATED = 2  # the stage of a layer call whose value was followed through an activation
ATTENTION = re.compile("attention|attn", re.IGNORECASE)


@dataclass(frozen=True)
class Anatomy:
    """What stands in a network's blocks, and behind them.

    Attributes:
        attentions: of each block that has any, the names of its outermost attention modules.
        final_norm: name of the norm after the last block, or None.
    """

    attentions: Mapping[str, tuple[str, ...]]
    final_norm: str | None


def find_anatomy(model: nn.Module, record: Trace, blocks: Sequence[str], heads: Sequence[str]) -> Anatomy:
    """The attention modules of the blocks, which are known by their classes, and the norm after the last block.

    Args:
        model: the network.
        record: its traced forward pass.
        blocks: names of its blocks.
        heads: names of the modules that make up the classifier.
    """
    modules = dict(model.named_modules())
    ran = list(dict.fromkeys(record.modules))
    attentions = {}
    for block in blocks:
        within = [name for name in ran if is_inside(name, [block]) and name != block]
        named = [name for name in within if ATTENTION.search(type(modules[name]).__name__)]
        outer = tuple(name for name in named if not is_inside(name.rpartition(".")[0], named))
        if outer:
            attentions[block] = outer
    return Anatomy(attentions, _final_norm(modules, ran, blocks, heads) if attentions else None)


def attention_output(attention: str, layers: Sequence[LayerCall]) -> str | None:
    """Name of the fully connected layer that an attention module ends in; None where it has none that runs."""
    inside = [layer for layer in layers if is_inside(layer.name, [attention]) and is_fully_connected(layer.module)]
    return inside[-1].name if inside else None


def hidden_layers(
    block: str, attentions: Sequence[str], layers: Sequence[LayerCall]
) -> list[tuple[LayerCall, LayerCall | None]]:
    """The layers of a block's MLP that an activation follows; with it, where the MLP is gated, what reads the product.

    In a gated MLP, down(act(gate(x)) * up(x)), the hidden values are what `down` reads, not what the activation
    gives. There `gate` and `up` have one width, and `down` is the next layer of another.
    """
    inside = [
        layer
        for layer in layers
        if is_inside(layer.name, [block])
        and not is_inside(layer.name, attentions)
        and is_fully_connected(layer.module)
        and not is_router(layer.name, layer.module)
    ]
    found = []
    for i, layer in enumerate(inside):
        if layer.stage == ACTIVATED:
            after = inside[i + 1 :]
            down = next((k for k, other in enumerate(after) if other.shape[-1] != layer.shape[-1]), None)
            start = i - 1 if i and inside[i - 1].shape == layer.shape and inside[i - 1].stage != ACTIVATED else i
            gated = down is not None and (down > 0 or start < i)
            found.append((layer, after[down] if gated else None))
    return found


def is_router(name: str, module: nn.Module) -> bool:
    """Whether a layer chooses experts: its values say where a token goes, not what it means."""
    leaf = name.rpartition(".")[2]
    return leaf in ("gate", "router", "wg") or "router" in name.lower() or "router" in type(module).__name__.lower()


def is_adapter(name: str) -> bool:
    """Whether a layer is one of an adapter's two thin matrices."""
    return any(part.startswith(("lora_", "vera_", "adapter_")) for part in name.split("."))


def _final_norm(
    modules: Mapping[str, nn.Module], ran: Sequence[str], blocks: Sequence[str], heads: Sequence[str]
) -> str | None:
    start = max(i for i, name in enumerate(ran) if is_inside(name, [blocks[-1]]))
    after = [
        name
        for name in ran[start + 1 :]
        if "norm" in type(modules[name]).__name__.lower()
        and not is_inside(name, heads)
        and not list(modules[name].children())
    ]
    return after[-1] if after else None
