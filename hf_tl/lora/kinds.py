"""Which kinds of modules can be adapted, and the layer that each becomes."""

from __future__ import annotations

from torch import nn

from hf_tl.architectures import CONVOLUTIONS, is_conv1d
from hf_tl.errors import InputError
from hf_tl.lora.attention import LoraAttention
from hf_tl.lora.convolution import LoraConv
from hf_tl.lora.embedding import LoraEmbedding
from hf_tl.lora.layers import LoraLayer
from hf_tl.lora.linear import LoraLinear


KINDS = "nn.Linear, Conv1D of transformers, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding, nn.MultiheadAttention"


def wrap(module: nn.Module, name: str) -> LoraLayer:
    """The layer that holds adapters beside a module.

    Args:
        module: what stands in the network.
        name: where, for the message.

    Raises:
        InputError: a kind that cannot be adapted.
    """
    if is_linear(module):
        return LoraLinear(module)
    if isinstance(module, CONVOLUTIONS):
        kind = next(kind for kind in CONVOLUTIONS if isinstance(module, kind))
        if type(module).forward is not kind.forward:
            raise InputError(
                f"{name!r} is a {type(module).__name__} with a convolution of its own making, beside which an adapter "
                "would read another input; put it into exclude_modules"
            )
        return LoraConv(module)
    if isinstance(module, nn.Embedding):
        return LoraEmbedding(module)
    if isinstance(module, nn.MultiheadAttention):
        return LoraAttention(module)
    raise InputError(
        f"target_modules chooses {name!r}, a {type(module).__name__}, but adapters are made for {KINDS}; "
        "name modules of those kinds, or put it into exclude_modules"
    )


def unwrap(layer: LoraLayer) -> nn.Module:
    """The frozen layer, without the adapters inside it."""
    base = layer.base_layer
    if isinstance(layer, LoraAttention) and isinstance(base.out_proj, LoraLayer):
        base.out_proj = base.out_proj.base_layer
    return base if base.training == layer.training else base.train(layer.training)


def is_linear(module: nn.Module) -> bool:
    """Whether a module computes x W' + b."""
    return isinstance(module, nn.Linear) or is_conv1d(module)
