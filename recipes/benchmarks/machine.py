"""What a benchmark ran on, and how its results are kept."""

import json
import os
import platform
import statistics
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch


RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "peft", "timm", "datasets", "scikit-learn", "numpy")


def describe() -> dict:
    """Processor, the instructions that torch uses on it, cores in use, Python and package versions."""
    cpu = "unknown"
    if os.path.exists("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "processor": cpu,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def spread(values: Sequence[float]) -> dict:
    """Minimum, median and maximum of repeated measurements."""
    return {
        "min": round(min(values), 3),
        "median": round(statistics.median(values), 3),
        "max": round(max(values), 3),
        "runs": len(values),
    }


def ternary_rows(
    rows: int, features: int, classes: int, *, seed: int | Sequence[int], noise: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Made-up discretised rows (rows, features) int8 and their classes: hidden factors around a centre a class.

    Different seeds draw different rows of the same task.
    """
    task, generator = np.random.default_rng(0), np.random.default_rng(seed)
    n_factors = 64
    centres = task.standard_normal((classes, n_factors), dtype=np.float32)
    weights = task.standard_normal((n_factors, features), dtype=np.float32) / np.sqrt(np.float32(n_factors))
    labels = generator.integers(0, classes, rows)
    factors = 0.6 * centres[labels] + generator.standard_normal((rows, n_factors), dtype=np.float32)
    values = factors @ weights + np.float32(noise) * generator.standard_normal((rows, features), dtype=np.float32)
    return (values > 0.15).astype(np.int8) - (values < -0.25).astype(np.int8), labels


def real_data() -> Path:
    """The folder of real weights and data sets that HF_TL_REAL_DATA names."""
    folder = os.environ.get("HF_TL_REAL_DATA")
    if not folder:
        raise SystemExit("set HF_TL_REAL_DATA to the folder of real weights and data sets")
    return Path(folder).resolve()


def keep(name: str, results: dict) -> None:
    """Writes results/NAME.json with the machine beside the figures."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": describe(), **results}, indent=1) + "\n")
    print(f"wrote {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
