"""The processes that share one pass over a dataset: one, or those that `accelerate launch` started."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

import torch


Item = TypeVar("Item")
_ALONE: ContextVar[bool] = ContextVar("alone", default=False)


@dataclass(frozen=True)
class Processes:
    """The processes of this run.

    Attributes:
        rank: which one this is, from 0.
        count: how many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the one that does what must be done once."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """The part of some items that is this process's: a consecutive one, empty where there are too few."""
        bounds = [len(items) * rank // self.count for rank in (self.rank, self.rank + 1)]
        return items[bounds[0] : bounds[1]]

    def wait(self) -> None:
        """Returns when every process has come here."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()

    def gather(self, value: Item) -> list[Item]:
        """What every process gave, by rank."""
        if self.count == 1:
            return [value]
        found: list[Item | None] = [None] * self.count
        torch.distributed.all_gather_object(found, value)
        return found


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process reads all rows by itself and waits for nobody."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def find_processes(device: str = "cpu") -> tuple[Processes, str]:
    """The processes of this run, and where this one's network belongs: "cuda" becomes its own device of several.

    Who starts a process group ends it: one that is started here is ended when the interpreter is.

    Args:
        device: where the user wants the network.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    grouped = torch.distributed.is_available() and torch.distributed.is_initialized()
    if _ALONE.get() or not (launched or grouped):
        return Processes(), device
    from accelerate import PartialState

    state = PartialState(cpu=True) if device == "cpu" and not torch.cuda.is_available() else PartialState()
    if not grouped:
        atexit.register(_end_group)
    own = str(state.device) if device == "cuda" else device
    return Processes(state.process_index, state.num_processes), own


def _end_group() -> None:
    """Ends gloo's group, whose threads abort a process that leaves them (torch 2.15: one exit in ten).

    NCCL's is left, as Accelerate leaves it: it only warns, and its end would wait for a process that has died.
    """
    if torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo":
        torch.distributed.destroy_process_group()
