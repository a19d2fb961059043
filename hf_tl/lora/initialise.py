"""Where a new adapter starts: as the config says, or along what a layer reads (EVA)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from hf_tl.errors import InputError
from hf_tl.lora.adapted import disable_adapters, known, record_of
from hf_tl.lora.config import LoraConfig
from hf_tl.lora.layer import Fixed, LoraLayer
from hf_tl.lora.linear import LoraLinear
from hf_tl.trace import Batch, evaluating, forward


def initialise(layer: LoraLayer, adapter: str, *, config: LoraConfig, parts: str | None = None) -> None:
    """Fills the factors of a layer's new adapter, as INITS says, and DoRA's norms.

    "pissa" and "olora" start from a part of the weight, which PEFT takes out of it, so that it no longer is the
    network's; here the weight stays, and the start of the factors is subtracted permanently (`Fixed`).

    Args:
        layer: with the adapter.
        adapter: its name.
        config: of the adapter.
        parts: which thirds of a fused projection are adapted, as letters of "qkv"; None for all outputs.

    Raises:
        InputError: the layer or the rank does not fit the init.
    """
    a, b = layer.held_factors(adapter)
    if a.is_meta:
        return
    start_a = start_b = mask = None
    with torch.no_grad():
        scaling = config.scaling(layer.r[adapter], layer.lora_alpha[adapter])
        rank = layer.r[adapter]
        if _fill(a, b, init=layer.init(config), weight=layer.matrix, scaling=scaling, rank=rank):
            start_a, start_b = a.detach().clone(), b.detach().clone()
        if parts is not None:
            mask = _part_mask(b, parts)
            b.mul_(mask)
        if mask is not None or start_a is not None:
            layer.lora_fixed[adapter] = Fixed(mask=mask, start_a=start_a, start_b=start_b)
        if config.use_dora:
            magnitude = layer.lora_magnitude_vector[adapter].weight
            magnitude.copy_(layer.row_norms(adapter).view(magnitude.shape))


def initialize_eva(model: nn.Module, batches: Iterable[Batch], *, adapter_name: str = "default", seed: int = 0) -> int:
    """Sets A of every adapted linear layer to the directions along which its inputs vary most (Paischer et al., 2024).

    The rows of A become the leading right singular vectors of the inputs that the layer sees on the target data, found
    batch by batch; B stays zero, so the output does not change. The rank is the same everywhere: EVA's moving of ranks
    between layers (rho > 1) is left out.

    Args:
        model: a network with the adapter, made with init_lora_weights="eva" and not trained yet.
        batches: of the target data, as the network is called with; a few hundred rows are enough.
        adapter_name: which.
        seed: of the random projections in the decomposition.

    Returns:
        how many layers were set.

    Raises:
        InputError: the adapter has learnt something already, has no linear layer, or no batch came.
    """
    adapter, record = adapter_name, known(record_of(model), adapter_name)
    layers = {n: layer for n, layer in record.layers.items() if adapter in layer.r and isinstance(layer, LoraLinear)}
    if not layers:
        raise InputError(f"adapter {adapter!r} has no linear layer for EVA; use init_lora_weights='kaiming'")
    for name, layer in layers.items():
        if layer.lora_B[adapter].weight.detach().any():
            raise InputError(f"B of {name!r} is not zero any more; EVA is for an adapter that has not been trained")
    sketches = {name: _Sketch(layer.r[adapter], seed) for name, layer in layers.items()}
    handles = [layer.base_layer.register_forward_pre_hook(sketches[name]) for name, layer in layers.items()]
    seen = 0
    try:
        with evaluating(record.model), torch.no_grad(), disable_adapters(model):
            for batch in batches:
                forward(model, batch)
                seen += 1
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        raise InputError("EVA needs at least one batch of the target data, got none")
    reached = {name: sketch for name, sketch in sketches.items() if sketch.rows is not None}
    for name, sketch in reached.items():
        _set(layers[name], adapter, sketch)
    return len(reached)


def _fill(a: Tensor, b: Tensor, *, init: str, weight: Callable[[], Tensor], scaling: float, rank: int) -> bool:
    """Fills A (r, k, ...) and B (d, r, ...), which comes as zeros; True where that start is to be subtracted.

    The factors of stacked experts have `rank` rows and columns for each.
    """
    if init in ("kaiming", "eva", "random"):
        for factor in (a, b) if init == "random" else (a,):
            bound = 1 / math.sqrt(factor[0].numel())  # what torch gives a new layer: kaiming_uniform_(a=sqrt(5))
            factor.uniform_(-bound, bound)
    elif init == "gaussian":
        a.normal_(std=1 / rank)
    elif init == "gaussian_b":
        a.zero_()
        b.normal_(std=1 / rank)
    elif init == "embedding":
        a.zero_()
        b.normal_()
    elif a.dim() != 2:
        raise InputError(f"init_lora_weights={init!r} is for linear layers; use 'kaiming' for convolutions")
    elif init == "orthogonal":
        _orthogonal(a, b)
    else:
        limit = min(a.shape[1], b.shape[0])
        if init.startswith("pissa") and scaling <= 0:
            raise InputError(f"{init!r} divides by the root of the scaling, {scaling:g} here; give lora_alpha above 0")
        if rank > limit:
            raise InputError(f"{init!r} finds {limit} directions in a {b.shape[0]} x {a.shape[1]} weight, r={rank}")
        left, right = _leading(weight().to(a.dtype), rank, init)
        a.copy_(right / math.sqrt(scaling) if init.startswith("pissa") else right)
        b.copy_(left / math.sqrt(scaling) if init.startswith("pissa") else left)
        return True
    return False


def _orthogonal(a: Tensor, b: Tensor) -> None:
    """Odd rows of one orthogonal matrix span A, even rows B, so that B A starts at zero though neither factor does."""
    rank = a.shape[0]
    if rank % 2:
        raise InputError(f"'orthogonal' splits the rank into halves, so it must be even; got {rank}")
    basis, _ = torch.linalg.qr(a.new_empty(rank, rank).normal_())
    a.copy_((a.new_empty(a.shape[1], rank // 2).normal_() @ basis[0::2]).t() / 10)
    b.copy_((b.new_empty(b.shape[0], rank // 2).normal_() @ basis[1::2]) / 10)


def _leading(weight: Tensor, rank: int, init: str) -> tuple[Tensor, Tensor]:
    """(d, r) and (r, k) whose product is the part of the weight that the init moves into the adapter."""
    if init == "olora":
        q, r = torch.linalg.qr(weight)
        return q[:, :rank], r[:rank]
    if init == "pissa":
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        u, s, vh = u[:, :rank], s[:rank], vh[:rank]
    else:
        u, s, v = torch.svd_lowrank(weight, q=rank, niter=int(init.rpartition("_")[2]))
        vh = v.t()
    return u * s.sqrt(), s.sqrt()[:, None] * vh


def _part_mask(b: Tensor, parts: str) -> Tensor:
    """(d, r): the rows of the n-th of `parts` go with the n-th block of columns."""
    third, rank = b.shape[0] // 3, b.shape[1] // len(parts)
    mask = torch.zeros_like(b)
    for i, part in enumerate(parts):
        row = third * "qkv".index(part)
        mask[row : row + third, i * rank : (i + 1) * rank] = 1
    return mask


class _Sketch:
    """The leading right singular vectors of all rows seen so far, times their singular values."""

    def __init__(self, rank: int, seed: int):
        self.rank = rank
        self.seed = seed
        self.rows: Tensor | None = None

    def __call__(self, module: nn.Module, args: tuple) -> None:
        x = args[0].detach().reshape(-1, args[0].shape[-1]).float()
        rows = x if self.rows is None else torch.cat([self.rows, x])
        width = min(4 * self.rank, *rows.shape)
        if min(rows.shape) <= 512:
            _, s, vh = torch.linalg.svd(rows, full_matrices=False)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                _, s, v = torch.svd_lowrank(rows, q=width, niter=4)
            vh = v.t()
        self.rows = s[:width, None] * vh[:width]


def _set(layer: LoraLayer, adapter: str, sketch: _Sketch) -> None:
    a = layer.lora_A[adapter].weight
    directions = torch.linalg.svd(sketch.rows, full_matrices=False)[2][: sketch.rank]
    with torch.no_grad():  # with fewer rows than the rank, the rest of A stays as it was drawn
        a[: directions.shape[0]] = directions.to(a.dtype)
