"""Gradient checkpointing beside frozen layers: without care, it takes back what freezing saves."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import nn

from hf_tl.errors import InputError
from hf_tl.policies.plan import Plan


@runtime_checkable
class _Checkpointed(Protocol):
    """A part of a transformers network that can be checkpointed."""

    gradient_checkpointing: bool
    _gradient_checkpointing_func: Callable


@runtime_checkable
class _RequiresInputGradients(Protocol):
    def disable_input_require_grads(self) -> None: ...


def checkpoints(model: nn.Module) -> list[Callable]:
    """The functions by which parts of the network are checkpointed now."""
    parts = [module for module in model.modules() if isinstance(module, _Checkpointed)]
    return [part._gradient_checkpointing_func for part in parts if part.gradient_checkpointing]


def stop_backward(model: nn.Module, plan: Plan) -> None:
    """Lets backward stop at the lowest layer that trains, also where activations are checkpointed.

    transformers makes the outputs of embeddings require gradients when checkpointing is switched on, so that backward
    runs through every frozen layer. With use_reentrant=False that is needed for nothing.

    Raises:
        InputError: the stem is frozen and checkpointing is reentrant, which would lose all gradients.
    """
    functions = checkpoints(model)
    if not functions or not any(layer.owned for layer in plan.frozen_prefix()):
        return
    if any(isinstance(one, functools.partial) and one.keywords.get("use_reentrant") for one in functions):
        raise InputError(
            "reentrant gradient checkpointing over frozen layers loses gradients; "
            "set gradient_checkpointing_kwargs={'use_reentrant': False}"
        )
    if isinstance(model, _RequiresInputGradients):
        model.disable_input_require_grads()
