"""A Ray cluster of two nodes on this machine, and samples and a network that its workers can import."""

import os
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from one_comparison import Guess
from torch import nn

from hf_tl import FullNetworkEmbedding, Network, Samples


NODE = {"num_cpus": 2, "object_store_memory": 120 * 2**20}  # as Ray counts them; the machine may have others


@contextmanager
def two_nodes():
    """The cluster, with a driver on its first node."""
    import ray
    import ray.data
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    here = Path(__file__).parent
    paths = [str(here), str(here.parent / "strategies"), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)  # of the workers
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    try:
        cluster.add_node(**NODE)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@contextmanager
def losing_a_node(cluster, when):
    """Inside, the second node is lost as soon as `when()` holds; afterwards there is another one."""
    (node,) = (node for node in cluster.list_all_nodes() if node is not cluster.head_node)
    over = threading.Event()

    def lose():
        while not when():
            if over.wait(0.02):
                return
        cluster.remove_node(node, allow_graceful=False)

    thread = threading.Thread(target=lose)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        assert node not in cluster.list_all_nodes()
        cluster.add_node(**NODE)


class Drawn(Samples):
    """Images that are drawn when they are asked for, so that they take no memory."""

    def __getitem__(self, index):
        return torch.randn(3, 12, 12, generator=torch.Generator().manual_seed(int(index)))


@dataclass(frozen=True)
class Deadly(Drawn):
    """The same; whoever reads one of some samples for the first time is killed.

    Attributes:
        fatal: indices of those samples.
        folder: keeps a file for each sample that has been read.
    """

    fatal: tuple[int, ...] = ()
    folder: str = ""

    def __getitem__(self, index):
        path = Path(self.folder, str(index))
        first = not path.exists()
        with open(path, "ab") as file:
            file.write(b".")
        if index in self.fatal and first:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


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
