"""The whole command, images to accuracy: `hf-tl probe` on three real data sets, wall time and accuracy.

HF_TL_REAL_DATA=path/to/data python recipes/benchmarks/bench_probe.py [--repeats 3]
"""

import argparse
import os
import re
import subprocess
import sys
import time

from machine import keep, real_data, spread

from hf_tl.table import format_table


SETS = ("flowers12", "dtd10", "fashion900")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    data = real_data()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    seconds = {name: [] for name in SETS}
    accuracy = {}
    for _ in range(repeats):
        for name in SETS:  # A B C A B C: a slow minute hits all alike
            command = [sys.executable, "-m", "hf_tl.cli", "probe", str(data / "weights" / "mobilenetv2_100.tf2_in1k"),
                       str(data / "sets" / name), "--image-size", "160", "--C", "1"]  # fmt: skip
            start = time.perf_counter()
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            seconds[name].append(time.perf_counter() - start)
            if done.returncode:
                raise SystemExit(done.stderr)
            rows = [re.split(r"\s{2,}", line) for line in done.stdout.splitlines()]
            accuracy[name] = {row[0]: float(row[6]) for row in rows if row[0] in ("full network", "last layer")}
    results = {name: {"accuracy": accuracy[name], "wall_seconds": spread(seconds[name])} for name in SETS}
    lines = [
        [
            name,
            *accuracy[name].values(),
            *(f"{results[name]['wall_seconds'][key]:.0f} s" for key in ("min", "median", "max")),
        ]
        for name in SETS
    ]
    print(format_table(["dataset", *accuracy[SETS[0]], "fastest", "median", "slowest"], lines))
    keep("probe", {"command": "hf-tl probe MODEL DATA --image-size 160 --C 1", "results": results})


if __name__ == "__main__":
    main()
