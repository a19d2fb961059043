"""Reading on a cluster of two Ray nodes on this machine, beside one process: equal, whole, flat in memory, how fast.

python recipes/benchmarks/bench_ray.py [PART ...]

real        flowers12 and dtd10 by MobileNetV2, handed to Ray as `datasets` holds them: ternary features that differ
killed      20,000 made images, 12,416 features each: ten actors and one node killed on the way
memory      the same of 1,000 and 20,000 images: the most memory of the driver and of any actor
overhead    milliseconds an image of flowers12 once warm, on two actors and in one process with two threads;
            "overhead of one": on one actor and with one thread
blocks      what a block costs by itself, by the clock
driver      the processor time of the driver in that, which other programs do not lengthen

Parts that results/ray.json has are not run again. Real data: the folder that HF_TL_REAL_DATA names.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import torch
from machine import RESULTS, describe, real_data
from ray_nodes import Deadly, Drawn, losing_a_node, two_nodes
from real_embeddings import IMAGE_SIZE, IMAGENET
from torch import nn

from hf_tl import FullNetworkEmbedding, Network, RayEmbedding, load_network, load_task


FILE = RESULTS / "ray.json"
N, FEW, WIDTH = 20_000, 1_000, 12_416
KILLED = tuple(range(900, N, 1_960))[:10]
BLOCKED = 8_192
IMAGES, WARM, TURNS = 832, 192, 5


def main(parts: list[str]) -> None:
    done = json.loads(FILE.read_text()) if FILE.is_file() else {"machine": describe()}
    for name, part in PARTS.items():
        if (parts and name not in parts) or (not parts and name in done):
            continue
        with tempfile.TemporaryDirectory() as folder:
            if name == "memory":  # whose processes have clusters of their own
                done[name] = memory()
            else:
                with two_nodes() as cluster:
                    done[name] = part(Path(folder), cluster)
        FILE.write_text(json.dumps(done, indent=1) + "\n")
        print(name, json.dumps(done[name], indent=1), flush=True)


def real(folder: Path, _: object) -> dict:
    import ray.data

    found = {}
    for name in ("flowers12", "dtd10"):
        task = load_task(str(real_data() / "sets" / name), modality="image")
        alone = FullNetworkEmbedding(mobilenet(), progress=False, batch_size=32)
        on_ray = RayEmbedding(
            FullNetworkEmbedding(mobilenet(), progress=False, batch_size=32), block_size=64, actors=2
        )
        wanted = [alone.fit_transform(task.train), alone.transform(task.test)]
        numbered = [
            ray.data.from_huggingface(part.dataset.add_column("index", range(len(part))))
            for part in (task.train, task.test)
        ]
        on_ray.fit(numbered[0])
        differing, total = 0, 0
        for rows, one in zip(numbered, wanted, strict=True):
            got = on_ray.to_parquet(on_ray.transform(rows), folder / f"{name}-{total}")
            assert got.indices.tolist() == one.indices.tolist()
            differing += int((np.asarray(got) != np.asarray(one)).sum())
            total += got.shape[0] * got.shape[1]
        gap = np.abs(on_ray.embedding.statistics_.mean - alone.statistics_.mean).max()
        found[name] = {
            "samples": sum(map(len, wanted)),
            "features": wanted[0].shape[1],
            "values": total,
            "differing": differing,
            "largest_gap_of_means": float(gap),
        }
    return found


def killed(folder: Path, cluster: object) -> dict:
    alone = made_embedding()
    wanted = np.asarray(alone.fit(made(N)).transform(made(N)))
    (folder / "read").mkdir()
    samples = made(N, Deadly, fatal=KILLED, folder=str(folder / "read"))
    on_ray = RayEmbedding(alone, actors=2)
    started = time.perf_counter()
    with losing_a_node(cluster, lambda: (folder / "read" / str(N // 2)).exists()):
        got = on_ray.to_parquet(on_ray.transform(samples), folder / "shards")
    seconds = time.perf_counter() - started
    assert got.indices.tolist() == list(range(N))
    again = [path for path in (folder / "read").iterdir() if path.stat().st_size > 1]
    size = sum(path.stat().st_size for path in (folder / "shards").glob("*.parquet"))
    return {
        "samples": N,
        "features": WIDTH,
        "actors_killed": sum((folder / "read" / str(index)).exists() for index in KILLED),
        "nodes_killed": 1,
        "differing": int((np.asarray(got) != wanted).sum()),
        "lost": N - len(got),
        "read_again": len(again),
        "seconds": round(seconds, 1),
        "shards": len(list((folder / "shards").glob("*.parquet"))),
        "bytes_a_sample": round(size / N, 1),
    }


def memory() -> dict:
    """Each size in a process of its own, whose memory has not been larger before."""
    found = {}
    for n in (FEW, N):
        words = [sys.executable, __file__, "peak", str(n)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        found[str(n)] = json.loads(done.stdout.splitlines()[-1])
    few, many = found[str(FEW)], found[str(N)]
    return {**found, "growth_mib": {name: round(many[name] - few[name], 1) for name in many}}


def peak(n: int) -> None:
    """Prints the most memory, in MiB, of this process and of any actor, without what they share."""
    with tempfile.TemporaryDirectory() as folder, two_nodes():
        on_ray = RayEmbedding(made_embedding().fit(made(64)), actors=2)
        most, over = [0], threading.Event()

        def watch() -> None:
            while not over.wait(0.2):
                for process in psutil.Process().children(recursive=True):
                    try:
                        if "MapWorker" in "".join(process.cmdline()[:1]):
                            held = process.memory_info()
                            most[0] = max(most[0], held.rss - held.shared)
                    except psutil.Error:
                        continue

        thread = threading.Thread(target=watch)
        thread.start()
        on_ray.to_parquet(on_ray.transform(made(n)), Path(folder, "shards"), rows_per_file=2048)
        over.set()
        thread.join()
    driver = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"driver": round(driver, 1), "actor": round(most[0] / 2**20, 1)}))


def overhead(*_: object, cores: int = 2) -> dict:
    """Milliseconds a sample once warm, on actors of a thread each and in one process of as many, taken in turns."""
    flowers = load_task(str(real_data() / "sets" / "flowers12"), modality="image").train
    samples = flowers.select(np.arange(IMAGES) % len(flowers))
    fne = FullNetworkEmbedding(mobilenet(), progress=False, batch_size=32, channels_last=True)
    fne.fit(flowers.select(range(64)))
    on_ray = RayEmbedding(fne, block_size=64, actors=cores)
    torch.set_num_threads(cores)
    found: dict[str, list[float]] = {"one process": [], "ray": []}
    for _turn in range(TURNS):
        found["one process"].append(pace(len(chunk.indices) for chunk in fne.stream(samples)))
        rows = on_ray.transform(samples).iter_batches(batch_size=None, prefetch_batches=0)
        found["ray"].append(pace(len(block["index"]) for block in rows))
        print({name: values[-1] for name, values in found.items()}, flush=True)
    ratios = [ray / one for one, ray in zip(found["one process"], found["ray"], strict=True)]
    return {
        "images": IMAGES,
        "milliseconds_a_sample": found,
        "ratio": [round(ratio, 3) for ratio in ratios],
        "median_ratio": round(float(np.median(ratios)), 3),
    }


def pace(sizes: Iterable[int]) -> float:
    """Milliseconds a sample, from when WARM samples are there to the last one."""
    seen, started, n = 0, 0.0, 0
    for size in sizes:
        if seen >= WARM:
            n += size
        seen += size
        if seen >= WARM and not n:
            started = time.perf_counter()
    return round(1000 * (time.perf_counter() - started) / n, 2)


def blocks(folder: Path, _: object) -> dict:
    """What a block costs by itself: the same images in blocks of 8 and of 256, warm."""
    fne, found = made_embedding().fit(made(64)), {}
    for size in (256, 8, 256, 8):
        on_ray = RayEmbedding(fne, block_size=size, actors=2)
        started = time.perf_counter()
        on_ray.to_parquet(on_ray.transform(made(BLOCKED)), folder / f"{size}-{len(list(folder.iterdir()))}")
        found.setdefault(size, []).append(time.perf_counter() - started)
    more = BLOCKED / 8 - BLOCKED / 256
    return {
        "samples": BLOCKED,
        "seconds": {str(size): [round(value, 2) for value in values] for size, values in found.items()},
        "milliseconds_a_block": round(1000 * (min(found[8]) - min(found[256])) / more, 2),
    }


def driver(folder: Path, _: object) -> dict:
    """Processor time of this process for a block: the same images in blocks of 8 and of 256, warm."""
    fne, found = made_embedding().fit(made(64)), {}
    for size in (256, 8, 256):
        on_ray, started = RayEmbedding(fne, block_size=size, actors=1), time.process_time()
        on_ray.to_parquet(on_ray.transform(made(FEW)), folder / f"{size}-{len(list(folder.iterdir()))}")
        found.setdefault(size, []).append(time.process_time() - started)
    more = FEW / 8 - FEW / 256
    return {
        "samples": FEW,
        "processor_seconds": {str(size): [round(value, 2) for value in values] for size, values in found.items()},
        "milliseconds_a_block": round(1000 * (min(found[8]) - min(found[256])) / more, 2),
    }


def mobilenet() -> Network:
    return load_network(str(real_data() / "weights" / IMAGENET), image_size=IMAGE_SIZE)


def made(n: int, kind: type = Drawn, **options: object) -> Drawn:
    return kind([{}] * n, "input", labels=np.arange(n) % 10, name="made", **options)


def made_embedding() -> FullNetworkEmbedding:
    """12,416 features, as of VGG16, for the price of one layer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, WIDTH), nn.ReLU()).eval()
    return FullNetworkEmbedding(Network(model, torch.stack), progress=False, batch_size=64)


PARTS = {
    "real": real,
    "killed": killed,
    "memory": memory,
    "overhead": overhead,
    "overhead of one": partial(overhead, cores=1),
    "blocks": blocks,
    "driver": driver,
}

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if sys.argv[1:2] == ["peak"]:
        peak(int(sys.argv[2]))
    else:
        main(sys.argv[1:])
