"""The instruments of a footprint: clock, CPU time, memory, energy and operations of a block."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass

import psutil
import torch

from hf_tl.analysis.energy import Amount, EnergyMeter, PowerModel
from hf_tl.analysis.flops import FlopCounter


EVERY = 0.05  # seconds between two looks at the memory


@dataclass(frozen=True)
class Reading:
    """What a block has spent so far.

    Attributes:
        wall_seconds: duration.
        cpu_seconds: of this process, and of those that it waited for.
        memory_bytes: peak of the resident memory.
        gpu_memory_bytes: peak of what torch held; 0 without a GPU.
        flops: operations; None where they are not counted.
        energy: joules by "cpu", "memory" and "gpu".
    """

    wall_seconds: float
    cpu_seconds: float
    memory_bytes: float
    gpu_memory_bytes: float
    flops: float | None
    energy: dict[str, Amount | None]


class Meters:
    """Clock, memory, counters of energy and, on demand, of operations, while a block runs.

    Args:
        power: what is assumed of parts without a counter.
        count_flops: whether operations are counted.
    """

    def __init__(self, power: PowerModel, *, count_flops: bool = False):
        self.meter, self.counter = EnergyMeter(power), FlopCounter() if count_flops else None
        self._process, self._ended = psutil.Process(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._memory = self._gpu_memory = 0.0
        self._allocated: dict[int, int] = {}
        self._wall = self._cpu = 0.0

    def start(self) -> None:
        """Begins."""
        self._look()
        self._allocated = {i: torch.cuda.max_memory_allocated(i) for i in _gpus()}
        self._thread.start()
        self._wall, self._cpu = time.perf_counter(), _cpu_seconds()
        self.meter.start()
        if self.counter is not None:
            self.counter.__enter__()

    def stop(self) -> None:
        """Ends the looks at memory, and the counting of operations."""
        if self.counter is not None:
            self.counter.__exit__(None, None, None)
        self._ended.set()
        self._thread.join()

    def read(self) -> Reading:
        """What was spent since the start."""
        wall, cpu = time.perf_counter() - self._wall, _cpu_seconds() - self._cpu
        self._look()
        peak = sum(
            torch.cuda.max_memory_allocated(i)
            for i in _gpus()
            if torch.cuda.max_memory_allocated(i) > self._allocated.get(i, 0)
        )
        energy = self.meter.stop(wall_seconds=wall, cpu_seconds=cpu, memory=self._memory)
        flops = None if self.counter is None else float(self.counter.total)
        return Reading(wall, cpu, self._memory, max(peak, self._gpu_memory), flops, energy)

    def _watch(self) -> None:
        while not self._ended.wait(EVERY):
            self._look()

    def _look(self) -> None:
        self._memory = max(self._memory, float(self._process.memory_info().rss))
        self._gpu_memory = max(self._gpu_memory, float(sum(torch.cuda.memory_allocated(i) for i in _gpus())))


def _gpus() -> range:
    """Those that this process may have used; asking does not make it use one."""
    return range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)


def _cpu_seconds() -> float:
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system
