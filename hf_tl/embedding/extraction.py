"""Rows through a network, a batch at a time: raw activations with their row numbers, bad rows named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from hf_tl.data import Samples
from hf_tl.embedding.batches import loaded_batches
from hf_tl.embedding.execution import Execution, OnBadRows
from hf_tl.embedding.reader import TapReader
from hf_tl.embedding.tap import Tap
from hf_tl.embedding.taps import n_rows
from hf_tl.errors import InputError, in_one_line
from hf_tl.models import Network
from hf_tl.trace import Batch


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
    rows: Samples,
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
    model = execution.network(network.model)
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
        for wanted, kept, batch in loaded_batches(network, rows, batches, execution):
            used, values = np.asarray(kept, np.int64), np.empty((0, read.n_features), np.float32)
            if batch is not None:
                values = landing.read(read, execution.placed(batch))
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


def _finite_rows(
    values: np.ndarray, kept: Sequence[int], taps: Sequence[Tap], rows: Samples, on_bad_rows: OnBadRows
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
