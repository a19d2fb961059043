"""Weights in fewer bits: read as numbers, written back, and kept in the form that gradients pass.

bitsandbytes' int8 (LLM.int8(), Dettmers et al., 2022) and 4-bit layers (QLoRA, Dettmers et al., 2023), and torchao's
weight-only int8. Nothing of a quantiser is imported where the network has no layer of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_tl.architectures import QUANTISED, is_sharded, offloaded_to_run_on, quantisation_of, quantiser_of
from hf_tl.errors import InputError


PLAIN_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_KNOWN_METHODS = ("bitsandbytes", "torchao")


def is_quantised(layer: nn.Module) -> bool:
    """Whether the weight of a layer is stored in fewer bits, in a form that `plain_weight` reads."""
    return quantisation_of(layer) in QUANTISED


def plain_weight(layer: nn.Module, name: str = "weight") -> Tensor:
    """A parameter of a frozen layer as numbers: a view where it is stored as such, else dequantised.

    int8 of bitsandbytes gives float32; the others the dtype that the weight had before it was quantised.

    Raises:
        InputError: it is stored in a form that is not known here, or offloaded.
    """
    weight: Tensor = getattr(layer, name).detach()  # under torch.func what stands there is no parameter
    if offloaded_to_run_on(layer) is not None:
        raise InputError(
            f"the weight of {type(layer).__name__} is offloaded and not here to be read or written; load the "
            "network without offloading (device_map) for DoRA, PiSSA, OLoRA or a merge"
        )
    kind = quantisation_of(layer)
    if kind == "bitsandbytes int8":
        from bitsandbytes.functional import int8_vectorwise_dequant

        parameter, state = _settled(layer)
        return int8_vectorwise_dequant(parameter.data, state.to(parameter.device))
    if kind == "bitsandbytes 4-bit":
        from bitsandbytes.functional import dequantize_4bit

        unpack(layer)
        parameter = layer.get_parameter(name)
        return dequantize_4bit(parameter.data, vars(parameter)["quant_state"])
    if kind == "torchao int8":
        return layer.get_parameter(name).data.dequantize()
    if is_sharded(weight):
        raise InputError(
            f"the weight of {type(layer).__name__} is sharded among processes and cannot be read as a whole; do this "
            "before it is sharded, or on the network in one process"
        )
    if type(weight) is not Tensor or weight.dtype not in PLAIN_DTYPES:
        raise InputError(
            f"the weight of a {type(layer).__name__} is stored as {weight.dtype}, in a form of its own, and cannot be "
            "read or written as numbers; load the network unquantised for DoRA, PiSSA, OLoRA or a merge"
        )
    return weight


def requantised(layer: nn.Module, values: Tensor) -> nn.Parameter:
    """Numbers (d, k) as the layer stores its weight: one rounding, with its own block size, code and scales.

    int8 of bitsandbytes takes them in float16, as it does any weight.
    """
    old: Any = layer.get_parameter("weight")
    kind = quantisation_of(layer)
    if kind == "bitsandbytes int8":
        from bitsandbytes.nn import Int8Params

        return Int8Params(values.cpu(), requires_grad=False, has_fp16_weights=False).to(old.device)
    if kind == "bitsandbytes 4-bit":
        from bitsandbytes.nn import Params4bit

        new = Params4bit(
            values.cpu(),
            requires_grad=False,
            blocksize=old.blocksize,
            compress_statistics=old.compress_statistics,
            quant_type=old.quant_type,
            quant_storage=old.quant_storage,
        ).to(old.device)
        new.quant_state.dtype = old.quant_state.dtype
        new.module = layer
        return new
    from torchao.quantization import Int8WeightOnlyConfig, PerGroup, PerRow, PerTensor, quantize_

    rows, columns = old.block_size
    group = PerTensor() if rows > 1 else PerRow() if columns == old.shape[1] else PerGroup(columns)
    holder = nn.Linear(old.shape[1], old.shape[0], bias=False, device="meta")
    holder.weight = nn.Parameter(values.to(old.dtype), requires_grad=False)
    quantize_(holder, Int8WeightOnlyConfig(granularity=group, set_inductor_config=False))
    return holder.weight


def put_parameter(layer: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter:
    """Puts another parameter in the place of a layer's; returns the one before, complete.

    What bitsandbytes keeps of a weight in its layer, scales and a copy of the codes, moves with the weight.
    """
    kind = quantisation_of(layer) if name == "weight" else None
    if kind == "bitsandbytes int8":
        before, _ = _settled(layer)
        _state(layer).reset_grads()  # the layer takes codes and scales from its new weight
    else:
        before = layer.get_parameter(name)
    setattr(layer, name, parameter)
    if kind == "bitsandbytes 4-bit":
        vars(layer)["quant_state"] = vars(parameter)["quant_state"]
    return before


def unpack(layer: nn.Module) -> None:
    """Brings a 4-bit weight back to the form that is dequantised and lets gradients pass.

    On processors with AVX512-BF16 bitsandbytes lays the codes out anew in the first call in eval mode; after that
    `dequantize_4bit` reads them wrongly and the layer's product has no gradient, without a word. The scales come back
    in bfloat16, in which that form has them.
    """
    state = vars(layer.get_parameter("weight")).get("quant_state")
    if state is not None and vars(state).get("packing_format_for_cpu"):
        layer.state_dict()  # which undoes it
        if state.absmax.dim() == 2:  # but leaves scales that are not quantised themselves transposed
            state.absmax = state.absmax.t().reshape(-1).float()


def packing_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that would lay their codes out anew; see `unpack`."""
    return [m for m in model.modules() if vars(m).get(PACKS) and quantisation_of(m) == "bitsandbytes 4-bit"]


