"""How many samples a block should have: actors of unequal speed that stall and die, simulated from a seed.

python recipes/benchmarks/simulate_blocks.py

A driver hands out blocks one after the other, each at the cost that bench_ray.py measured; an actor reads a block,
slower or faster than others, stalls now and then, and is lost after an exponential time, with its block. What is
printed is the time until the last block is done, over that of actors that are all alike and never fail. It goes to
results/simulate_blocks.json.
"""

import heapq
import json
from dataclasses import asdict, dataclass

import numpy as np
from machine import RESULTS, keep

from hf_tl import format_table


BLOCKS = (16, 64, 256, 1024, 4096, 16384)
MOST = 4_200_000  # blocks that are simulated
SEEDS = 3


@dataclass(frozen=True)
class Cluster:
    """Actors and their troubles.

    Attributes:
        name: in the table.
        samples: to be read.
        actors: at a time.
        seconds: of a sample.
        speeds: standard deviation of the logarithm of an actor's speed.
        stalls: share of blocks that take ten times as long, as where storage is slow to answer.
        lost_after: hours until an actor is lost, on average.
        restart: seconds until another one has loaded the network.
    """

    name: str
    samples: int
    actors: int
    seconds: float
    speeds: float = 0.15
    stalls: float = 0.001
    lost_after: float = 2.0
    restart: float = 90.0


CLUSTERS = (
    Cluster("10^6 samples, 16 cores of 50 ms", 10**6, 16, 0.05),
    Cluster("10^8 samples, 512 cores of 50 ms", 10**8, 512, 0.05),
    Cluster("10^8 samples, 64 GPUs of 1 ms", 10**8, 64, 0.001),
    Cluster("10^9 samples, 256 GPUs of 1 ms", 10**9, 256, 0.001),
)


def simulate(cluster: Cluster, block: int, *, dispatch: float, seed: int) -> float:
    """The time until the last block is done, over the ideal one.

    Args:
        cluster: that reads.
        block: samples of a block.
        dispatch: seconds of the driver for each block.
        seed: of all that is random.
    """
    rng = np.random.default_rng(seed)
    slowness = np.exp(cluster.speeds * rng.standard_normal(cluster.actors))
    slowness *= (1 / slowness).sum() / cluster.actors  # together they are as fast as equal ones
    free = [(0.0, actor) for actor in range(cluster.actors)]
    left, driver, last = -(-cluster.samples // block), 0.0, 0.0
    work, life = block * cluster.seconds, 3600 * cluster.lost_after
    drawn: list[tuple[float, float]] = []
    while left:
        if not drawn:
            drawn = list(zip(rng.random(4096).tolist(), rng.exponential(life, 4096).tolist(), strict=True))
        chance, dies = drawn.pop()
        time, actor = heapq.heappop(free)
        driver = max(time, driver) + dispatch
        takes = work * slowness[actor] * (10 if chance < cluster.stalls else 1)
        if dies < takes:  # the block is handed out again
            heapq.heappush(free, (driver + dies + cluster.restart, actor))
            continue
        heapq.heappush(free, (driver + takes, actor))
        left, last = left - 1, max(last, driver + takes)
    return last / (cluster.samples * cluster.seconds / cluster.actors)


def main() -> None:
    measured = json.loads((RESULTS / "ray.json").read_text())["blocks"]["milliseconds_a_block"] / 1000
    rows, results = [], []
    for cluster in CLUSTERS:
        found: dict[int, float | None] = {}
        for block in BLOCKS:
            if cluster.samples / block > MOST:
                found[block] = None
                continue
            ratios = [simulate(cluster, block, dispatch=measured, seed=seed) for seed in range(SEEDS)]
            found[block] = round(float(np.median(ratios)), 3)
        rows.append([cluster.name, *("-" if value is None else f"{value:.2f}" for value in found.values())])
        results.append({**asdict(cluster), "ratio": found})
        print(rows[-1], flush=True)
    print(format_table(["", *(f"{block:,} a block" for block in BLOCKS)], rows))
    keep("simulate_blocks", {"dispatch_seconds": measured, "seeds": SEEDS, "clusters": results})


if __name__ == "__main__":
    main()
