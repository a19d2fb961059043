"""What holds samples: tables of pandas, polars, pyarrow and datasets, and sequences of raw inputs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence, Set, Sized
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from hf_tl.errors import InputError
from hf_tl.inputs import MOST_CHANNELS
from hf_tl.labels import repeats
from hf_tl.table import in_words


if TYPE_CHECKING:
    from datasets import Dataset


def as_table(data: Any) -> Dataset | None:
    """What holds columns as a `Dataset`; None for anything else."""
    import pyarrow as pa
    from datasets import Dataset

    if isinstance(data, Dataset):
        return data
    if isinstance(data, pa.Table):
        return Dataset(data)
    if type(data).__name__ != "DataFrame":
        return None
    library = type(data).__module__.partition(".")[0]
    try:
        if library == "polars":
            return Dataset.from_polars(data)
        return Dataset.from_pandas(data, preserve_index=False) if library == "pandas" else None
    except pa.ArrowException:  # of objects, such as images
        return Dataset.from_dict({str(column): list(data[column]) for column in data.columns})


def is_row(item: object) -> bool:
    """Whether a mapping is the row of a table, not a file or a recording."""
    return isinstance(item, Mapping) and "array" not in item and not set(item) <= {"bytes", "path"}


def items_of(data: object, modality: str) -> list:
    """The raw inputs that a container holds, in its order.

    Raises:
        InputError: it has no order, or what it is iterated over in are not samples.
    """
    import pyarrow as pa
    from datasets import Dataset, IterableDataset
    from torch.utils.data import DataLoader
    from torch.utils.data import Dataset as TorchDataset

    kind = type(data).__name__
    if isinstance(data, IterableDataset):
        raise InputError(
            "a streamed dataset has no length and no order of access; give Dataset.from_list(list(stream)), "
            "or a part of it: list(stream.take(1000))"
        )
    if isinstance(data, Mapping):
        split = next((name for name, part in data.items() if isinstance(part, (Dataset, IterableDataset))), None)
        wanted = "Dataset.from_dict(columns)" if split is None else f"one split, data[{split!r}]"
        raise InputError(
            f"expected a sequence of raw inputs or a Dataset, got {kind} of "
            f"{sorted(map(str, data))[:5]}; give {wanted}"
        )
    if isinstance(data, DataLoader):
        raise InputError("expected a sequence of raw inputs, got a DataLoader, which gives batches; give its dataset")
    if isinstance(data, Set):
        raise InputError(f"expected a sequence of raw inputs, got a {kind}, which has no order; give a list")
    if isinstance(data, (pa.Array, pa.ChunkedArray)):
        return data.to_pylist()
    if isinstance(data, Tensor) or (isinstance(data, np.ndarray) and data.dtype != object):
        _refuse_one_input(tuple(data.shape), modality)
    if isinstance(data, (str, os.PathLike)):
        raise InputError(
            f"expected a sequence of raw inputs, got one {kind}; put it into a list, or give what load_task finds "
            f"where it names a dataset"
        )
    if isinstance(data, TorchDataset) and isinstance(data, Sized):  # which need not end an iteration
        items = [data[index] for index in range(len(data))]
    elif isinstance(data, bytes) or not isinstance(data, Iterable) or (isinstance(data, np.ndarray) and not data.ndim):
        raise InputError(f"expected a sequence of raw inputs, got one {kind}; put it into a list")
    else:
        items = list(data)
    _check_pairs(items, modality)
    return items


def are_labelled(items: Sequence, modality: str) -> bool:
    """Whether items are pairs of a text or image and the number of its class, as the datasets of torch give them."""
    return (
        modality in ("text", "image")
        and bool(items)
        and all(isinstance(item, (tuple, list)) and len(item) == 2 and _is_number(item[1]) for item in items)
    )


def array_columns(rows: Sequence[Mapping]) -> list[str]:
    """The columns in which each of some rows has an array or tensor, of one axis or more."""
    return [key for key in rows[0] if all(_is_array(row.get(key)) for row in rows)]


def _is_array(value: object) -> bool:
    return isinstance(value, (np.ndarray, Tensor)) and value.ndim > 0


def _is_number(value: object) -> bool:
    """Whether something is one whole number."""
    if isinstance(value, Tensor):
        return value.ndim == 0 and not value.is_floating_point()
    return isinstance(value, (int, np.integer))


def _refuse_one_input(shape: tuple[int, ...], modality: str) -> None:
    """Raises an InputError for an array that may be one image or recording, not several."""
    one_image = len(shape) == 2 or (len(shape) == 3 and bool({1, 3, 4} & {shape[0], shape[2]}))
    stereo = len(shape) == 2 and (shape[0] == 2 or shape[1] <= MOST_CHANNELS)
    if (modality == "image" and one_image) or (modality == "audio" and (len(shape) == 1 or stereo)):
        raise InputError(
            f"expected a sequence of raw inputs, got an array of shape {shape}, which may be a single one; put it "
            f"into a list, or give list(array) where its first axis is the samples'"
        )


def _check_pairs(items: list, modality: str) -> None:
    """Raises an InputError for texts with their classes, which are no pairs of texts."""
    if modality != "text" or not all(isinstance(item, (tuple, list)) and len(item) == 2 for item in items):
        return
    seconds = [second for _, second in items]
    if not all(isinstance(second, str) for second in seconds):
        return
    words = len(set(seconds)) < len(seconds) and not any(" " in second.strip() for second in seconds)
    if words or repeats(seconds):
        raise InputError(
            f"the second texts of these {len(items)} pairs come again and again, as classes do: "
            f"{in_words(sorted(set(seconds)))}; give the texts alone, or Dataset.from_dict with columns 'text' and "
            f"'label', or 'text1' and 'text2' where both are read"
        )
