"""Work of numpy's on the threads that torch would use: numpy lets go of the interpreter while it calculates."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch


ENOUGH = 2**19  # numbers a thread; with fewer, starting it takes longer than it saves


def in_threads(work: Callable[[slice], None], n: int, *, size: int) -> None:
    """Does some work on every part of range(n), the parts side by side.

    Args:
        work: does one part; parts must not depend on one another.
        n: number of items.
        size: numbers that an item stands for.
    """
    count = max(1, min(torch.get_num_threads(), n * size // ENOUGH))
    parts = [slice(n * i // count, n * (i + 1) // count) for i in range(count)]
    if count == 1:
        work(parts[0])
        return
    with ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(work, part) for part in parts]:
            done.result()
