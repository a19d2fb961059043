"""The whole command, images to accuracy: `hf-tl probe` on three real data sets, without an option about speed.

HF_TL_REAL_DATA=path/to/data python recipes/benchmarks/bench_probe.py [--repeats 3] [--against CHECKOUT]

--against runs an earlier version of hf_tl, checked out elsewhere, in turns with this one. Wall time depends on who
else uses the machine, processor time hardly.
"""

import argparse
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from machine import keep, real_data, spread

from hf_tl.table import format_table


SETS = ("flowers12", "dtd10", "fashion900")
HERE = Path(__file__).resolve().parents[2]


def probe(checkout: Path, data: Path, name: str) -> tuple[float, float, dict[str, float]]:
    """Wall seconds, processor seconds and test accuracies of one run of the command."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(checkout)}
    command = [sys.executable, "-m", "hf_tl.cli", "probe", str(data / "weights" / "mobilenetv2_100.tf2_in1k"),
               str(data / "sets" / name), "--image-size", "160", "--C", "1"]  # fmt: skip
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=checkout)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(done.stderr)
    rows = [re.split(r"\s{2,}", line) for line in done.stdout.splitlines()]
    accuracy = {row[0]: float(row[6]) for row in rows if row[0] in ("full network", "last layer")}
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--against", type=Path)
    options = parser.parse_args()
    data, versions = real_data(), {"now": HERE} | ({"before": options.against} if options.against else {})
    wall: dict[tuple[str, str], list[float]] = {(name, version): [] for name in SETS for version in versions}
    cpu: dict[tuple[str, str], list[float]] = {key: [] for key in wall}
    accuracy = {}
    for _ in range(options.repeats):
        for name, version in wall:  # A B C A B C: a slow minute hits all alike
            seconds, processor, accuracy[name, version] = probe(versions[version], data, name)
            wall[name, version].append(seconds)
            cpu[name, version].append(processor)
    results = [
        {"dataset": name, "version": version, "accuracy": accuracy[name, version], "wall_seconds": spread(wall[key]),
         "processor_seconds": spread(cpu[key])}
        for key in wall
        for name, version in [key]
    ]  # fmt: skip
    lines = [
        [
            *key,
            *accuracy[key].values(),
            *(f"{statistics.median(times[key]):.1f} s" for times in (wall, cpu)),
            *(f"{_ratio(times, key):.2f}" for times in (wall, cpu)),
        ]
        for key in wall
    ]
    header = ["dataset", "version", "full network", "last layer", "wall", "processor", "wall ratio", "processor ratio"]
    print(format_table(header, lines))
    keep("probe", {"command": "hf-tl probe MODEL DATA --image-size 160 --C 1", "results": results})


def _ratio(times: dict[tuple[str, str], list[float]], key: tuple[str, str]) -> float:
    """The median of a version's times over that of the earlier one; 1 where there is none."""
    before = times.get((key[0], "before"), times[key])
    return statistics.median(times[key]) / statistics.median(before)


if __name__ == "__main__":
    main()
