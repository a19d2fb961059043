"""Energy of what runs, in joules: from the counters of GPU and processor, else by a power model.

Counters are those of NVML (GPU boards, through nvidia-ml-py) and RAPL (Intel and AMD processors, through Linux'
powercap). Both count the whole device: what neighbours do on it is in the figure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from hf_tl.errors import InputError


Method = Literal["measured", "estimated"]
POWERCAP = Path("/sys/class/powercap")
SHORTEST = 3.0  # seconds from which on a counter's steps of some 0.1 s do not matter
GIGABYTE = 1e9


@dataclass(frozen=True)
class Amount:
    """A quantity, and how it is known.

    Attributes:
        value: in the unit of its field.
        method: "measured" by a clock, a counter or the system, or "estimated".
        source: by what, in words.
    """

    value: float
    method: Method
    source: str

    def __add__(self, other: Amount) -> Amount:
        both: Method = "measured" if self.method == other.method == "measured" else "estimated"
        sources = list(dict.fromkeys([*self.source.split("; "), *other.source.split("; ")]))
        return Amount(self.value + other.value, both, "; ".join(sources))


@dataclass(frozen=True)
class PowerModel:
    """What is assumed where there is no counter.

    The defaults are those of Green Algorithms (Lannelongue et al., Advanced Science 2021) for a processor that is not
    known: watts a core times its use, and watts a gigabyte of memory.

    Attributes:
        cpu_watts: power of a core that is busy; it is multiplied by CPU seconds.
        memory_watts_per_gb: power of a gigabyte (10^9 bytes) of memory in use; times the wall time.
        memory_watts: power of the memory, however much of it is in use, instead of watts a gigabyte.
        gpu_watts: power of each GPU in use, times the wall time; None for no assumption: the energy of a run that uses
            a GPU without a counter is then not known.
    """

    cpu_watts: float = 12.0
    memory_watts_per_gb: float = 0.3725
    memory_watts: float | None = None
    gpu_watts: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not 0 <= value < 1e5:
                raise InputError(f"{name} should be watts, 0 or more, got {value}")

    @classmethod
    def from_codecarbon(cls, *, gpu_watts: float | None = None) -> PowerModel:
        """What codecarbon assumes of this machine where it tracks a process (`tracking_mode="process"`).

        Its processor draws the thermal design power of codecarbon's table, or 4 W a thread where it has none, times
        the share of all CPUs that the process uses: watts a core times CPU seconds, as here. Its memory draws 5 W a
        module, whose number it guesses from the bytes in use, and 10 W at least.

        Args:
            gpu_watts: see above; codecarbon assumes nothing of GPUs.

        Raises:
            InputError: codecarbon is not installed.
        """
        try:
            from codecarbon.core.cpu import TDP
            from codecarbon.core.util import count_cpus, count_physical_cpus
            from codecarbon.external.hardware import POWER_CONSTANT
            from codecarbon.external.ram import RAM
        except ImportError as error:
            raise InputError("codecarbon's power model takes codecarbon: pip install 'hf-tl[carbon]'") from error
        watts = TDP().tdp
        processor = POWER_CONSTANT if watts is None else watts * count_physical_cpus()
        memory = RAM(tracking_mode="process").total_power().W
        return cls(cpu_watts=processor / count_cpus(), memory_watts=memory, gpu_watts=gpu_watts)


class EnergyMeter:
    """Reads the counters that there are, at `start` and at `stop`.

    Args:
        power: for what has no counter.
        powercap: the folder of RAPL's counters.
    """

    def __init__(self, power: PowerModel, *, powercap: Path = POWERCAP):
        self.power, self.powercap = power, powercap
        self._gpu: dict[int, float] = {}
        self._rapl: dict[Path, float] = {}

    def start(self) -> None:
        """Reads the counters for the first time."""
        self._gpu, self._rapl = _read_gpus(), _read_rapl(self.powercap)

    def stop(self, *, wall_seconds: float, cpu_seconds: float, memory: float) -> dict[str, Amount | None]:
        """Energy in joules by "cpu", "memory" and "gpu"; None for a GPU that was in use and of which nothing is known.

        Args:
            wall_seconds: since `start`.
            cpu_seconds: of this process, and of those that it waited for.
            memory: its peak in bytes.
        """
        short = "" if wall_seconds >= SHORTEST else f", within {SHORTEST:g} s coarse"
        found: dict[str, Amount | None] = {}
        spent = _since(self._rapl, _read_rapl(self.powercap))
        for part, domain in (("cpu", "package"), ("memory", "dram")):
            joules = [value for path, value in spent.items() if _domain(path).startswith(domain)]
            if joules:
                found[part] = Amount(sum(joules), "measured", f"RAPL, the whole machine{short}")
        power = self.power
        if "cpu" not in found:
            source = f"{power.cpu_watts:g} W a busy core"
            found["cpu"] = Amount(cpu_seconds * power.cpu_watts, "estimated", source)
        if "memory" not in found:
            watts, source = (
                power.memory_watts_per_gb * memory / GIGABYTE,
                f"{power.memory_watts_per_gb:g} W a GB of memory",
            )
            if power.memory_watts is not None:
                watts, source = power.memory_watts, f"{power.memory_watts:g} W of memory"
            found["memory"] = Amount(wall_seconds * watts, "estimated", source)
        used = _gpus_in_use()
        if used:
            found["gpu"] = self._gpu_energy(used, wall_seconds, short)
        return found

    def _gpu_energy(self, used: list[int], wall_seconds: float, short: str) -> Amount | None:
        now = _read_gpus()
        if all(i in self._gpu and i in now for i in used):
            return Amount(sum(now[i] - self._gpu[i] for i in used), "measured", f"NVML, the whole board{short}")
        if self.power.gpu_watts is None:
            return None
        watts = self.power.gpu_watts
        return Amount(len(used) * wall_seconds * watts, "estimated", f"{watts:g} W a GPU in use")


def add_energies(parts: Mapping[str, Amount | None]) -> Amount | None:
    """The sum over processor, memory and GPU; None where one is not known."""
    total = None
    for amount in parts.values():
        if amount is None:
            return None
        total = amount if total is None else total + amount
    return total


def _gpus_in_use() -> list[int]:
    """The GPUs on which this process has had memory."""
    if not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return []
    return [i for i in range(torch.cuda.device_count()) if torch.cuda.max_memory_allocated(i) > 0]


def _read_gpus() -> dict[int, float]:
    """Joules since the driver was loaded, by torch's number of the GPU; without those that have no counter."""
    if not torch.cuda.is_available():
        return {}
    try:
        import pynvml
    except ImportError:
        return {}
    found = {}
    try:
        pynvml.nvmlInit()
        for i in range(torch.cuda.device_count()):
            handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(i).uuid}")
            found[i] = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
    except pynvml.NVMLError:  # a part of a board (MIG), or one from before 2017
        return found
    return found


def _read_rapl(folder: Path) -> dict[Path, float]:
    """Joules by domain; without those that only root may read."""
    found = {}
    for domain in sorted(folder.glob("intel-rapl:*")):
        try:
            found[domain] = int((domain / "energy_uj").read_text()) / 1e6
        except (OSError, ValueError):
            continue
    return found


def _since(before: Mapping[Path, float], after: Mapping[Path, float]) -> dict[Path, float]:
    """What each domain spent; a counter that has passed its end starts at 0 again."""
    spent = {}
    for path, start in before.items():
        if path in after:
            end = after[path]
            if end < start:
                try:
                    end += int((path / "max_energy_range_uj").read_text()) / 1e6
                except (OSError, ValueError):
                    continue
            spent[path] = end - start
    return spent


def _domain(path: Path) -> str:
    """ "package-0", "dram", "core", "psys"."""
    try:
        return (path / "name").read_text().strip()
    except OSError:
        return ""
