"""The network that an adapter was trained on, from a name that the user gave."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from hf_tl.architectures import is_transformers
from hf_tl.lora.adapter import Adapter
from hf_tl.models import load_model


_WRAPPED = "timm_model."  # where transformers' wrapper of a timm network keeps it


def load_base(name: str, adapter: Adapter, *, dtype: torch.dtype | str = torch.float32) -> nn.Module:
    """The network with the head that the adapter fits, in eval mode.

    The user's `name` decides what is loaded; of the adapter's file only the task, the size of its head, whether its
    layers lie in transformers' wrapper of a timm network, and the name of the class count, the latter as a choice
    among the classes that transformers lists for the network.

    Args:
        name: as for `load_network`.
        adapter: what `read_adapter` returned.
        dtype: of the weights; "auto" for that of the file.

    Raises:
        InputError: no such network.
    """
    torch.manual_seed(0)  # a head that is in neither file is random, and the same each time
    mapping = adapter.config.get("auto_mapping") or {}
    return load_model(
        name,
        class_name=mapping.get("base_model_class"),
        task_type=adapter.config.get("task_type"),
        n_labels=n_labels_of(adapter),
        wrapped=any(layer.startswith(_WRAPPED) for layer in adapter.updates),
        dtype=dtype,
    )


def n_labels_of(adapter: Adapter) -> int | None:
    """Outputs of the head among the modules that come whole: rows of the matrix that no other one follows."""
    wanted = adapter.config.get("modules_to_save") or ()
    sizes = [
        tuple(tensor.shape)
        for key, tensor in adapter.others.items()
        if tensor.ndim == 2 and any(f"{entry}." in f"{key}." for entry in wanted)
    ]
    read = [{size[1] for size in sizes[:i] + sizes[i + 1 :]} for i in range(len(sizes))]
    last = [out for (out, _), others in zip(sizes, read, strict=True) if out not in others]
    return (last or [out for out, _ in sizes] or [None])[-1]


def save_network(model: nn.Module, folder: Path, adapter: Adapter) -> None:
    """Writes the whole network as its own library loads it."""
    if is_transformers(model):
        model.save_pretrained(folder)
        return
    from timm.models import save_for_hf

    labels = n_labels_of(adapter)
    config = {} if labels is None else {"num_classes": labels}
    save_for_hf(model, folder, model_config=config, safe_serialization=True)
