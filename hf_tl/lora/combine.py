"""Adapters made of others: a combination of several on a network, and a saved one at a smaller rank.

All work is done on B (d, R) and A (R, k), never on their product: with B = Q_b R_b and A' = Q_a R_a, the singular
values of B A are those of the small R_b R_a' (R, R), and its singular vectors are that one's, turned by Q_b and Q_a.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from hf_tl.errors import InputError
from hf_tl.lora.adapted import AdapterRecord, check_new_name, known, record_of, set_adapter
from hf_tl.lora.adapter import Adapter, LayerUpdate, alpha_for, is_split, rank_fields
from hf_tl.lora.layer import LoraLayer, SavedModule
from hf_tl.lora.token_rows import TokenRows
from hf_tl.table import format_table


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
        InputError: an adapter that is not there, one whose update is no sum or that trains biases of the network,
            merged adapters, weights that are not finite, ranks that differ with "linear", or a rank that a grouped
            convolution cannot have. The network is then what it was.
    """
    record = known(record_of(model), *adapters)
    _check(record, adapters, weights, adapter_name, combination_type, svd_rank)
    made = {}
    for name, layer in record.layers.items():
        shares = {a: w * layer.scaling[a] for a, w in zip(adapters, weights, strict=True) if a in layer.r}
        if shares:
            made[name] = _combined(layer, shares, combination_type, svd_rank)
    ranks = {name: a.shape[0] for name, (a, _, _) in made.items()}
    largest = max(ranks.values())
    others = {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != largest}
    config = replace(
        record.configs[adapters[0]],
        r=largest,
        lora_alpha=largest,
        rank_pattern=others,
        alpha_pattern=others,
        target_modules=sorted(name for name in made if ".base_layer." not in name),
        use_rslora=False,
        fused_parts=None,
        init_lora_weights="kaiming",
        lora_bias=any(record.configs[adapter].lora_bias for adapter in adapters),
    )
    try:
        for name, (a, b, bias) in made.items():
            layer = record.layers[name]
            layer.add_adapter(adapter_name, config=config, rank=ranks[name], alpha=ranks[name])
            _fill(layer, adapter_name, a=a, b=b, bias=bias)
        for name, saved in record.saved.items():
            _copy_saved(name, saved, adapters, adapter_name)
        for name, rows in record.tokens.items():
            _copy_rows(name, rows, adapters, adapter_name)
    except BaseException:  # such as a layer that cannot have what another adapter has
        for part in record.parts:
            part.delete_adapter(adapter_name)
        raise
    tokens = {n: rows.indices[adapter_name] for n, rows in record.tokens.items() if adapter_name in rows.indices}
    record.configs[adapter_name] = replace(config, trainable_token_indices=tokens or None)
    record.biases[adapter_name] = ()
    carried = (name for adapter in adapters for name in record.vocabulary.get(adapter, ()))
    record.vocabulary[adapter_name] = tuple(dict.fromkeys(carried))
    set_adapter(model, adapter_name)
    return model


@dataclass(frozen=True)
class LayerResize:
    """What happened to one layer.

    Attributes:
        name: the layer's name.
        old_rank: the rank it had.
        new_rank: the rank it has.
        error: Frobenius norm of what was cut off, relative to the norm of the update; 0 for no update.
    """

    name: str
    old_rank: int
    new_rank: int
    error: float


def resize_adapter(
    adapter: Adapter, *, rank: int | None = None, keep: float | None = None
) -> tuple[Adapter, list[LayerResize]]:
    """The adapter whose updates are the closest of smaller rank (Eckart & Young, 1936), with every layer's error.

    The scale of every layer stays; the singular values are shared out between A and B alike. Everything that is no
    update is taken over as it is. DoRA's magnitudes are too: its weights are re-normalised when they are used, so
    the error there is that of B A, not of the weight.

    Args:
        adapter: what `read_adapter` returned.
        rank: the new rank of every layer; a layer of lower rank keeps its own.
        keep: instead, the share of every update's squared norm to keep, above 0 and at most 1: each layer gets the
            smallest rank that does.

    Raises:
        InputError: neither or both given, a value out of range, a rank that a grouped convolution cannot have, factors
            of stacked experts, or an adapter whose rank says what its init took out of the weights.
    """
    if is_split(adapter.config):
        raise InputError(
            f"{adapter.folder} was trained beside weights that {adapter.config['init_lora_weights']!r} had changed by "
            "as much as its rank says; load_adapter and save_adapter make an ordinary adapter of it: resize that one"
        )
    stacked = next((name for name in adapter.updates if adapter.is_stacked(name)), None)
    if stacked is not None:
        raise InputError(
            f"{adapter.folder} holds factors of stacked experts in {stacked!r}, which are no update of one matrix; "
            "only adapters without target_parameters are resized"
        )
    if (rank is None) == (keep is None):
        raise InputError(f"give either a rank or the share to keep, got rank={rank} and keep={keep}")
    if rank is not None and rank < 1:
        raise InputError(f"rank must be at least 1, got {rank}; use delete_adapter to drop an adapter")
    if keep is not None and not 0 < keep <= 1:
        raise InputError(f"keep must be above 0 and at most 1, the share of the squared norm, got {keep}")
    largest = max(update.rank for update in adapter.updates.values())
    if rank is not None and rank > largest:
        raise InputError(f"rank {rank} is above the adapter's largest, {largest}; resize only makes adapters smaller")
    tensors = dict(adapter.tensors)
    report: list[LayerResize] = []
    wanted = {
        name: min(rank or largest, update.rank) if keep is None else _rank_to_keep(update, keep)
        for name, update in adapter.updates.items()
    }
    ranks, scales = {}, {}
    for name, update in adapter.updates.items():
        # the projections of one nn.MultiheadAttention have one rank
        attention = name.partition(".base_layer.")[0]
        new = max(n for other, n in wanted.items() if other.partition(".base_layer.")[0] == attention)
        if new < update.rank:
            B, A, error = _resized(update, new)
        else:
            B, A, error = update.B, update.A, 0.0
        tensors |= {f"{name}.{ending}": tensor for ending, tensor in replace(update, A=A, B=B).tensors().items()}
        report.append(LayerResize(name, update.rank, new, error))
        ranks[name], scales[name] = new, update.scale
    rslora = adapter.settings.use_rslora
    alphas = {name: alpha_for(scales[name], rank, use_rslora=rslora) for name, rank in ranks.items()}
    config = {**adapter.config, **rank_fields(ranks, alphas)}
    return Adapter(config, tensors, adapter.folder), report


