"""The depth-ordered layers of a network, from data (depth 0) to task (depth 1)."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import nn

from hf_tl.errors import InputError
from hf_tl.trace import Batch, Trace, trace


@dataclass(frozen=True)
class Layer:
    """A module with parameters of its own, at its place in the network.

    Attributes:
        name: the module's name in `model.named_modules()`.
        module: the module.
        depth: 0 for the first layer to run, 1 for the last.
        calls: how often it runs in one forward pass.
        head: whether it belongs to the classifier, which knows the source task and is left out of embeddings.
    """

    name: str
    module: nn.Module
    depth: float
    calls: int
    head: bool

    @property
    def n_parameters(self) -> int:
        """Number of scalars in the parameters that the module itself holds."""
        return sum(parameter.numel() for parameter in self.module.parameters(recurse=False))


def list_layers(model: nn.Module, example: Batch) -> list[Layer]:
    """Every module that holds parameters of its own, in the order in which they start to run.

    Modules that `example` never reaches are not listed.

    Args:
        model: any network.
        example: what the network is called with: a mapping of tensors (by keyword) or one tensor.
    """
    record = trace(model, example)
    heads = head_names(model, record)
    modules = dict(model.named_modules())
    names = [
        name
        for name in dict.fromkeys(record.modules)
        if next(modules[name].parameters(recurse=False), None) is not None
    ]
    last = max(len(names) - 1, 1)
    return [
        Layer(name, modules[name], i / last, record.calls[name], is_inside(name, heads))
        for i, name in enumerate(names)
    ]


def head_names(model: nn.Module, record: Trace) -> tuple[str, ...]:
    """Names of the modules that make up the classifier, in execution order; empty for a bare backbone.

    timm models name theirs; in transformers it is what stands outside the base model; where neither tells, it
    is the layer whose output the network returns untouched.
    """
    base = model.base_model if isinstance(model, _TransformersModel) else model
    found = [name for name, part in model.named_children() if part is not base] if base is not model else []
    if not found and isinstance(base, _TimmModel):  # transformers' wrapper of timm keeps the classifier inside
        classifier = base.get_classifier()
        parts = (
            classifier if isinstance(classifier, Sequence) and not isinstance(classifier, nn.Module) else [classifier]
        )
        found = [name for name, module in model.named_modules() if any(module is part for part in parts)]
    if not found and record.last is not None:
        found = [record.last.name]
    return tuple(name for name in dict.fromkeys(record.modules) if name in found)


def match_names(patterns: Iterable[str], names: Sequence[str]) -> list[str]:
    """The names that any of the glob patterns matches, in the order of `names`.

    Raises:
        InputError: a pattern that matches nothing, with the closest names.
    """
    matched = set()
    for pattern in patterns:
        hits = fnmatch.filter(names, pattern)
        if not hits:
            raise InputError(
                f"layer pattern {pattern!r} matches none of the {len(names)} layers; {closest(pattern, names)}"
            )
        matched.update(hits)
    return [name for name in names if name in matched]


def closest(wanted: str, names: Sequence[str]) -> str:
    """'the closest are ...' for an error message."""
    near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.0)
    return f"the closest are {', '.join(repr(name) for name in near)}" if near else "there are none to choose from"


def is_inside(name: str, parents: Iterable[str]) -> bool:
    """Whether a module is one of `parents` or lies within one."""
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


@runtime_checkable
class _TimmModel(Protocol):
    def get_classifier(self) -> nn.Module: ...


@runtime_checkable
class _TransformersModel(Protocol):
    @property
    def base_model(self) -> nn.Module: ...
