"""How samples go through a network: in which batches, by which processes, on which device, in which precision."""

from __future__ import annotations

import atexit
import copy
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import nn

from hf_tl.data import Samples
from hf_tl.errors import InputError, in_one_line
from hf_tl.example import shapes_of
from hf_tl.models import Network
from hf_tl.trace import Batch, n_samples


BATCH_SIZE = 32
OnBadSamples = Literal["raise", "skip"]
Auto = Literal["auto"]
Item = TypeVar("Item")
Items = TypeVar("Items", Sequence[range], np.ndarray)
_SINGLE: ContextVar[bool] = ContextVar("single", default=False)


@dataclass(kw_only=True, repr=False, eq=False)
class Execution:
    """How samples go through a network; nothing here but `dtype` changes the values beyond rounding.

    Attributes:
        batch_size: samples a forward pass; "auto" for what is fastest on the first samples of a long pass, else 32.
        device: where the network runs; "cuda" is each process's own GPU.
        on_bad_samples: "raise" or "skip" samples that cannot be read, or whose activations are not finite.
        progress: whether a progress bar is drawn on standard error.
        dtype: "float32" or `torch.float32` for the network as it is; "bfloat16" or `torch.bfloat16` for a copy of it
            in that precision: faster where a processor has it, other in the third digit; of an embedding also "auto".
        channels_last: whether images and convolutions are laid out with channels last: mostly faster on a CPU; "auto"
            where the first samples of a long pass show that it is, if `batch_size` is "auto" too.
        torch_compile: whether the network runs through `torch.compile`.
        num_workers: processes that read and prepare the next batches; 0 for none; "auto" for a thread that does so
            while the network runs.
    """

    batch_size: int | Auto = "auto"
    device: str = "cpu"
    on_bad_samples: OnBadSamples = "raise"
    progress: bool = True
    dtype: torch.dtype | str = "float32"
    channels_last: bool | Auto = "auto"
    torch_compile: bool = False
    num_workers: int | Auto = "auto"

    @property
    def size(self) -> int:
        """Samples a forward pass, as long as nothing else was chosen."""
        return BATCH_SIZE if self.batch_size == "auto" else int(self.batch_size)

    @property
    def dtype_name(self) -> str:
        """ "float32" or "bfloat16".

        Raises:
            InputError: another precision.
        """
        name = str(self.dtype).removeprefix("torch.")
        if name not in ("float32", "bfloat16"):
            auto = "; only FullNetworkEmbedding finds it by itself" if name == "auto" else ""
            raise InputError(f"dtype should be 'float32' or 'bfloat16', got {self.dtype!r}{auto}")
        return name

    def check(self) -> None:
        """Raises an InputError that names the first setting out of range."""
        if self.on_bad_samples not in ("raise", "skip"):
            raise InputError(f"on_bad_samples should be 'raise' or 'skip', got {self.on_bad_samples!r}")
        for name, least in (("batch_size", 1), ("num_workers", 0)):
            value = vars(self)[name]
            if value != "auto" and (not isinstance(value, (int, np.integer)) or value < least):
                raise InputError(f"{name} must be at least {least}, got {value!r}; 'auto' chooses it")
        if self.channels_last not in (True, False, "auto"):
            raise InputError(f"channels_last should be True, False or 'auto', got {self.channels_last!r}")
        self.dtype_name  # noqa: B018 it raises

    def batches(self, n_samples: int) -> list[range]:
        """The samples of each forward pass; the same for every run, whichever of them remain to be read."""
        starts = range(0, n_samples, self.size)
        return [range(start, min(start + self.size, n_samples)) for start in starts]

    def own_model(self, model: nn.Module) -> nn.Module:
        """The network, or a copy of it in another precision or layout: the user's stays as it is."""
        if self.dtype_name == "float32" and self.channels_last is not True:
            return model
        model = copy.deepcopy(model)
        if self.channels_last is True:
            model = model.to(memory_format=torch.channels_last)
        return model.to(torch.bfloat16) if self.dtype_name == "bfloat16" else model

    def placed(self, batch: Batch) -> Batch:
        """The batch on the device, its images in the precision and layout of the network."""
        if isinstance(batch, torch.Tensor):
            return self._placed(batch)
        placed = {key: self._placed(value) for key, value in batch.items() if isinstance(value, torch.Tensor)}
        return {**batch, **placed}

    def _placed(self, value: torch.Tensor) -> torch.Tensor:
        value = value.to(self.device, non_blocking=True)
        if self.dtype_name == "bfloat16" and value.is_floating_point():
            value = value.to(torch.bfloat16)
        if self.channels_last is True and value.ndim == 4:
            value = value.contiguous(memory_format=torch.channels_last)
        return value


@dataclass(frozen=True)
class Processes:
    """The processes that share one pass over a dataset: one, or those that `accelerate launch` started.

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

    def share(self, items: Items) -> Items:
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
        found: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(found, value)
        return found


@contextmanager
def single_process() -> Iterator[None]:
    """Inside, this process reads all samples by itself and waits for nobody."""
    token = _SINGLE.set(True)
    try:
        yield
    finally:
        _SINGLE.reset(token)


def find_processes(device: str = "cpu") -> tuple[Processes, str]:
    """The processes of this run, and where this one's network belongs: "cuda" becomes its own device of several.

    Who starts a process group ends it: one that is started here is ended when the interpreter is.

    Args:
        device: where the user wants the network.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    grouped = torch.distributed.is_available() and torch.distributed.is_initialized()
    if _SINGLE.get() or not (launched or grouped):
        return Processes(), device
    from accelerate import PartialState

    state = PartialState(cpu=True) if device == "cpu" and not torch.cuda.is_available() else PartialState()
    if not grouped:
        atexit.register(_end_group)
    own = str(state.device) if device == "cuda" else device
    return Processes(state.process_index, state.num_processes), own


