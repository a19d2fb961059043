"""Rows through a network, a batch at a time: raw activations with their row numbers, bad rows named."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from hf_tl.data import Rows
from hf_tl.embedding.reader import TapReader
from hf_tl.embedding.tap import Tap
from hf_tl.embedding.taps import n_rows
from hf_tl.errors import InputError, in_one_line
from hf_tl.models import Network
from hf_tl.trace import Batch


OnBadRows = Literal["raise", "skip"]


@dataclass(frozen=True)
class Execution:
    """How rows go through a network; nothing here but `dtype` changes the values beyond rounding.

    Attributes:
        batch_size: rows a forward pass.
        device: where the network runs.
        on_bad_rows: whether a row that cannot be read, or whose activations are not finite, ends the pass or is
            left out.
        progress: whether a progress bar is drawn on standard error.
        dtype: "float32" for the network as it is; "bfloat16" for a copy of it in that precision.
        channels_last: whether images and convolutions are laid out with channels last.
        compiled: whether the network runs through `torch.compile`.
        workers: processes that read and prepare the next batches; 0 for none.
    """

    batch_size: int = 32
    device: str = "cpu"
    on_bad_rows: OnBadRows = "raise"
    progress: bool = True
    dtype: Literal["float32", "bfloat16"] = "float32"
    channels_last: bool = False
    compiled: bool = False
    workers: int = 0

    def __post_init__(self) -> None:
        if self.on_bad_rows not in ("raise", "skip"):
            raise InputError(f"on_bad_rows should be 'raise' or 'skip', got {self.on_bad_rows!r}")
        if self.batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.dtype not in ("float32", "bfloat16"):
            raise InputError(f"dtype should be 'float32' or 'bfloat16', got {self.dtype!r}")
        if self.workers < 0:
            raise InputError(f"workers must be at least 0, got {self.workers}")

    def batches(self, n_rows: int) -> list[range]:
        """The rows of each forward pass; the same for every run, whichever of them remain to be read."""
        starts = range(0, n_rows, self.batch_size)
        return [range(start, min(start + self.batch_size, n_rows)) for start in starts]


@dataclass(frozen=True)
class Block:
    """Raw activations of some rows.

    Attributes:
        rows: (rows,) their indices in the dataset, ascending.
        values: (rows, n_features) float32; the next block writes over them unless `into` was given.
        skipped: (n,) indices of rows of the same batch that were left out.
    """

    rows: np.ndarray
    values: np.ndarray
    skipped: np.ndarray


def extract(
    network: Network,
    rows: Rows,
    taps: Sequence[Tap],
    batches: Sequence[range],
    *,
    execution: Execution,
    into: np.ndarray | None = None,
) -> Iterator[Block]:
    """One pass over the rows of some batches, one block of raw activations a batch.

    Args:
        network: what the rows go through; it is moved to the device.
        rows: the raw inputs.
        taps: what is read.
        batches: the rows of each forward pass.
        execution: how.
        into: (rows of all batches, n_features) float32, in which the blocks' values are put one below the other.

    Raises:
        InputError: a bad row, named by its index, before its block is handed on.
    """
    device = execution.device
    model = _as_executed(network.model, execution)
    move(model, device)
    skipped = 0
    with (
        TapReader(model, taps, compiled=execution.compiled) as read,
        tqdm(
            total=len(rows),
            initial=len(rows) - sum(len(wanted) for wanted in batches),
            desc=f"embedding {rows.name}",
            unit="row",
            disable=not execution.progress,
        ) as bar,
    ):
        landing = _Landing(execution, (max(len(wanted) for wanted in batches), read.n_features), into)
        for wanted, kept, batch in _loaded(network, rows, batches, execution):
            used, values = np.asarray(kept, np.int64), np.empty((0, read.n_features), np.float32)
            if batch is not None:
                values = landing.read(read, _to_execution(batch, execution))
                finite = _finite_rows(values, kept, taps, rows, execution.on_bad_rows)
                used, values = used[finite], landing.keep(values, finite)
            left_out = np.setdiff1d(wanted, used) if len(used) < len(wanted) else np.empty(0, np.int64)
            yield Block(used, values, left_out)
            skipped += len(left_out)
            if skipped:
                bar.set_postfix(skipped=skipped)
            bar.update(len(wanted))


class _Landing:
    """Where batches come to lie on the host: one below the other in an array of the caller, or all in one buffer.

    A reader on the CPU writes there itself. From a GPU there is one copy, through pinned memory.
    """

    def __init__(self, execution: Execution, shape: tuple[int, int], into: np.ndarray | None):
        kind = torch.device(execution.device).type
        self._direct = kind == "cpu" and not execution.compiled
        self._pinned = torch.empty(shape, pin_memory=True) if kind == "cuda" else None
        self._below = into is not None
        self._array = into if self._below else np.empty(shape, np.float32)
        self._next = 0

    def read(self, read: TapReader, batch: Batch) -> np.ndarray:
        """(rows, n_features) float32, of the next batch."""
        n = n_rows(batch)
        space = torch.from_numpy(self._array[self._next : self._next + n])
        if self._direct:
            return read(batch, out=space).numpy()
        values = read(batch)
        if self._pinned is not None:
            self._pinned[:n].copy_(values, non_blocking=True)
            torch.cuda.current_stream(values.device).synchronize()
            values = self._pinned[:n]
        return space.copy_(values).numpy()

    def keep(self, values: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """Those of the rows just read for which `kept` is true, from the top; the next batch goes below them."""
        if not kept.all():
            values[: kept.sum()] = values[kept]
            values = values[: kept.sum()]
        self._next += len(values) if self._below else 0
        return values


class _Batches(torch.utils.data.Dataset):
    """Reads and prepares batches, in a worker process or here; an error becomes a value, to keep its sentence."""

    def __init__(self, network: Network, rows: Rows, batches: Sequence[range], on_bad_rows: OnBadRows):
        self._prepare, self._rows, self._batches, self._on_bad_rows = network.prepare, rows, batches, on_bad_rows

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, i: int) -> tuple[list[int], list[int], Batch | None] | InputError:
        wanted = self._batches[i]
        try:
            kept, batch = load_batch(self._prepare, self._rows, wanted, on_bad_rows=self._on_bad_rows)
            return list(wanted), kept, batch
        except InputError as error:
            return error


def _loaded(
    network: Network, rows: Rows, batches: Sequence[range], execution: Execution
) -> Iterator[tuple[list[int], list[int], Batch | None]]:
    read, pinned = _Batches(network, rows, batches, execution.on_bad_rows), execution.device.startswith("cuda")
    loader = (read[i] for i in range(len(read)))
    if execution.workers or pinned:
        loader = torch.utils.data.DataLoader(
            read, batch_size=None, collate_fn=_as_it_is, num_workers=execution.workers, pin_memory=pinned
        )
    for loaded in loader:
        if isinstance(loaded, InputError):
            raise loaded
        yield loaded


def _as_it_is(loaded: object) -> object:
    return loaded


def _as_executed(model: nn.Module, execution: Execution) -> nn.Module:
    """The network, or a copy of it in another precision or layout: the user's stays as it is."""
    if execution.dtype == "float32" and not execution.channels_last:
        return model
    model = copy.deepcopy(model)
    if execution.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return model.to(torch.bfloat16) if execution.dtype == "bfloat16" else model


