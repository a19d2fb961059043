"""The same adapter loaded by PEFT and by hf_tl: how far apart are outputs, gradients and merged weights?"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hf_tl.errors import InputError, in_one_line
from hf_tl.lora.load import load_adapter
from hf_tl.lora.merge import delete_adapter
from hf_tl.table import format_table
from hf_tl.trace import Batch, first_float, forward


@dataclass(frozen=True)
class Comparison:
    """One quantity on both sides.

    Attributes:
        what: "logits", "gradients" or "merged weights".
        tensors: how many tensors were compared.
        difference: the largest absolute difference.
        largest: the largest absolute value on PEFT's side.
        where: the tensor with the largest difference.
    """

    what: str
    tensors: int
    difference: float
    largest: float
    where: str

    @property
    def relative(self) -> float:
        """The difference relative to the largest value."""
        return self.difference / self.largest if self.largest > 0 else self.difference


def verify_adapter(model: nn.Module, folder: str | Path, batch: Batch) -> list[Comparison]:
    """Loads the adapter with PEFT and with hf_tl, on copies of the network, and compares the two.

    Args:
        model: the network without adapters; it stays as it is.
        folder: the adapter.
        batch: what the networks are called with, in eval mode.

    Raises:
        InputError: an adapter that either of them cannot load, which is named; or PEFT is not installed.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise InputError("this compares with peft, which is not installed: pip install 'hf-tl[peft]'") from error

    ours = load_adapter(copy.deepcopy(model), folder, is_trainable=True).eval()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = PeftModel.from_pretrained(copy.deepcopy(model), str(folder), is_trainable=True).eval()
    except Exception as error:  # PEFT has no error type of its own
        raise InputError(f"hf_tl loads {str(folder)!r}, but peft does not: {in_one_line(error)}") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [
            _compare("logits", {"output": _output(theirs, batch).detach()}, {"output": _output(ours, batch).detach()}),
            _compare("gradients", _gradients(theirs, batch, "base_model.model."), _gradients(ours, batch, "")),
        ]
        try:
            merged = dict(theirs.merge_and_unload().state_dict())
        except NotImplementedError:  # convolutions in groups
            return found
        found.append(_compare("merged weights", merged, dict(delete_adapter(ours, merge=True).state_dict())))
    return found


def verification_table(found: list[Comparison]) -> str:
    """One row a quantity."""
    rows = [
        [one.what, one.tensors, f"{one.difference:.2e}", f"{one.relative:.2e}", f"{one.largest:.4g}", one.where]
        for one in found
    ]
    header = ["peft and hf_tl", "tensors", "largest difference", "relative", "largest value", "where"]
    return format_table(header, rows)


def _output(model: nn.Module, batch: Batch) -> Tensor:
    output = first_float(forward(model, batch))
    if output is None:
        raise InputError(f"{type(model).__name__} returns no floating-point tensor, so there is nothing to compare")
    return output


def _gradients(model: nn.Module, batch: Batch, prefix: str) -> dict[str, Tensor]:
    """The gradient of the mean square of the output, by the parameter's name in the network."""
    output = _output(model, batch)
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = torch.autograd.grad(output.square().mean(), list(named.values()), allow_unused=True)
    return {
        name.removeprefix(prefix): torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(named.items(), found, strict=True)
    }


def _compare(what: str, theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> Comparison:
    if theirs.keys() != ours.keys():
        lonely = sorted(theirs.keys() ^ ours.keys())
        raise InputError(f"{what}: {len(lonely)} tensors are on one side only, the first {lonely[0]!r}")
    worst, difference, largest = "", -1.0, 0.0
    for name, tensor in theirs.items():
        apart = float((tensor.double() - ours[name].double()).abs().max())
        apart = math.inf if math.isnan(apart) else apart  # one of the two is not finite
        largest = max(largest, float(tensor.double().nan_to_num(posinf=0.0, neginf=0.0).abs().max()))
        if apart > difference:
            worst, difference = name, apart
    return Comparison(what, len(theirs), difference, largest, worst if difference > 0 else "")
