"""The head: what turns the features of a network into the answer to its task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import nn

from hf_tl.layers.kinds import TransformersNetwork
from hf_tl.trace import Trace


def head_names(model: nn.Module, record: Trace) -> tuple[str, ...]:
    """Names of the modules that make up the classifier, in execution order; empty for a bare backbone.

    timm models name theirs; in transformers it is what stands outside the base model; where neither tells, it
    is the layer whose output the network returns untouched.
    """
    base = model.base_model if isinstance(model, TransformersNetwork) else model
    found = [name for name, part in model.named_children() if part is not base] if base is not model else []
    if not found and isinstance(base, _Classifier):  # transformers' wrapper of timm keeps the classifier inside
        classifier = base.get_classifier()
        parts = (
            classifier if isinstance(classifier, Sequence) and not isinstance(classifier, nn.Module) else [classifier]
        )
        found = [name for name, module in model.named_modules() if any(module is part for part in parts)]
    if not found and record.last is not None:
        found = [record.last.name]
    return tuple(name for name in dict.fromkeys(record.modules) if name in found)


@runtime_checkable
class _Classifier(Protocol):
    def get_classifier(self) -> nn.Module: ...
