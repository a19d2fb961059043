"""Samples, a network and a strategy that the workers of a cluster can import."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import torch
from one_comparison import Guess
from ray_nodes import Drawn
from torch import nn

from hf_tl import FullNetworkEmbedding, Network


def drawn(n, kind=Drawn, **options):
    return kind([{}] * n, "input", labels=np.arange(n) % 3, class_names=("a", "b", "c"), name="drawn", **options)


def embedding(**options):
    """Of a small network that reads tensors."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 24), nn.ReLU()).eval()
    return FullNetworkEmbedding(Network(model, as_tensors), progress=False, batch_size=16, **options)


def as_tensors(batch):
    return torch.stack([torch.as_tensor(value).float() for value in batch])


class Counted(Guess):
    """Leaves a file for each run that is begun; the first time that one of 2 samples a class is, it is killed."""

    def fit(self, transfer, train, validation, *, effort, seed):
        begun = Path(transfer.folder, "begun")
        begun.mkdir(exist_ok=True)
        first = not (begun / "killed").exists()
        (begun / f"{time.time_ns()}").touch()
        time.sleep(0.3)
        if first and len(train) + len(validation) == 6:
            (begun / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().fit(transfer, train, validation, effort=effort, seed=seed)
