"""What codecarbon says of a block's energy, and what a footprint says with the same assumptions.

pip install 'hf-tl[carbon]' && python recipes/benchmarks/check_codecarbon.py

Each block runs under both at once: codecarbon tracks this process, or the machine, and looks every second or at the
end alone. On a machine with counters (RAPL) both read those, and nothing is assumed.
"""

import time
from collections.abc import Callable

import numpy as np
import timm
import torch
from codecarbon import OfflineEmissionsTracker
from machine import keep

from hf_tl import Footprint, PowerModel, format_table


SECONDS = 5.0  # CPU time of a block
WAYS = {"process, at the end": ("process", 600.0), "process, every second": ("process", 1.0),
        "machine, every second": ("machine", 1.0)}  # fmt: skip


def products() -> Callable[[], object]:
    """In numpy, which lets other threads run."""
    values = np.ones((500, 500))
    return lambda: values @ values


def training() -> Callable[[], object]:
    """Steps of a small network."""
    model, batch = timm.create_model("test_resnet", num_classes=4), torch.randn(8, 3, 64, 64)
    return lambda: model(batch).square().sum().backward()


def counting() -> Callable[[], object]:
    """In Python alone, which lets no other thread run for long."""
    return lambda: sum(range(10**5))


BLOCKS = {"products of matrices": products, "training": training, "Python alone": counting}


def measure(work: Callable[[], object], power: PowerModel, way: str) -> list[float]:
    """Joules of processor and memory, those of codecarbon behind ours."""
    mode, every = WAYS[way]
    tracker = OfflineEmissionsTracker(
        country_iso_code="ESP",
        tracking_mode=mode,
        measure_power_secs=every,
        save_to_file=False,
        log_level="critical",
        allow_multiple_runs=True,
    )
    tracker.start()
    with Footprint("block", country="ESP", power=power) as ours:
        start = time.process_time()
        while time.process_time() < start + SECONDS:
            work()
    tracker.stop()
    theirs = tracker.final_emissions_data
    return [
        ours.energy["cpu"].value,
        3.6e6 * theirs.cpu_energy,
        ours.energy["memory"].value,
        3.6e6 * theirs.ram_energy,
    ]


def main() -> None:
    power = PowerModel.from_codecarbon()
    print(f"codecarbon assumes {power.cpu_watts:g} W a busy core and {power.memory_watts:g} W of memory here")
    rows = []
    for block, make in BLOCKS.items():
        work = make()
        work()
        for way in WAYS:
            rows.append([block, way, *(f"{value:.1f}" for value in measure(work, power, way))])
    header = ["block", "codecarbon tracks", "CPU, J", "codecarbon's", "memory, J", "codecarbon's"]
    print(format_table(header, rows))
    keep("check_codecarbon", {"power": vars(power), "header": header, "rows": rows})


if __name__ == "__main__":
    main()
