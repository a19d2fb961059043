"""What an embedding was made of, as digests: two passes with equal fingerprints give equal rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from hf_tl.data import Samples
from hf_tl.trace import Batch


if TYPE_CHECKING:
    from datasets import Dataset

ROWS_AT_ONCE = 1000
SAMPLE = 64  # rows of a plain sequence that are looked at: reading one may mean decoding an image


def fingerprint_weights(model: nn.Module) -> str:
    """Digest of a network: its printed structure and every parameter and buffer that it saves."""
    digest = hashlib.sha256(str(model).encode())
    for name, value in sorted(model.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(name.encode())
            _add(digest, value)
    return digest.hexdigest()


def fingerprint_batch(batch: Batch) -> str:
    """Digest of a prepared batch, and so of the preprocessing that made it from known rows."""
    digest = hashlib.sha256()
    _add(digest, batch)
    return digest.hexdigest()


def fingerprint_rows(rows: Samples) -> str:
    """Digest of a dataset and its order: the number of rows, all their labels, and their inputs.

    A `datasets.Dataset` is hashed row by row as it is stored, undecoded: for images that are files, their names.
    Of any other sequence 64 evenly spaced rows are hashed, the first and the last among them.
    """
    from datasets import Dataset

    digest = hashlib.sha256(str(len(rows)).encode())
    if rows.labels is not None:
        digest.update(json.dumps(rows.labels.tolist()).encode())
    if isinstance(rows.dataset, Dataset):
        _add_table(digest, rows.dataset, rows.input_column)
    else:
        for index in np.unique(np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(int)).tolist():
            try:
                _add(digest, rows[index])
            except Exception as error:  # a row that cannot be read is known by how it fails
                digest.update(type(error).__name__.encode())
    return digest.hexdigest()


def fingerprint_json(value: object) -> str:
    """Digest of something that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _add_table(digest: hashlib._Hash, dataset: Dataset, column: str) -> None:
    import pyarrow as pa

    stored = dataset.select_columns(column).with_format("arrow")
    for start in range(0, len(stored), ROWS_AT_ONCE):
        table = stored[start : start + ROWS_AT_ONCE].combine_chunks()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema.remove_metadata()) as writer:
            writer.write_table(table.replace_schema_metadata(None))
        digest.update(sink.getvalue())


def _add(digest: hashlib._Hash, value: object) -> None:
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        plain = value.detach().cpu().contiguous().reshape(-1)
        digest.update(plain.view(torch.uint8).numpy().data if plain.numel() else b"")
    elif isinstance(value, np.ndarray):
        digest.update(f"{value.dtype}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Mapping):
        for key in sorted(value):
            digest.update(str(key).encode())
            _add(digest, value[key])
    elif isinstance(value, (str, bytes, int, float, bool, type(None))):
        digest.update(f"{type(value).__name__}:".encode())
        digest.update(value if isinstance(value, bytes) else str(value).encode())
    elif isinstance(value, Sequence):
        digest.update(str(len(value)).encode())
        for item in value:
            _add(digest, item)
    else:  # an image, or whatever numpy can look into
        array = np.asarray(value)
        if array.dtype == object:
            digest.update(type(value).__name__.encode())
        else:
            _add(digest, array)
