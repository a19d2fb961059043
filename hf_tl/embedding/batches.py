"""Batches read and prepared, here or in worker processes; a row that cannot be is named, or skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from hf_tl.data import Samples
from hf_tl.embedding.execution import Execution, OnBadRows
from hf_tl.errors import InputError, in_one_line
from hf_tl.models import Network
from hf_tl.trace import Batch


def loaded_batches(
    network: Network, rows: Samples, batches: Sequence[range], execution: Execution
) -> Iterator[tuple[list[int], list[int], Batch | None]]:
    """For every batch the indices that were wanted, those that could be read, and what the network takes of them.

    Raises:
        InputError: a row that cannot be read or prepared, unless such rows are to be skipped.
    """
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


def load_batch(
    prepare: Callable[[list], Batch], rows: Samples, wanted: Sequence[int], *, on_bad_rows: OnBadRows
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


class _Batches(torch.utils.data.Dataset):
    """Reads and prepares batches, in a worker process or here; an error becomes a value, to keep its sentence."""

    def __init__(self, network: Network, rows: Samples, batches: Sequence[range], on_bad_rows: OnBadRows):
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


def _as_it_is(loaded: object) -> object:
    return loaded


def _is_preparable(
    prepare: Callable[[list], Batch], rows: Samples, index: int, value: object, on_bad_rows: OnBadRows
) -> bool:
    try:
        prepare([value])
    except Exception as error:
        _refuse(rows, index, error, on_bad_rows)
        return False
    return True


def _refuse(rows: Samples, index: int, error: Exception, on_bad_rows: OnBadRows) -> None:
    if on_bad_rows == "raise":
        raise InputError(
            f"row {index} of {rows.name} cannot be read: {in_one_line(error)}; "
            f"mend it, or leave such rows out with on_bad_rows='skip' (--on-bad-rows skip)"
        ) from error
