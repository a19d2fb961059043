"""Batch size and memory layout of a pass, chosen on its first batches while they are read."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TypedDict

import torch
from torch import nn

from hf_tl.embedding.batches import BATCH_SIZE, Execution


SMALL = 8  # samples whose activations stay in a processor's cache
LONG = 4 * BATCH_SIZE  # samples from which a pass has time to try anything
FASTER = 0.9  # the share of the time from which another memory layout is worth a copy of the network


class Choice(TypedDict, total=False):
    """What was chosen for a pass, in what JSON can hold; empty as long as nothing was."""

    batch_size: int
    channels_last: bool


class Autotune:
    """The parts of a pass, each with its execution: a few short trials, then all the rest by whatever was fastest.

    A pass with a batch size of the user's is left as it is, equal to the last bit from run to run. On a CPU the first
    batch is read in quarters; where the network has convolutions, two of them with channels first and two with
    channels last. The second batch is read as a whole. All of that counts: no sample is read twice.

    Args:
        execution: what the user wants; what is not "auto" stays as it is.
        model: the network.
        batches: of the pass.

    Attributes:
        choice: what was chosen; empty where there was nothing to choose.
    """

    def __init__(self, execution: Execution, model: nn.Module, batches: Sequence[Sequence[int]]):
        self.choice: Choice = {}
        self._execution, self._left = execution, deque(batches)
        self._layouts, self._sizes = [execution.channels_last is True], [execution.size]
        self._seconds: list[float] = []  # a sample, of each batch of the part that is being read
        self._times: dict[tuple[int, bool], float] = {}
        self._n_samples = sum(map(len, batches))
        if self._n_samples < LONG or execution.batch_size != "auto" or execution.torch_compile:
            return
        if execution.channels_last == "auto" and any(isinstance(module, nn.Conv2d) for module in model.modules()):
            self._layouts = [False, True]
        if torch.device(execution.device).type == "cpu":
            self._sizes = [SMALL, BATCH_SIZE]

    def __iter__(self) -> Iterator[tuple[Execution, list[Sequence[int]]]]:
        if len(self._layouts) == len(self._sizes) == 1:
            yield self._execution, list(self._left)
            return
        size = self._sizes[0]
        for layout in self._layouts:
            yield self._trial(size, layout), self._take(size, 4 // len(self._layouts))
            self._times[size, layout] = self._fastest()
        layout, other = self._layouts[0], self._layouts[-1]
        if self._times[size, other] < FASTER * self._times[size, layout]:
            layout = other
        for size in self._sizes[1:]:
            yield self._trial(size, layout), self._take(size, 1)
            self._times[size, layout] = self._fastest()
        size = min(self._sizes, key=lambda size: self._times[size, layout])
        self.choice = {"batch_size": size, "channels_last": layout}
        yield replace(self._execution, **self.choice), self._take(size, self._n_samples)

    def took(self, seconds: float, n: int) -> None:
        """Takes down how long `n` samples were in the network."""
        self._seconds.append(seconds / n)

    def __str__(self) -> str:
        """The choice with the measured times, in one line."""
        chosen = self.choice["batch_size"], self.choice["channels_last"]
        others = ", ".join(f"{_say(*key)}: {1000 * self._times[key]:.3g}" for key in self._times if key != chosen)
        return f"chosen on the first samples: {_say(*chosen)}, {1000 * self._times[chosen]:.3g} ms a sample ({others})"

    def _trial(self, size: int, layout: bool) -> Execution:
        self._seconds.clear()
        return replace(self._execution, batch_size=size, channels_last=layout, num_workers="auto")

    def _fastest(self) -> float:
        return min(self._seconds[1:] or self._seconds, default=math.inf)  # the first of several warms up

    def _take(self, size: int, n: int) -> list[Sequence[int]]:
        """The next `n` batches of at most `size` samples, or all that are left."""
        taken: list[Sequence[int]] = []
        while self._left and len(taken) < n:
            whole = self._left.popleft()
            taken.append(whole[:size])
            if len(whole) > size:
                self._left.appendleft(whole[size:])
        return taken


def _say(size: int, layout: bool) -> str:
    return f"batches of {size}, channels {'last' if layout else 'first'}"
