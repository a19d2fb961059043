"""Several adapters on one network: which of them run and train, and new ones made of old ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from hf_tl.errors import InputError
from hf_tl.lora.layers import LoraLayer
from hf_tl.lora.record import AdapterRecord, known, record_of


def set_adapter(model: nn.Module, *adapters: str) -> None:
    """Makes the given adapters, and no others, run and train; the updates of several add up.

    Of `modules_to_save` the copy of the first adapter that has one runs. Biases of the network that train with an
    adapter go with it.

    Args:
        model: a network with adapters.
        adapters: their names; none for the frozen network.

    Raises:
        InputError: there is no such adapter, or adapters are merged.
    """
    record = record_of(model)
    for name in adapters:
        known(record, name)
    if any(layer.merged_adapters for layer in record.layers.values()):
        raise InputError("adapters are merged into the weights; call unmerge_lora before choosing others")
    record.active = list(adapters)
    for part in (*record.layers.values(), *record.saved.values()):
        part.set_adapter(adapters)
    for adapter, names in record.biases.items():
        for name in names:
            record.model.get_parameter(name).requires_grad_(adapter in adapters)


@contextmanager
def adapters_disabled(model: nn.Module) -> Iterator[nn.Module]:
    """The network as it was before any adapter, inside the block: its own head, its own biases.

    Args:
        model: a network with adapters.

    Yields:
        the same model.

    Raises:
        InputError: adapters are merged.
    """
    record = record_of(model)
    if any(layer.merged_adapters for layer in record.layers.values()):
        raise InputError("merged adapters cannot be disabled; call unmerge_lora first")
    parts = (*record.layers.values(), *record.saved.values())
    before = [part.disable_adapters for part in parts]
    trained = {name: record.model.get_parameter(name).detach().clone() for name in record.original_biases}
    try:
        for part in parts:
            part.disable_adapters = True
        _set_biases(record, record.original_biases)
        yield model
    finally:
        for part, disabled in zip(parts, before, strict=True):
            part.disable_adapters = disabled
        _set_biases(record, trained)


def combine_adapters(
    model: nn.Module,
    weights: dict[str, float],
    *,
    name: str,
    method: Literal["linear", "cat", "svd"] = "cat",
    rank: int | None = None,
) -> nn.Module:
    """Makes a new adapter of several, and makes it the one that runs.

    With A_i, B_i, scaling s_i and weight w_i of adapter i, the new update is

        cat     sum_i w_i s_i B_i A_i, exactly, at the sum of the ranks;
        svd     the best approximation of that sum at `rank` (the largest of the ranks, if not given);
        linear  (sum_i sqrt(w_i s_i) B_i) (sum_i sqrt(w_i s_i) A_i), at the one rank that all must have: cheap and
                rough, because the factors of different adapters mix. PEFT's "linear".

    Args:
        model: a network with the adapters.
        weights: adapter -> weight; any sign.
        name: of the new adapter.
        method: see above.
        rank: of "svd".

    Raises:
        InputError: an adapter that is not there, DoRA, merged adapters, or ranks that differ with "linear". The
            network is then what it was.
    """
    record = record_of(model)
    if not name or "." in name:
        raise InputError(f"an adapter's name must be a word without dots, got {name!r}")
    if any(layer.merged_adapters for layer in record.layers.values()):
        raise InputError("adapters are merged into the weights; call unmerge_lora before combining them")
    if name in record.configs:
        raise InputError(f"there is an adapter {name!r} already; choose another name or remove it first")
    if not weights:
        raise InputError("weights must name at least one adapter, got none")
    for adapter in weights:
        if known(record, adapter).configs[adapter].use_dora:
            raise InputError(
                f"{adapter!r} is a DoRA adapter, whose update is no sum; merge it with merge_lora instead"
            )
    if method not in ("linear", "cat", "svd"):
        raise InputError(f"method must be 'linear', 'cat' or 'svd', got {method!r}")
    first = record.configs[next(iter(weights))]
    held = {
        place: {adapter: weights[adapter] for adapter in weights if adapter in layer.r}
        for place, layer in record.layers.items()
    }
    combined = {p: _combined(record.layers[p], those, method, rank) for p, those in held.items() if those}
    config = replace(first, use_rslora=False, lora_bias=False, use_dora=False, init_lora_weights="kaiming")
    ranks = {place: a.shape[0] for place, (a, _) in combined.items()}
    largest = max(ranks.values())
    for place, (a, b) in combined.items():
        layer = record.layers[place]
        layer.add_adapter(name, config=config, rank=ranks[place], alpha=ranks[place], empty=True)
        with torch.no_grad():
            for tensor, value in zip(layer._held(name), (a / layer.scaling[name], b), strict=True):
                tensor.copy_(value.view(tensor.shape))
    odd = {f"^{place.replace('.', chr(92) + '.')}": rank for place, rank in ranks.items() if rank != largest}
    for saved in record.saved.values():
        owner = next((adapter for adapter in weights if adapter in saved.modules_to_save), None)
        if owner is not None:
            saved.add_adapter(name, trains=saved.trains[owner])
            saved.modules_to_save[name].load_state_dict(saved.modules_to_save[owner].state_dict())
    targets = {t for adapter in weights for t in _listed(record, adapter)}
    record.configs[name] = replace(
        first,
        r=largest,
        lora_alpha=largest,
        use_rslora=False,
        lora_bias=False,
        bias="none",
        fused_parts=None,
        init_lora_weights="kaiming",
        rank_pattern=odd,
        alpha_pattern=odd,
        target_modules=sorted(targets),
    )
    record.biases[name] = ()
    set_adapter(model, name)
    return model


def _combined(layer: LoraLayer, weights: dict[str, float], method: str, rank: int | None) -> tuple[Tensor, Tensor]:
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
        if method == "cat":
            return a, b
        rank = rank or max(a.shape[0] for a, _ in factors.values())
        return truncate(a, b, rank=rank)


def truncate(a: Tensor, b: Tensor, *, rank: int) -> tuple[Tensor, Tensor]:
    """The best approximation of B A at a rank, found without the product: A (R, k), B (d, R) -> (rank, k), (d, rank).

    With B = Q_b R_b and A' = Q_a R_a, the singular values of B A are those of the small R_b R_a' (R x R).
    """
    with torch.no_grad():
        q_b, r_b = torch.linalg.qr(b)
        q_a, r_a = torch.linalg.qr(a.t())
        u, s, vh = torch.linalg.svd(r_b @ r_a.t(), full_matrices=False)
        kept = min(rank, s.shape[0])
        new_a, new_b = vh[:kept] @ q_a.t(), q_b @ (u[:, :kept] * s[:kept])
        if kept < rank:
            new_a = torch.cat([new_a, new_a.new_zeros(rank - kept, new_a.shape[1])])
            new_b = torch.cat([new_b, new_b.new_zeros(new_b.shape[0], rank - kept)], dim=1)
        return new_a, new_b


def _listed(record: AdapterRecord, adapter: str) -> list[str]:
    return [name for name, layer in record.layers.items() if adapter in layer.r and ".base_layer." not in name]


def _set_biases(record: AdapterRecord, values: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            record.model.get_parameter(name).copy_(value)
