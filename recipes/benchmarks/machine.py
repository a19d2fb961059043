"""What a benchmark ran on, and how its results are kept."""

import json
import os
import platform
import statistics
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path


RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "peft", "timm", "datasets", "scikit-learn", "numpy")


def describe() -> dict:
    """Processor, cores in use, Python and package versions."""
    cpu = "unknown"
    if os.path.exists("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "processor": cpu,
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