def _to_execution(batch: Batch, execution: Execution) -> Batch:
    """The batch on the device, its images in the precision and layout of the network."""

    def placed(value: torch.Tensor) -> torch.Tensor:
        value = value.to(execution.device, non_blocking=True)
        if execution.dtype == "bfloat16" and value.is_floating_point():
            value = value.to(torch.bfloat16)
        if execution.channels_last and value.ndim == 4:
            value = value.contiguous(memory_format=torch.channels_last)
        return value

    return placed(batch) if isinstance(batch, torch.Tensor) else {key: placed(value) for key, value in batch.items()}


def load_batch(
    prepare: Callable[[list], Batch], rows: Rows, wanted: Sequence[int], *, on_bad_rows: OnBadRows
) -> tuple[list[int], Batch | None]:
    """Reads and prepares some rows: the indices of those that could be, and their batch (None for no row).

    Raises:
        InputError: a row that cannot be read or prepared, unless it is to be skipped.
    """
    kept, inputs = [], []
    for index in wanted:
        try:
            inputs.append(rows[index])
            kept.append(index)
        except Exception as error:  # a foreign file may break its decoder in any way
            _refuse(rows, index, error, on_bad_rows)
    if not inputs:
        return [], None
    try:
        return kept, prepare(inputs)
    except Exception as error:  # which row it is shows when each is prepared alone
        pairs = zip(kept, inputs, strict=True)
        fine = [(i, value) for i, value in pairs if _is_preparable(prepare, rows, i, value, on_bad_rows)]
        if len(fine) == len(kept):
            raise InputError(
                f"rows {kept[0]} to {kept[-1]} of {rows.name} cannot be put into one batch: {in_one_line(error)}; "
                f"let prepare bring them to one shape, or use batch_size=1"
            ) from error
    return ([index for index, _ in fine], prepare([value for _, value in fine])) if fine else ([], None)


def move(model: nn.Module, device: str) -> None:
    """Moves a network to a device.

    Raises:
        InputError: a device that does not exist here.
    """
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise InputError(
            f"device {device!r} cannot be used here: {in_one_line(error)}; use 'cpu', or 'cuda' where there is one"
        ) from error


def to_device(batch: Batch, device: str) -> Batch:
    """The batch with its tensors on a device."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    return {key: value.to(device) for key, value in batch.items()}


def _is_preparable(
    prepare: Callable[[list], Batch], rows: Rows, index: int, value: object, on_bad_rows: OnBadRows
) -> bool:
    try:
        prepare([value])
    except Exception as error:
        _refuse(rows, index, error, on_bad_rows)
        return False
    return True


def _refuse(rows: Rows, index: int, error: Exception, on_bad_rows: OnBadRows) -> None:
    if on_bad_rows == "raise":
        raise InputError(
            f"row {index} of {rows.name} cannot be read: {in_one_line(error)}; "
            f"mend it, or leave such rows out with on_bad_rows='skip' (--on-bad-rows skip)"
        ) from error


def _finite_rows(
    values: np.ndarray, kept: Sequence[int], taps: Sequence[Tap], rows: Rows, on_bad_rows: OnBadRows
) -> np.ndarray:
    """(rows,) bool: which rows have finite activations only."""
    finite = np.isfinite(values).all(axis=1)
    if not finite.all() and on_bad_rows == "raise":
        row = int(np.flatnonzero(~finite)[0])
        column = int(np.flatnonzero(~np.isfinite(values[row]))[0])
        stops = np.cumsum([tap.n_features for tap in taps])
        tap = taps[int(np.searchsorted(stops, column, side="right"))]
        raise InputError(
            f"row {kept[row]} of {rows.name} gives NaN or infinite activations, first in layer {tap.name!r}; "
            f"expected finite numbers: check the row and the network's dtype, or leave such rows out with "
            f"on_bad_rows='skip' (--on-bad-rows skip)"
        )
    return finite