def to_device(batch: Batch, device: str) -> Batch:
    """The batch with its tensors on a device."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    return {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}


def loaded_batches(
    network: Network, samples: Samples, batches: Sequence[Sequence[int]], execution: Execution
) -> Iterator[tuple[list[int], list[int], Batch | None]]:
    """For every batch the indices that were wanted, those that could be read, and what the network takes of them.

    Raises:
        InputError: a sample that cannot be read or prepared, unless such samples are to be skipped.
    """
    read = _Batches(network.prepare, samples, batches, execution.on_bad_samples)
    pinned = execution.device.startswith("cuda")
    loader: Iterator[tuple[list[int], list[int], Batch | None] | InputError] = (read[i] for i in range(len(read)))
    workers = 0 if execution.num_workers == "auto" else int(execution.num_workers)
    if workers or pinned:
        loader = _started(
            torch.utils.data.DataLoader(
                read, batch_size=None, collate_fn=_unchanged, num_workers=workers, pin_memory=pinned
            )
        )
    if execution.num_workers == "auto" and len(batches) > 1:
        loader = _ahead(loader)
    for loaded in loader:
        if isinstance(loaded, InputError):
            raise loaded
        yield loaded


def load_batch(
    prepare: Callable[[list], Batch], samples: Samples, wanted: Sequence[int], *, on_bad_samples: OnBadSamples
) -> tuple[list[int], Batch | None]:
    """Reads and prepares some samples: the indices of those that could be, and their batch (None for no sample).

    Raises:
        InputError: a sample that cannot be read or prepared, unless it is to be skipped.
    """
    kept, inputs = [], []
    for index in wanted:
        try:
            inputs.append(samples[index])
            kept.append(index)
        except Exception as error:  # a foreign file may break its decoder in any way
            _refuse(samples, index, error, on_bad_samples)
    if not inputs:
        return [], None
    try:
        return kept, _one_a_sample(prepare(inputs), len(inputs))
    except Exception as error:  # which sample it is shows when each is prepared alone
        fine = []
        for index, value in zip(kept, inputs, strict=True):
            try:
                _one_a_sample(prepare([value]), 1)
                fine.append((index, value))
            except Exception as own:
                _refuse(samples, index, own, on_bad_samples)
        if len(fine) == len(kept):
            raise InputError(
                f"samples {kept[0]} to {kept[-1]} of {samples.name} cannot be put into one batch: "
                f"{in_one_line(error)}; let prepare bring them to one shape, or use batch_size=1"
            ) from error
    return ([index for index, _ in fine], prepare([value for _, value in fine])) if fine else ([], None)


def _one_a_sample(batch: Batch, n: int) -> Batch:
    """The batch; raises a ValueError where it has not one entry for each of n samples, as with frames of one video."""
    if n_samples(batch) != n:
        raise ValueError(f"{n} samples were prepared as {n_samples(batch)}: {shapes_of(batch)}")
    return batch


class _Batches(torch.utils.data.Dataset):
    """Reads and prepares batches, in a worker process or here; an error becomes a value, to keep its sentence."""

    def __init__(
        self,
        prepare: Callable[[list], Batch],
        samples: Samples,
        batches: Sequence[Sequence[int]],
        on_bad_samples: OnBadSamples,
    ):
        self._prepare, self._samples, self._batches, self._on_bad_samples = prepare, samples, batches, on_bad_samples

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, i: int) -> tuple[list[int], list[int], Batch | None] | InputError:
        wanted = self._batches[i]
        try:
            kept, batch = load_batch(self._prepare, self._samples, wanted, on_bad_samples=self._on_bad_samples)
            return list(wanted), kept, batch
        except InputError as error:
            return error


def _started(loader: torch.utils.data.DataLoader) -> Iterator:
    try:
        return iter(loader)
    except (pickle.PicklingError, AttributeError, TypeError) as error:  # where processes are spawned, not forked
        raise InputError(
            f"what reads or prepares the samples cannot be sent to worker processes: {in_one_line(error)}; define it "
            f"at the top of a module, not as a lambda or inside a function, or use num_workers=0"
        ) from error


def _ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items, each made by a thread while the one before it is in use."""
    with ThreadPoolExecutor(1, "hf_tl-reading") as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


def _unchanged(loaded: object) -> object:
    return loaded


def _refuse(samples: Samples, index: int, error: Exception, on_bad_samples: OnBadSamples) -> None:
    if on_bad_samples == "raise":
        raise InputError(
            f"sample {index} of {samples.name} cannot be read: {in_one_line(error)}; "
            f"mend row {index}, or leave such samples out with on_bad_samples='skip' (--on-bad-samples skip)"
        ) from error


def _end_group() -> None:
    """Ends gloo's group, whose threads abort a process that leaves them (torch 2.15: one exit in ten).

    NCCL's is left, as Accelerate leaves it: it only warns, and its end would wait for a process that has died.
    """
    if torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo":
        torch.distributed.destroy_process_group()