def resize_table(report: list[LayerResize]) -> str:
    """One row a layer."""
    rows = [[layer.name, layer.old_rank, layer.new_rank, f"{layer.error:.2e}"] for layer in report]
    return format_table(["layer", "r before", "r after", "relative error"], rows)


def singular_values(b: Tensor, a: Tensor) -> Tensor:
    """Singular values of B A: (d, R), (R, k) -> (R,), descending."""
    left, right = (torch.linalg.qr(factor, mode="r").R for factor in (b, a.mT))
    found = torch.linalg.svdvals(left @ right.mT)
    return torch.nn.functional.pad(found, (0, a.shape[0] - len(found)))


def rank_for(values: Tensor, energy: float) -> int:
    """The smallest rank that keeps this share of the sum of squares of descending singular values; 0 if all are 0."""
    squares = values.square()
    total = squares.sum()
    if total == 0:
        return 0
    lost = total - squares.cumsum(0)
    return int((lost > (1 - energy) * total).sum()) + 1


def truncate(b: Tensor, a: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The best approximation of B A at a rank (Eckart and Young), its singular values shared by both factors.

    Args:
        b: (..., d, R).
        a: (..., R, k).
        rank: of the result; what it has beyond the rank of B A is zero.

    Returns:
        B (..., d, rank), A (..., rank, k), and the Frobenius norm of what is lost relative to that of B A.
    """
    left, left_r = torch.linalg.qr(b)
    right, right_r = torch.linalg.qr(a.mT)
    u, values, v = torch.linalg.svd(left_r @ right_r.mT, full_matrices=False)
    root = values[..., :rank].sqrt()
    b = (left @ u[..., :rank]) * root[..., None, :]
    a = root[..., None] * (v[..., :rank, :] @ right.mT)
    spare = rank - root.shape[-1]
    b, a = torch.nn.functional.pad(b, (0, spare)), torch.nn.functional.pad(a, (0, 0, 0, spare))
    total = float(values.square().sum())
    return b, a, math.sqrt(float(values[..., rank:].square().sum()) / total) if total else 0.0


def _check(
    record: AdapterRecord,
    adapters: Sequence[str],
    weights: Sequence[float],
    name: str,
    combination_type: str,
    svd_rank: int | None,
) -> None:
    record.check_enabled("combining adapters")
    check_new_name(record, name)
    if record.is_merged:
        raise InputError("adapters are merged into the weights; call unmerge_adapter before combining them")
    if not adapters:
        raise InputError("adapters must name at least one adapter, got none")
    if len(weights) != len(adapters):
        raise InputError(f"weights must hold one weight for each adapter, got {len(weights)} for {len(adapters)}")
    twice = next((adapter for adapter in adapters if adapters.count(adapter) > 1), None)
    if twice is not None:
        raise InputError(f"adapter {twice!r} is named twice; give it the sum of its weights")
    for adapter in adapters:
        if record.configs[adapter].use_dora:
            raise InputError(f"{adapter!r} is a DoRA adapter, whose update is no sum; merge it instead")
        if record.biases[adapter]:
            raise InputError(f"{adapter!r} trains biases of the network, of which there is one copy; merge it instead")
    if combination_type not in ("linear", "cat", "svd"):
        raise InputError(f"combination_type must be 'linear', 'cat' or 'svd', got {combination_type!r}")
    if not all(map(math.isfinite, weights)):
        raise InputError(f"weights must be finite, got {list(weights)}")
    if svd_rank is not None and svd_rank < 1:
        raise InputError(f"svd_rank must be at least 1, got {svd_rank}")


@torch.no_grad()
def _combined(
    layer: LoraLayer, shares: dict[str, float], combination_type: str, rank: int | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """A (r, k), B (d, r / groups) and the bias of B, or None, of the sum of shares of a layer's adapters."""
    found = {name: layer.factor_matrices(name) for name in shares}
    biases = [share * bias for name, share in shares.items() if (bias := layer.extra_bias(name)) is not None]
    bias = torch.stack(biases).sum(0) if biases else None
    if combination_type == "linear":
        ranks = sorted({a.shape[0] for a, _ in found.values()})
        if len(ranks) > 1:
            raise InputError(f"'linear' needs adapters of one rank, got {ranks}; use 'cat' or 'svd'")
        roots = {name: math.sqrt(abs(share)) for name, share in shares.items()}
        a = torch.stack([math.copysign(roots[name], shares[name]) * a for name, (a, _) in found.items()]).sum(0)
        return a, torch.stack([roots[name] * b for name, (_, b) in found.items()]).sum(0), bias
    a, b = next(iter(found.values()))
    groups = a.shape[0] // b.shape[1]  # each has its own share of the ranks
    a = torch.cat([shares[name] * a.unflatten(0, (groups, -1)) for name, (a, _) in found.items()], dim=1)
    b = torch.cat([b.unflatten(0, (groups, -1)) for _, b in found.values()], dim=2)
    if combination_type == "svd":
        rank = rank or max(a.shape[0] for a, _ in found.values())
        if rank % groups:
            raise InputError(f"a convolution with {groups} groups needs svd_rank to be divisible by them, got {rank}")
        b, a, _ = truncate(b, a, rank // groups)
    return a.flatten(0, 1), b.flatten(0, 1), bias


@torch.no_grad()
def _fill(layer: LoraLayer, adapter: str, *, a: Tensor, b: Tensor, bias: Tensor | None) -> None:
    """Gives a new adapter of a layer its update."""
    scale = layer.scaling[adapter]
    for own, value in zip(layer.held_factors(adapter), (a / scale, b), strict=True):
        own.copy_(value.view(own.shape))
    own_bias = layer.extra_bias(adapter)
    if own_bias is not None and bias is not None:
        own_bias.copy_(bias / scale)


def _copy_saved(name: str, saved: SavedModule, adapters: Sequence[str], adapter_name: str) -> None:
    """Gives a new adapter the first adapter's copy of a module that trains in full."""
    owners = [adapter for adapter in adapters if adapter in saved.modules_to_save]
    if not owners:
        return
    states = [saved.modules_to_save[owner].state_dict() for owner in owners]
    if any(not torch.equal(state[key], states[0][key]) for state in states for key in state):
        warnings.warn(f"{name!r} is not the same in {owners}; that of {owners[0]!r} is taken", stacklevel=3)
    saved.add_adapter(adapter_name, trains=saved.trains[owners[0]])
    saved.modules_to_save[adapter_name].load_state_dict(states[0])


def _copy_rows(name: str, tokens: TokenRows, adapters: Sequence[str], adapter_name: str) -> None:
    """Gives a new adapter all rows of tokens that the adapters train, each as the first adapter has it."""
    if tokens.source is not None:  # it follows those of another
        return
    found: dict[int, Tensor] = {}
    twice = []
    for adapter in adapters:
        for token, row in zip(tokens.indices.get(adapter, ()), tokens.rows.get(adapter, ()), strict=True):
            if not torch.equal(found.setdefault(token, row), row):
                twice.append(token)
    if twice:
        warnings.warn(
            f"tokens {sorted(set(twice))} of {name!r} have rows of their own in several of {list(adapters)}; those of "
            "the first are taken",
            stacklevel=3,
        )
    if found:
        tokens.add_adapter(adapter_name, indices=sorted(found))
        with torch.no_grad():
            tokens.rows[adapter_name].copy_(torch.stack([found[token] for token in sorted(found)]))


def _rank_to_keep(update: LayerUpdate, keep: float) -> int:
    enough = max(rank_for(singular_values(*update.factors()), keep), 1)
    step = update.groups  # every group of a grouped convolution has the same share of the rank
    return min(-(-enough // step) * step, update.rank)


def _resized(update: LayerUpdate, rank: int) -> tuple[Tensor, Tensor, float]:
    """B and A of the new rank in their old dtype and axes, and the relative error."""
    groups = update.groups
    if rank % groups:
        raise InputError(
            f"layer {update.name!r} works in {groups} groups, so its rank must be a multiple of {groups}, got {rank}"
        )
    old_B = update.B.reshape(groups, -1, update.rank // groups).double()
    old_A = update.A.reshape(groups, update.rank // groups, -1).double()
    B, A, error = truncate(old_B, old_A, rank // groups)
    B = B.reshape(update.B.shape[0], rank // groups, *update.B.shape[2:]).to(update.B.dtype)
    A = A.reshape(rank, *update.A.shape[1:]).to(update.A.dtype)
    return B, A, error
