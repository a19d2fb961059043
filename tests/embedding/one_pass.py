"""A pass that several tests run in processes of their own.

python one_pass.py OUT N_ROWS ...          fit_transform into OUT/N_ROWS for each number of rows
torchrun --nproc_per_node 2 one_pass.py    the same, shared by two processes
"""

import atexit
import json
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hf_tl import FullNetworkEmbedding, Network, Samples


BATCH = 8


class Drawn(Samples):
    """Rows that are drawn when they are asked for, so that they take no memory."""

    def __getitem__(self, index):
        return torch.randn(3, 12, 12, generator=torch.Generator().manual_seed(index))


def rows(n):
    return Drawn([{}] * n, "input", labels=np.arange(n) % 3, name="train")


def small_model():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 24), nn.ReLU()).eval()


def wide_model():
    """12,416 features, as of VGG16, for the price of one layer."""
    torch.manual_seed(0)
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 12_416), nn.ReLU()).eval()


def embedding(model, *, log=None, seconds=0.0, **options):
    """`log` gets a byte for each whole batch that is prepared; `seconds` slows each of them."""

    def prepare(batch):
        if log is not None and len(batch) == BATCH:
            descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(descriptor, b".")
            os.close(descriptor)
        time.sleep(seconds)
        return torch.stack(batch)

    options = {"batch_size": BATCH, "progress": False, **options}
    return FullNetworkEmbedding(Network(model, prepare), **options)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def main(out, *sizes):
    rank = os.environ.get("RANK", "0")
    grouped = Path(out, f"grouped-{rank}.json")
    atexit.register(lambda: grouped.write_text(json.dumps(torch.distributed.is_initialized())))
    for size in sizes:
        made = embedding(small_model()).fit_transform(rows(int(size)), out=f"{out}/{size}")
        embedding(small_model()).fit(rows(int(size)))  # statistics alone, without a folder
        assert len(made) == int(size)
    if torch.distributed.is_initialized() and rank == "0":
        Path(out, "world.json").write_text(json.dumps(torch.distributed.get_world_size()))


def peak_memory(out, *sizes):
    """Prints the most memory that the process has had by then, in KiB, after each number of rows."""
    for size in sizes:
        embedding(wide_model(), batch_size=64).fit_transform(rows(int(size)), out=f"{out}/{size}", keep_raw=False)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


if __name__ == "__main__":
    torch.set_num_threads(1)
    peak_memory(*sys.argv[2:]) if sys.argv[1] == "peak" else main(*sys.argv[1:])
