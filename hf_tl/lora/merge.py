"""Adapters into the frozen weights and out again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from hf_tl.trace import Batch


@dataclass(frozen=True)
class Merge:
    """What a merge did.

    Attributes:
        layers: how many layers it changed.
        largest_change: the largest absolute difference of the network's output on the example; None without one.
    """

    layers: int
    largest_change: float | None = None


def merge_lora(
    model: nn.Module,
    *,
    adapters: Sequence[str] | None = None,
    safe: bool = False,
    reversible: bool = True,
    example: Batch | None = None,
) -> Merge:
    """Adds adapters to the frozen weights, in float32 with one rounding to the weight's dtype.

    Args:
        model: a network with adapters.
        adapters: which; None for the active ones.
        safe: refuse a merge whose result is not finite, leaving the network as it was.
        reversible: keep the original weights, so that unmerge_lora restores them bit by bit.
        example: a batch on which the outputs before and after are compared.
    """
    raise NotImplementedError


def unmerge_lora(model: nn.Module) -> None:
    """Takes merged adapters out again: the original weights, bit by bit."""
    raise NotImplementedError


def remove_lora(model: nn.Module, *, adapters: Sequence[str] | None = None, merge: bool = False) -> nn.Module:
    """Takes adapters off the network; with the last one the original modules come back.

    Args:
        model: a network with adapters.
        adapters: which; None for all.
        merge: leave the active adapters' effect in the weights (and keep the trained modules_to_save).

    Returns:
        the same model, without wrappers.
    """
    raise NotImplementedError
