"""What a training would cost, before it runs."""

from __future__ import annotations

import torch
from torch import nn

from hf_tl.analysis.energy import Amount, PowerModel
from hf_tl.analysis.flops import FlopCounter, run_once, samples_in
from hf_tl.analysis.footprint import Footprint
from hf_tl.trace import Batch


TIMED_STEPS = 3


def estimate_footprint(
    model: nn.Module,
    batch: Batch,
    *,
    n_samples: int,
    epochs: float = 1.0,
    train: bool = True,
    name: str = "training",
    country: str | None = None,
    grid_intensity: float | None = None,
    power: PowerModel | None = None,
) -> Footprint:
    """What a training, or one pass, would cost, from a few batches; the network stays as it is.

    Reading and preparing the samples, the optimizer's step and its memory are not in it.

    Args:
        model: with what will train requiring gradients.
        batch: of the size that will be used.
        n_samples: of the training samples.
        epochs: how often each is seen.
        train: whether gradients are computed; False for a pass of reading.
        name: of the work.
        country: see `Footprint`.
        grid_intensity: see `Footprint`.
        power: see `Footprint`.

    Raises:
        InputError: an unknown country.
        ValueError: nothing trains.
    """
    size = samples_in((batch,), {})
    times = n_samples * epochs / max(size, 1)
    with FlopCounter() as counter:
        run_once(model, batch, backward=train)  # the first pass is slow and not timed
    with Footprint(name, country=country, grid_intensity=grid_intensity, power=power or PowerModel()) as timed:
        for _ in range(TIMED_STEPS):
            run_once(model, batch, backward=train)
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    source = f"{TIMED_STEPS} batches of {size}, times {times / TIMED_STEPS:.3g}"
    found = Footprint(
        name, country=country, grid_intensity=grid_intensity, power=timed.power, samples=round(n_samples * epochs)
    )

    def scaled(amount: Amount | None, by: float = times / TIMED_STEPS) -> Amount | None:
        return None if amount is None else Amount(amount.value * by, "estimated", source)

    found.wall_seconds, found.cpu_seconds = scaled(timed.wall_seconds), scaled(timed.cpu_seconds)
    found.memory_bytes = scaled(timed.memory_bytes, by=1.0)
    found.gpu_memory_bytes = scaled(timed.gpu_memory_bytes, by=1.0)
    found.flops = Amount(counter.total * times, "estimated", f"one batch of {size}, times {times:.3g}")
    found.set_energy({part: scaled(amount) for part, amount in timed.energy.items()})
    return found
