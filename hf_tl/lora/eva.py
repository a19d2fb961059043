"""EVA: A starts as the directions along which the layer's inputs vary most (Paischer et al., 2024).

The rows of A become the leading right singular vectors of the inputs that the layer sees on the target data, found
batch by batch; B stays zero, so the output does not change. The rank is the same everywhere: EVA's moving of ranks
between layers (rho > 1) is left out.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from hf_tl.errors import InputError
from hf_tl.lora.adapted import disable_adapters, known, record_of
from hf_tl.lora.layer import LoraLayer
from hf_tl.lora.linear import LoraLinear
from hf_tl.trace import Batch, evaluating, forward


def initialize_eva(model: nn.Module, batches: Iterable[Batch], *, adapter_name: str = "default", seed: int = 0) -> int:
    """Sets A of every adapted linear layer from the layer's inputs on the batches.

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
