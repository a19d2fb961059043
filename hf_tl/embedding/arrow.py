"""An embedding as a `datasets.Dataset`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np


if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, Features


class Featured(Protocol):
    """An `Embedding`, as far as a dataset needs it."""

    rows: np.ndarray
    labels: np.ndarray | None
    class_names: tuple[str, ...] | None

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, n_features)."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """Of the values."""
        ...

    @property
    def blocks(self) -> Iterator[np.ndarray]:
        """The values, some rows at a time."""
        ...


def to_dataset(embedding: Featured, path: str | Path | None = None) -> Dataset:
    """A dataset with the columns "row", "embedding" (lists of one length) and, where there are labels, "label".

    Args:
        embedding: what becomes a dataset.
        path: an Arrow file to write and to map into memory, block by block; without it the table is in memory.
    """
    import pyarrow as pa
    from datasets import Dataset

    features = _features(embedding)
    schema = features.arrow_schema
    if path is None:
        return Dataset(pa.Table.from_batches(_batches(embedding, schema), schema))
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for batch in _batches(embedding, schema):
            writer.write_batch(batch)
    return Dataset.from_file(str(path))


def _features(embedding: Featured) -> Features:
    from datasets import ClassLabel, Features, List, Value

    columns = {
        "row": Value("int64"),
        "embedding": List(Value(str(embedding.dtype)), length=embedding.shape[1]),
    }
    if embedding.labels is not None:
        if embedding.class_names is not None:
            columns["label"] = ClassLabel(names=list(embedding.class_names))
        else:
            columns["label"] = Value("string" if embedding.labels.dtype.kind == "U" else "int64")
    return Features(columns)


def _batches(embedding: Featured, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    start = 0
    for block in embedding.blocks:
        rows = slice(start, start := start + len(block))
        flat = pa.array(np.ascontiguousarray(block).reshape(-1))
        arrays = [pa.array(embedding.rows[rows]), pa.FixedSizeListArray.from_arrays(flat, embedding.shape[1])]
        if embedding.labels is not None:
            arrays.append(pa.array(embedding.labels[rows].tolist(), schema.field("label").type))
        columns = [array.cast(field.type) for array, field in zip(arrays, schema, strict=True)]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)
