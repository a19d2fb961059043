"""Names in an adapter's file -> names in the network, across what transformers 5 renamed."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from torch import nn


def find_names(names: Iterable[str], model: nn.Module, known: Collection[str]) -> dict[str, str | None]:
    """Each name as the network has it now; None where nothing there corresponds.

    A name that the network has stays. Another is renamed as transformers renames the keys of old checkpoints
    (`encoder.layer.0.attention.attention.query` of ViT is `layers.0.attention.q_proj` since transformers 5), and
    gets or loses the base model's prefix where that makes it one of the network's names.

    Args:
        names: modules, as the file has them.
        model: the network without adapters, or with them: its class decides, not its modules.
        known: the names that the network has.
    """
    found: dict[str, str | None] = {name: name for name in names if name in known}
    strange = [name for name in names if name not in known]
    if not strange:
        return found
    renamings = _renamings(model)
    prefixes = _base_prefixes(model)
    for name in strange:
        key = f"{name}.weight"  # the patterns are written for names of tensors
        for renaming in renamings:
            key, _ = renaming.rename_source_key(key)
        new = key.removesuffix(".weight")
        candidates = [new, *(f"{prefix}{new}" for prefix in prefixes), *(new.removeprefix(p) for p in prefixes)]
        found[name] = next((candidate for candidate in candidates if candidate in known), None)
    return found


def _renamings(model: nn.Module) -> list:
    from transformers import PreTrainedModel
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    if not isinstance(model, PreTrainedModel):
        return []
    return [change for change in get_model_conversion_mapping(model) if isinstance(change, WeightRenaming)]


def _base_prefixes(model: nn.Module) -> list[str]:
    from transformers import PreTrainedModel

    return [f"{model.base_model_prefix}."] if isinstance(model, PreTrainedModel) and model.base_model_prefix else []