@contextmanager
def codes_as_they_are(model: nn.Module) -> Iterator[None]:
    """Lets a network run in eval mode without 4-bit layers laying out their codes anew, which rounds their scales."""
    layers = packing_layers(model)
    for layer in layers:
        setattr(layer, PACKS, False)
    try:
        yield
    finally:
        for layer in layers:
            setattr(layer, PACKS, True)


PACKS = "support_avx512bf16_for_cpu"
"""The attribute of bitsandbytes' 4-bit layers that says whether they do."""


def check_quantised(model: nn.Module) -> None:
    """Checks that a network is stored as numbers or by a quantiser that is known here.

    Raises:
        InputError: another one, by name; or layers of bitsandbytes that hold no codes yet.
    """
    method = quantiser_of(model)
    if method is not None and method not in _KNOWN_METHODS:
        raise InputError(_unknown(f"the network is quantised by {method}"))
    for name, module in model.named_modules():
        kind = quantisation_of(module)
        if kind is None:
            continue
        if kind not in QUANTISED:
            raise InputError(_unknown(f"{name!r} is quantised ({kind})"))
        weight: Any = module.get_parameter("weight")
        if kind == "bitsandbytes int8" and (weight.has_fp16_weights or weight.dtype != torch.int8):
            raise InputError(
                f"{name!r} is a Linear8bitLt that holds {weight.dtype} and no codes yet; make it with "
                "has_fp16_weights=False and move the network to its device first"
            )
        if kind == "bitsandbytes 4-bit" and weight.quant_state is None:
            raise InputError(f"{name!r} is a Linear4bit without codes yet; move the network to its device first")


def _unknown(what: str) -> str:
    return (
        f"{what}, of which hf_tl knows neither the numbers nor the gradients; it adapts networks in float, of "
        "bitsandbytes (8 and 4 bits) and of torchao (weight-only int8): load the network so, or train with peft"
    )


def _state(layer: nn.Module) -> Any:
    """What bitsandbytes' int8 layer computes with."""
    return vars(layer)["state"]


def _settled(layer: nn.Module) -> tuple[Any, Tensor]:
    """The weight of bitsandbytes' int8 layer with its scales on it, as before its first call; and the scales (d,)."""
    weight: Any = layer.get_parameter("weight")
    if weight.SCB is None:
        weight.CB, weight.SCB = weight.data, _state(layer).SCB
    return weight, weight.SCB
