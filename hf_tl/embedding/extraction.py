"""Rows through a network, a batch at a time: raw activations with their row numbers, bad rows named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from hf_tl.data import Rows
from hf_tl.embedding.taps import Tap, TapReader
from hf_tl.errors import InputError, in_one_line
from hf_tl.models import Network
from hf_tl.trace import Batch


OnBadRows = Literal["raise", "skip"]


@dataclass(frozen=True)
class Block:
    """Raw activations of some rows.

    Attributes:
        rows: (rows,) their indices in the dataset, ascending.
        values: (rows, n_features) float32.
    """

    rows: np.ndarray
    values: np.ndarray


def extract(
    network: Network,
    rows: Rows,
    taps: Sequence[Tap],
    *,
    batch_size: int,
    device: str = "cpu",
    on_bad_rows: OnBadRows = "raise",
    progress: bool = True,
) -> Iterator[Block]:
    """One pass over the rows, one block of raw activations a batch.

    Args:
        network: what the rows go through; it is moved to `device`.
        rows: the raw inputs.
        taps: what is read.
        batch_size: rows a forward pass.
        device: where the network runs.
        on_bad_rows: whether a row that cannot be read, or whose activations are not finite, ends the pass or is
            left out.
        progress: whether a progress bar is drawn on standard error.

    Raises:
        InputError: no rows; a bad row, named by its index, before its block is handed on.
    """
    if on_bad_rows not in ("raise", "skip"):
        raise InputError(f"on_bad_rows should be 'raise' or 'skip', got {on_bad_rows!r}")
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    if len(rows) == 0:
        raise InputError(f"{rows.name} has no rows; there is nothing to embed")
    move(network.model, device)
    skipped = 0
    with (
        TapReader(network.model, taps) as read,
        tqdm(total=len(rows), desc=f"embedding {rows.name}", unit="row", disable=not progress) as bar,
    ):
        for start in range(0, len(rows), batch_size):
            wanted = range(start, min(start + batch_size, len(rows)))
            kept, batch = load_batch(network, rows, wanted, on_bad_rows=on_bad_rows)
            if batch is not None:
                values = read(to_device(batch, device)).float().cpu().numpy()
                finite = _finite_rows(values, kept, taps, rows, on_bad_rows)
                yield Block(np.asarray(kept)[finite], values[finite])
                skipped += len(wanted) - int(finite.sum())
            else:
                skipped += len(wanted)
            if skipped:
                bar.set_postfix(skipped=skipped)
            bar.update(len(wanted))


def load_batch(
    network: Network, rows: Rows, wanted: Sequence[int], *, on_bad_rows: OnBadRows
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
        return kept, network.prepare(inputs)
    except Exception as error:  # which row it is shows when each is prepared alone
        pairs = zip(kept, inputs, strict=True)
        fine = [(i, value) for i, value in pairs if _is_preparable(network, rows, i, value, on_bad_rows)]
        if len(fine) == len(kept):
            raise InputError(
                f"rows {kept[0]} to {kept[-1]} of {rows.name} cannot be put into one batch: {in_one_line(error)}; "
                f"let prepare bring them to one shape, or use batch_size=1"
            ) from error
    return ([index for index, _ in fine], network.prepare([value for _, value in fine])) if fine else ([], None)


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


def _is_preparable(network: Network, rows: Rows, index: int, value: object, on_bad_rows: OnBadRows) -> bool:
    try:
        network.prepare([value])
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
