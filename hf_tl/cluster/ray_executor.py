"""Independent pieces of work, such as the runs of a comparison, on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from hf_tl.cluster.ray_data import check_actors, connect, map_blocks, own_errors, receive, require_ray_data, send


if TYPE_CHECKING:
    import ray

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class RayExecutor:
    """Calls a function for each of some items, on all machines of a Ray cluster.

    An actor keeps what the function holds, such as a task's samples, from one item to the next. What a lost machine
    was at is done again, by Ray; each result comes once. Folders that the function writes into must be shared.

        compare("timm/resnet50.a1_in1k", "beans", executor=RayExecutor(num_gpus=1))

    Args:
        address: "auto" for the cluster that this machine is part of, or "head:6379" of it; None for the one that
            RAY_ADDRESS names, else Ray is started on this machine.
        actors: how many items are worked on at a time, or (least, most); None for as many as there is room for.
        num_cpus: of each actor.
        num_gpus: of each actor.

    Raises:
        InputError: Ray is not installed, or there can be no such actors.
    """

    address: str | None = None
    actors: int | tuple[int, int] | None = None
    num_cpus: float = 1.0
    num_gpus: float = 0.0

    def __post_init__(self) -> None:
        require_ray_data()  # said before any work is prepared
        check_actors(self.actors, num_cpus=self.num_cpus, num_gpus=self.num_gpus)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """The results, in the order in which they are there.

        Args:
            function: what is called, on other machines.
            items: with each of these.

        Raises:
            InputError: whatever the function raises of the kind; no cluster answers, or has room for an actor.
        """
        data = require_ray_data()
        connect(self.address)
        work = (function, list(items))
        if not work[1]:
            return
        rows = map_blocks(
            data.range(len(work[1]), override_num_blocks=len(work[1])),
            _Calls,
            (send(work),),
            batch_size=1,
            whole_blocks=True,
            actors=self.actors,
            num_cpus=self.num_cpus,
            num_gpus=self.num_gpus,
        )
        with own_errors():
            for block in rows.iter_batches(batch_size=None, prefetch_batches=0):
                yield from block["result"]


class _Calls:
    """Numbers of items -> results."""

    def __init__(self, work: ray.ObjectRef):
        self._function, self._items = receive(work)

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, Any]:
        results = np.empty(len(block["id"]), object)
        for place, number in enumerate(block["id"].tolist()):
            results[place] = self._function(self._items[number])
        return {"result": results}
