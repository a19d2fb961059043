"""The head: what turns the features of a network into the answer to its task."""

from __future__ import annotations

from torch import nn

from hf_tl.architectures import base_model, classifiers
from hf_tl.trace import Trace


def head_names(model: nn.Module, record: Trace) -> tuple[str, ...]:
    """Names of the modules that make up the classifier, in execution order; empty for a bare backbone.

    timm models name theirs; in transformers it is what stands outside the base model; where neither tells, it
    is the layer whose output the network returns untouched.
    """
    base = base_model(model)
    found = [name for name, part in model.named_children() if part is not base] if base is not model else []
    if not found:  # transformers' wrapper of timm keeps the classifier inside
        known = classifiers(base)
        found = [name for name, module in model.named_modules() if any(module is part for part in known)]
    if not found and record.last is not None:
        found = [record.last.name]
    return tuple(name for name in dict.fromkeys(record.modules) if name in found)
