"""LinearSVM on 100,000 samples of 12,416 ternary features in a memory-mapped file, 100 classes: time and peak memory.

python recipes/benchmarks/bench_large_svm.py [--samples 100000] [--device cpu]

The samples are synthetic: 64 hidden factors, with a centre a class, seen through random weights and noise, then
discretised. The fit runs in a process of its own, whose peak memory the operating system tells.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from machine import keep, ternary_rows

from hf_tl.table import format_table


FEATURES, CLASSES, TEST_ROWS, LIMIT = 12_416, 100, 4_000, 2 * 2**30
RELATIVE_C, TOL = 1.0, 1e-3


def make(path: Path, samples: int, *, seed: int) -> np.ndarray:
    """Writes the samples block by block; returns their classes."""
    values = np.lib.format.open_memmap(path, mode="w+", dtype=np.int8, shape=(samples, FEATURES))
    labels = np.empty(samples, np.int64)
    for start in range(0, samples, 2000):
        part = slice(start, min(start + 2000, samples))
        values[part], labels[part] = ternary_rows(part.stop - start, FEATURES, CLASSES, seed=(seed, start))
    values.flush()
    np.save(path.with_suffix(".labels.npy"), labels)
    return labels


def fit(path: Path, *, device: str) -> dict:
    """Fits and evaluates; the memory is this process's."""
    import torch

    from hf_tl import LinearSVM

    values, labels = np.load(path, mmap_mode="r"), np.load(path.with_suffix(".labels.npy"))
    before = peak_memory()
    C = RELATIVE_C / (float(np.square(values[:2000], dtype=np.float32).sum(axis=1).mean()) + 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        start = time.perf_counter()
        svm = LinearSVM(C, tol=TOL, device=device).fit(values, labels)
        seconds, peak = time.perf_counter() - start, peak_memory()
    test, truth = ternary_rows(TEST_ROWS, FEATURES, CLASSES, seed=(1, 0))
    return {
        "seconds": round(seconds, 1),
        "passes": round(svm.n_iter_, 1),
        "peak_bytes": peak,
        "peak_bytes_before_the_fit": before,
        "C": C,
        "tol": TOL,
        "threads": torch.get_num_threads(),
        "train_accuracy_2000": float(svm.score(values[:2000], labels[:2000])),
        "test_accuracy": float(svm.score(test, truth)),
        "warnings": sorted({str(warning.message) for warning in caught}),
    }


def peak_memory() -> int:
    """The most memory this process has had, files' pages included, in bytes."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--fit", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fit:
        print(json.dumps(fit(options.fit, device=options.device)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        make(path, options.samples, seed=0)
        command = [sys.executable, __file__, "--fit", str(path), "--device", options.device]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    found = {"samples": options.samples, "features": FEATURES, "classes": CLASSES, "device": options.device, **found}
    gib = found["peak_bytes"] / 2**30
    cells = [options.samples, found["seconds"], found["passes"], gib, found["test_accuracy"]]
    print(format_table(["samples", "seconds", "passes", "peak GiB", "test accuracy"], [cells]))
    print(f"within {LIMIT / 2**30:g} GiB: {found['peak_bytes'] <= LIMIT}")
    for warning in found["warnings"]:
        print(f"warning: {warning}")
    keep("large_svm" if options.device == "cpu" else f"large_svm_{options.device.split(':')[0]}", found)


if __name__ == "__main__":
    main()
