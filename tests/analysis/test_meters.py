"""Instruments read while they run, and nothing runs after they stop."""

import threading
import time

import numpy as np
import torch

from hf_tl import PowerModel
from hf_tl.analysis.meters import Meters


def test_a_block_is_read_while_it_runs_and_after():
    threads = threading.active_count()
    meters = Meters(PowerModel(), count_flops=True)
    meters.start()
    held = np.ones(10_000_000)  # 80 MB
    torch.ones(8, 8) @ torch.ones(8, 8)
    first = meters.read()
    started = time.process_time()
    while time.process_time() < started + 0.05:
        pass
    torch.ones(8, 8) @ torch.ones(8, 8)
    second = meters.read()
    meters.stop()
    torch.ones(8, 8) @ torch.ones(8, 8)
    assert (first.flops, second.flops, meters.read().flops) == (1024, 2048, 2048)
    assert second.memory_bytes >= held.nbytes
    assert second.wall_seconds > first.wall_seconds
    assert second.cpu_seconds - first.cpu_seconds > 0.03  # clocks of the system tick every 0.01 s
    assert second.gpu_memory_bytes == 0 or torch.cuda.is_initialized()
    assert threading.active_count() == threads


def test_operations_are_counted_on_demand():
    meters = Meters(PowerModel())
    meters.start()
    meters.stop()
    assert meters.read().flops is None
