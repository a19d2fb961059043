"""What reading 10^6, 10^8 and 10^9 samples costs, from figures that other benchmarks have measured.

python recipes/benchmarks/cost_model.py [--gpu-ms 1.0]

Seconds a sample are those of results/extraction_forward.json (two cores) and results/ray.json; of a GPU they are what
--gpu-ms says, as none is measured here. The precision of merged statistics is measured by this program: blocks whose
sums are known exactly, merged as the cluster merges them, up to 10^9 rows.
"""

import argparse
import json
import math

import numpy as np
from machine import RESULTS, keep

from hf_tl import format_table
from hf_tl.cluster.ray_embedding import MERGED_AT_ONCE, ROWS_PER_FILE, RayEmbedding
from hf_tl.embedding.recipe import Statistics
from hf_tl.embedding.shards import ROWS_PER_GROUP


SIZES = (10**6, 10**8, 10**9)
FEATURES = 12_416
ROWS, WIDTH = 4096, 4  # of a block, of a row
MEANS = (0.0, 1e3, 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu-ms", type=float, default=1.0, help="milliseconds a sample on a GPU")
    options = parser.parse_args()
    ray = json.loads((RESULTS / "ray.json").read_text())
    block, per_block = RayEmbedding.block_size, ray["blocks"]["milliseconds_a_block"] / 1000
    bytes_a_sample = ray["killed"]["bytes_a_sample"]
    seconds = seconds_a_sample(ray)
    print(
        format_table(["network", "ms a sample, two cores"], [[k, f"{1000 * v:.0f}"] for k, v in seconds.items()]), "\n"
    )

    found = {}
    for n in SIZES:
        states = -(-n // block) * 3 * 8 * FEATURES
        shards = -(-n // ROWS_PER_FILE)
        found[str(n)] = {
            **{f"hours of two cores, {name}": round(n * value / 3600) for name, value in seconds.items()},
            f"hours of a GPU at {options.gpu_ms:g} ms a sample": round(n * options.gpu_ms / 3.6e6, 1),
            "hours of the driver, handing out blocks": round(n / block * per_block / 3600, 2),
            "GB of shards": round(n * bytes_a_sample / 1e9, 1),
            "shards, a request to write each": shards,
            "requests to load all shards": shards * (2 + ROWS_PER_FILE // ROWS_PER_GROUP),
            "GB of statistics in all": round(states / 1e9, 1),
            "GB of statistics that pass through the driver": round(states / MERGED_AT_ONCE / 1e9, 2),
            "GB of indices and labels in memory to load all shards": round(n * 24 / 1e9, 2),
        }
    heads = ["samples", *(f"10^{len(name) - 1}" for name in found)]
    print(
        format_table(heads, [[name, *(f"{one[name]:,}" for one in found.values())] for name in found[str(SIZES[0])]])
    )

    precision = merged_precision()
    heads = ["rows", *(f"mean {mean:g} std" for mean in MEANS)]
    print("largest relative error of the standard deviation of merged statistics, values far from zero by:")
    print(format_table(heads, [[f"{n:.0e}", *(f"{e:.0e}" for e in errors)] for n, errors in precision.items()]))
    keep(
        "cost_model",
        {"seconds_a_sample": seconds, "sizes": found, "error_of_std": {str(k): v for k, v in precision.items()}},
    )


def seconds_a_sample(ray: dict) -> dict[str, float]:
    """Seconds that a sample takes to be read, on two cores, by network."""
    runs = json.loads((RESULTS / "extraction_forward.json").read_text())["forward"]
    found = {}
    for run in runs:
        if run["dtype"] == "float32":
            own = run["extraction_seconds"]["median"] / run["batch"]
            found[run["network"]] = min(own, found.get(run["network"], own))
    own = float(np.median(ray["overhead"]["milliseconds_a_sample"]["ray"])) / 1000
    return {"mobilenetv2_100, 160 px, on Ray": own, **found}


def merged_precision() -> dict[int, list[float]]:
    """Rows -> the largest relative error of the std of merged statistics, for values around each mean."""
    errors: dict[int, list[float]] = {}
    for mean in MEANS:
        rng = np.random.default_rng(0)
        values = rng.standard_normal((MERGED_AT_ONCE, ROWS, WIDTH)).astype(np.float32) + np.float32(mean)
        blocks = [Statistics(WIDTH).update(part) for part in values]
        exact = [exact_std(column) for column in values.reshape(-1, WIDTH).astype(np.float64).T]
        merged = Statistics(WIDTH)
        for n in (10**6, 10**7, 10**8, 10**9):
            while merged.n < n:  # in whole rounds of all blocks, whose std is known
                part = Statistics(WIDTH)
                for one in blocks:
                    part = part.merge(one)
                merged = merged.merge(part)
            errors.setdefault(n, []).append(float(np.abs(merged.std() / exact - 1).max()))
    return errors


def exact_std(column: np.ndarray) -> float:
    mean = math.fsum(column) / len(column)
    return math.sqrt(math.fsum((column - mean) ** 2) / len(column))


if __name__ == "__main__":
    main()
