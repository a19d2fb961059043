"""combine_adapters: a new adapter made of several."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from hf_tl.errors import InputError
from hf_tl.lora.adapters import set_adapter
from hf_tl.lora.layers import LoraLayer
from hf_tl.lora.low_rank import truncate
from hf_tl.lora.record import AdapterRecord, known, record_of


def combine_adapters(
    model: nn.Module,
    adapters: Sequence[str],
    *,
    weights: Sequence[float],
    adapter_name: str,
    combination_type: Literal["linear", "cat", "svd"] = "cat",
    svd_rank: int | None = None,
) -> nn.Module:
    """Makes a new adapter of several, and makes it the one that runs.

    With A_i, B_i, scaling s_i and weight w_i of adapter i, the new update is

        cat     sum_i w_i s_i B_i A_i, exactly, at the sum of the ranks;
        svd     the best approximation of that sum at `svd_rank`;
        linear  (sum_i sqrt(w_i s_i) B_i) (sum_i sqrt(w_i s_i) A_i), at the one rank that all must have: cheap and
                rough, because the factors of different adapters mix. PEFT's "linear".

    Args:
        model: a network with the adapters.
        adapters: their names.
        weights: of each, of any sign.
        adapter_name: of the new adapter.
        combination_type: see above.
        svd_rank: the rank of "svd"; None for the largest of the ranks.

    Raises:
        InputError: an adapter that is not there, DoRA, merged adapters, or ranks that differ with "linear". The
            network is then what it was.
    """
    record = record_of(model)
    _check(record, adapters, weights, adapter_name, combination_type)
    by_name = dict(zip(adapters, weights, strict=True))
    first = record.configs[adapters[0]]
    held = {
        place: {adapter: weight for adapter, weight in by_name.items() if adapter in layer.r}
        for place, layer in record.layers.items()
    }
    combined = {
        p: _combined(record.layers[p], those, combination_type, svd_rank) for p, those in held.items() if those
    }
    plain = {"use_rslora": False, "lora_bias": False, "bias": "none", "fused_parts": None}
    config = replace(first, **plain, init_lora_weights="kaiming")
    ranks = {place: a.shape[0] for place, (a, _) in combined.items()}
    largest = max(ranks.values())
    for place, (a, b) in combined.items():
        layer = record.layers[place]
        layer.add_adapter(adapter_name, config=config, rank=ranks[place], alpha=ranks[place], empty=True)
        with torch.no_grad():
            for tensor, value in zip(layer._held(adapter_name), (a / layer.scaling[adapter_name], b), strict=True):
                tensor.copy_(value.view(tensor.shape))
    odd = {f"^{re.escape(place)}": rank for place, rank in ranks.items() if rank != largest}
    for saved in record.saved.values():
        owner = next((adapter for adapter in adapters if adapter in saved.modules_to_save), None)
        if owner is not None:
            saved.add_adapter(adapter_name, trains=saved.trains[owner])
            saved.modules_to_save[adapter_name].load_state_dict(saved.modules_to_save[owner].state_dict())
    targets = {t for adapter in adapters for t in _listed(record, adapter)}
    record.configs[adapter_name] = replace(
        config,
        r=largest,
        lora_alpha=largest,
        rank_pattern=odd,
        alpha_pattern=odd,
        target_modules=sorted(targets),
    )
    record.biases[adapter_name] = ()
    set_adapter(model, adapter_name)
    return model


def _check(record: AdapterRecord, adapters: Sequence[str], weights: Sequence[float], name: str, method: str) -> None:
    if not name or "." in name:
        raise InputError(f"an adapter's name must be a word without dots, got {name!r}")
    if any(layer.merged_adapters for layer in record.layers.values()):
        raise InputError("adapters are merged into the weights; call unmerge_adapter before combining them")
    if name in record.configs:
        raise InputError(f"there is an adapter {name!r} already; choose another name or remove it first")
    if not adapters:
        raise InputError("adapters must name at least one adapter, got none")
    if len(weights) != len(adapters):
        raise InputError(f"weights must hold one weight for each adapter, got {len(weights)} for {len(adapters)}")
    twice = next((adapter for adapter in adapters if adapters.count(adapter) > 1), None)
    if twice is not None:
        raise InputError(f"adapter {twice!r} is named twice; give it the sum of its weights")
    for adapter in adapters:
        if known(record, adapter).configs[adapter].use_dora:
            raise InputError(
                f"{adapter!r} is a DoRA adapter, whose update is no sum; merge it with merge_adapter instead"
            )
    if method not in ("linear", "cat", "svd"):
        raise InputError(f"combination_type must be 'linear', 'cat' or 'svd', got {method!r}")


def _combined(layer: LoraLayer, weights: Mapping[str, float], method: str, rank: int | None) -> tuple[Tensor, Tensor]:
    factors = {adapter: layer.factor_matrices(adapter) for adapter in weights}
    scaled = {adapter: weight * layer.scaling[adapter] for adapter, weight in weights.items()}
    with torch.no_grad():
        if method == "linear":
            found = sorted({a.shape[0] for a, _ in factors.values()})
            if len(found) > 1:
                raise InputError(f"'linear' needs adapters of one rank, got {found}; use 'cat' or 'svd'")
            root = {adapter: math.sqrt(abs(weight)) for adapter, weight in scaled.items()}
            sign = {adapter: math.copysign(1, weight) for adapter, weight in scaled.items()}
            a = sum(sign[name] * root[name] * a for name, (a, _) in factors.items())
            return a, sum(root[name] * b for name, (_, b) in factors.items())
        a = torch.cat([scaled[name] * a for name, (a, _) in factors.items()])
        b = torch.cat([b for _, b in factors.values()], dim=1)
        if method == "svd":
            b, a, _ = truncate(b, a, rank or max(a.shape[0] for a, _ in factors.values()))
        return a, b


def _listed(record: AdapterRecord, adapter: str) -> list[str]:
    return [name for name, layer in record.layers.items() if adapter in layer.r and ".base_layer." not in name]
