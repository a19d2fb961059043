"""What an embedding was made of, as digests: two passes with equal fingerprints give equal rows."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from hf_tl.data import Samples
from hf_tl.embedding.pooling import POOLINGS, Pooling
from hf_tl.plugins import plugin_origin
from hf_tl.trace import Batch


if TYPE_CHECKING:
    from datasets import Dataset

ROWS_AT_ONCE = 1000
LOOKED_AT = 64  # samples of a lazy sequence: reading one may mean decoding an image
WHOLE_FILE = 2**20  # bytes up to which a file is read as a whole


def fingerprint_weights(model: nn.Module) -> str:
    """Digest of a network: its printed structure and every parameter and buffer that it saves."""
    digest = hashlib.sha256(str(model).encode())
    for name, value in sorted(model.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(name.encode())
            _add(digest, value)
    return digest.hexdigest()


def fingerprint_batch(batch: Batch) -> str:
    """Digest of a prepared batch, and so of the preprocessing that made it from known samples."""
    digest = hashlib.sha256()
    _add(digest, batch)
    return digest.hexdigest()


def fingerprint_samples(samples: Samples) -> str:
    """Digest of a dataset and its order: the number of samples, all their labels, and their inputs.

    A `datasets.Dataset` is hashed as it is stored, undecoded, and the files that it names with it; so is every item
    of a list. Of any other sequence 64 evenly spaced samples are hashed, the first and the last among them. Of a file
    of more than 1 MiB the size, the first and the last half MiB are.
    """
    from datasets import Dataset

    digest = hashlib.sha256(str(len(samples)).encode())
    if samples.labels is not None:
        digest.update(json.dumps(samples.labels.tolist()).encode())
    if isinstance(samples.dataset, Dataset):
        _add_table(digest, samples.dataset, samples.input_column)
        return digest.hexdigest()
    count = len(samples) if isinstance(samples.dataset, (list, tuple)) else min(LOOKED_AT, len(samples))
    for index in np.unique(np.linspace(0, len(samples) - 1, count).astype(int)).tolist():
        try:
            _add(digest, samples[index])
        except Exception as error:  # a sample that cannot be read is known by how it fails
            digest.update(type(error).__name__.encode())
    return digest.hexdigest()


def fingerprint_pooling(pool: str | Pooling) -> str:
    """The name of a pooling of hf_tl; of any other a digest of its code, its defaults and the values that it holds.

    What its code calls by a global name is not covered; a pass that resumes sees a change in the rows it reads again.
    """
    if isinstance(pool, str):
        return pool if pool in POOLINGS else plugin_origin("pooling", pool)
    digest = hashlib.sha256()
    _add_callable(digest, pool)
    return digest.hexdigest()


def fingerprint_json(value: object) -> str:
    """Digest of something that JSON can hold."""
    return fingerprint_bytes(json.dumps(value, sort_keys=True).encode())


def fingerprint_bytes(content: bytes) -> str:
    """Digest of some bytes."""
    return hashlib.sha256(content).hexdigest()


def _add_table(digest: hashlib._Hash, dataset: Dataset, column: str) -> None:
    import pyarrow as pa

    stored = dataset.select_columns(column).with_format("arrow")
    for start in range(0, len(stored), ROWS_AT_ONCE):
        table = stored[start : start + ROWS_AT_ONCE].combine_chunks()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema.remove_metadata()) as writer:
            writer.write_table(table.replace_schema_metadata(None))
        digest.update(sink.getvalue())
        kind = table.schema.field(column).type
        if pa.types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind}:  # images and recordings
            for value in table.column(column).combine_chunks().flatten()[kind.get_field_index("path")].to_pylist():
                _add_file(digest, value)


def _add_file(digest: hashlib._Hash, path: str | None) -> None:
    """Adds what a file holds, if there is one of that name."""
    if not path or not os.path.isfile(path):
        return
    with open(path, "rb") as file:
        size = os.path.getsize(path)
        digest.update(str(size).encode())
        digest.update(file.read(WHOLE_FILE if size <= WHOLE_FILE else WHOLE_FILE // 2))
        if size > WHOLE_FILE:
            file.seek(size - WHOLE_FILE // 2)
            digest.update(file.read())


def _add_callable(digest: hashlib._Hash, value: Callable) -> None:
    if isinstance(value, partial):
        _add_callable(digest, value.func)
        _add(digest, [list(value.args), value.keywords])
    elif isinstance(value, FunctionType):
        digest.update(f"{value.__module__}.{value.__qualname__}".encode())
        _add_code(digest, value.__code__)
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        _add(digest, [list(value.__defaults__ or ()), value.__kwdefaults__ or {}, cells])
    else:
        digest.update(f"{type(value).__module__}.{type(value).__qualname__}".encode())
        _add(digest, vars(value))
        call = type(value).__call__
        if isinstance(call, FunctionType):
            _add_callable(digest, call)


def _add_code(digest: hashlib._Hash, code: CodeType) -> None:
    digest.update(code.co_code + repr((code.co_names, code.co_varnames)).encode())
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _add_code(digest, constant)
        else:  # a set has no order
            digest.update(repr(sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant).encode())


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
    elif isinstance(value, (str, bytes, int, float, bool, type(None), Path)):
        digest.update(f"{type(value).__name__}:".encode())
        digest.update(value if isinstance(value, bytes) else str(value).encode())
        if isinstance(value, (str, Path)):
            _add_file(digest, str(value))
    elif isinstance(value, Sequence):
        digest.update(str(len(value)).encode())
        for item in value:
            _add(digest, item)
    elif isinstance(value, (FunctionType, partial)):
        _add_callable(digest, value)
    else:  # an image, or whatever numpy can look into
        array = np.asarray(value)
        if array.dtype == object:
            digest.update(type(value).__name__.encode())
        else:
            _add(digest, array)
