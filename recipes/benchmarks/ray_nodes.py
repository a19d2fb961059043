"""A Ray cluster of two nodes on one machine that loses some of its workers, for benchmarks and tests."""

import os
import signal
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from hf_tl import Samples


NODE = {"num_cpus": 2, "object_store_memory": 120 * 2**20}  # as Ray counts them; the machine may have others


@contextmanager
def two_nodes(*folders):
    """The cluster, with a driver on its first node.

    Args:
        folders: of modules that workers import, this one's beside.
    """
    import ray
    import ray.data
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_DATA_PARQUET_FOOTER_NUM_ACTORS"] = "1"  # of 32 processes, for each read_parquet
    paths = [str(Path(__file__).parent), *map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
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
