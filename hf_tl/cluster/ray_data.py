"""Ray Data as hf_tl uses it: a class that maps blocks in actors, and errors in the words of whoever raised them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pickle import PicklingError
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hf_tl.errors import InputError, in_one_line


if TYPE_CHECKING:
    import ray
    import ray.data


ANSWER = 10  # seconds


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


def connect(address: str | None) -> None:
    """Joins a running cluster, or starts Ray on this machine; does nothing where that is done.

    Args:
        address: "auto" or "host:port" of a cluster that this machine is part of; None for what RAY_ADDRESS names, and
            where it names none, for this machine.

    Raises:
        InputError: nobody answers there.
    """
    import ray

    if ray.is_initialized():
        return
    named = address or os.environ.get("RAY_ADDRESS", "")
    host, _, port = named.rpartition(":")
    try:
        if host and "://" not in named:  # Ray itself would try for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER).close()
        ray.init(address=address, log_to_driver=False)
    except (OSError, ValueError, RuntimeError) as error:
        if not named:
            raise
        raise InputError(
            f"no Ray cluster answers at {named!r}: {in_one_line(error)}; start one with `ray start --head`, join it "
            f"with `ray start --address=HOST:6379` on this machine, and give 'auto'"
        ) from error


def check_actors(actors: int | tuple[int, int] | None, *, num_cpus: float, num_gpus: float) -> None:
    """Sees that numbers of actors, and of what each of them takes, are some.

    Raises:
        InputError: they are not.
    """
    least, most = actors if isinstance(actors, tuple) else (actors, actors)
    if least is not None and most is not None and not 1 <= least <= most:
        raise InputError(f"actors should be 1 or more, or (least, most) of them, got {actors}")
    if not (num_cpus >= 0 and num_gpus >= 0 and num_cpus + num_gpus > 0):
        raise InputError(
            f"an actor takes part of a CPU or GPU or more, got num_cpus={num_cpus} and num_gpus={num_gpus}"
        )


def _check_room(*, num_cpus: float, num_gpus: float) -> None:
    """Ray would wait without end for a machine that is large enough."""
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(one.get("CPU", 0) >= num_cpus and one.get("GPU", 0) >= num_gpus for one in machines):
        return
    found = ", ".join(sorted({f"{one.get('CPU', 0):g} CPUs and {one.get('GPU', 0):g} GPUs" for one in machines}))
    raise InputError(
        f"an actor takes num_cpus={num_cpus:g} and num_gpus={num_gpus:g}, which no machine of the cluster has: they "
        f"have {found}; ask for less, or let such a machine join first"
    )


def map_blocks(
    dataset: ray.data.Dataset,
    make: Callable,
    arguments: tuple[object, ...],
    *,
    batch_size: int,
    whole_blocks: bool = False,
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
        batch_size: rows of a block that it gets at a time.
        whole_blocks: whether blocks are no larger than that, so that each may be given as it is.
        actors: how many there are, or (least, most); None for as many as the cluster has room for.
        num_cpus: of each actor.
        num_gpus: of each actor.

    Raises:
        InputError: no machine has room for an actor.
    """
    data = require_ray_data()
    _check_room(num_cpus=num_cpus, num_gpus=num_gpus)
    least, most = actors if isinstance(actors, tuple) else (actors, actors)
    rows = dataset.map_batches(
        make,
        batch_size=None if whole_blocks and not num_gpus else batch_size,  # with GPUs, Ray wants a number
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

    try:
        return ray.put(ray.cloudpickle.dumps((os.getcwd(), value)))
    except (TypeError, PicklingError, AttributeError) as error:
        raise InputError(
            f"what is sent to other machines should be something that pickle can hold: {in_one_line(error)}"
        ) from error


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
    from ray.exceptions import ActorDiedError, RayTaskError

    try:
        yield
    except ActorDiedError as error:
        if "creation task" not in str(error):
            raise
        raise InputError(
            f"an actor could not start: {str(error).strip().splitlines()[-1]}; each machine needs what this one "
            f"imports, see runtime_env of ray.init"
        ) from error
    except RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise InputError(str(error.cause).splitlines()[0]) from error  # what follows is Ray's advice
        raise
