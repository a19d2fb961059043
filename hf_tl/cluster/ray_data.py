"""Ray Data as hf_tl uses it: a class that maps blocks in actors, and errors in the words of whoever raised them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hf_tl.errors import InputError


if TYPE_CHECKING:
    import ray
    import ray.data


def require_ray_data() -> ModuleType:
    """`ray.data`.

    Raises:
        InputError: Ray is not installed.
    """
    try:
        import ray.data
    except ImportError as error:
        raise InputError("this runs on Ray: pip install 'hf-tl[ray]'") from error
    return ray.data


def map_blocks(
    dataset: ray.data.Dataset,
    make: Callable,
    arguments: tuple[object, ...],
    *,
    batch_size: int | None = None,
    actors: int | tuple[int, int] | None,
    num_cpus: float,
    num_gpus: float,
) -> ray.data.Dataset:
    """What a class makes of each block of a dataset.

    What follows it should take no cores (`num_cpus=0`): where machines are lost, actors may hold all that are left.

    Args:
        dataset: the blocks.
        make: the class; each actor calls it once, and what it gives with each block as a mapping of arrays.
        arguments: of the class.
        batch_size: rows of a block that it gets at a time; None for the block as it is.
        actors: how many there are, or (least, most); None for as many as the cluster has room for.
        num_cpus: of each actor.
        num_gpus: of each actor.
    """
    data = require_ray_data()
    least, most = actors if isinstance(actors, tuple) else (actors, actors)
    rows = dataset.map_batches(
        make,
        batch_size=batch_size,
        batch_format="numpy",
        compute=data.ActorPoolStrategy(min_size=least, max_size=most),
        fn_constructor_args=arguments,
        num_cpus=num_cpus,
        num_gpus=num_gpus,
    )
    rows.context.raise_original_map_exception = True  # so that it can be told from Ray's own
    return rows


def send(value: object) -> ray.ObjectRef:
    """Puts something where all actors find it, as bytes: arrays of Ray's object store could not be written to."""
    import ray

    return ray.put(ray.cloudpickle.dumps((os.getcwd(), value)))


def receive(sent: ray.ObjectRef) -> Any:
    """What `send` put there. Relative paths then mean what they mean for the driver, on a machine with its folder."""
    import ray

    folder, value = ray.cloudpickle.loads(ray.get(sent))
    if os.path.isdir(folder):
        os.chdir(folder)
    return value


@contextmanager
def own_errors() -> Iterator[None]:
    """What an actor says to the user is said here, without the layers of Ray around it."""
    from ray.exceptions import RayTaskError

    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise InputError(str(error.cause).splitlines()[0]) from error  # what follows is Ray's advice
        raise
