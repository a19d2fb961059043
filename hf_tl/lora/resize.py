"""An adapter of smaller rank: the best one, by singular value decomposition, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from hf_tl.errors import InputError
from hf_tl.lora.adapter import Adapter, LayerUpdate, alpha_for, rank_fields
from hf_tl.lora.low_rank import rank_for, singular_values, truncate
from hf_tl.table import format_table


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
        InputError: neither or both given, a value out of range, or a rank that a grouped convolution cannot have.
    """
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
    report, ranks, scales = [], {}, {}
    for name, update in adapter.updates.items():
        new = min(rank, update.rank) if rank is not None else _rank_to_keep(update, keep)
        if new < update.rank:
            B, A, error = _truncate(update, new)
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


def _rank_to_keep(update: LayerUpdate, keep: float) -> int:
    enough = max(rank_for(singular_values(*update.factors()), keep), 1)
    step = update.groups  # every group of a grouped convolution has the same share of the rank
    return min(-(-enough // step) * step, update.rank)


def _truncate(update: LayerUpdate, rank: int) -> tuple[Tensor, Tensor, float]:
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
