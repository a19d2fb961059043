"""Parquet shards: a column a layer, ternary values packed in two bits, what they mean in the schema's metadata.

pandas, DuckDB, Ray Data and `datasets.load_dataset("parquet", ...)` read them; a column of packed values is a
`fixed_size_binary` of four values a byte, see `Codec`. Which process wrote which samples into which file, and in which
order, does not matter: a column "index" says which sample of the dataset each row is.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hf_tl.embedding.stored_array import Codec, LazyArray
from hf_tl.errors import InputError, in_one_line


if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from fsspec import AbstractFileSystem


ShardCodec = Literal["2bit", "int8", "float16", "float32"]
METADATA = b"hf_tl"
FORMAT = "hf_tl shards 1"
INDEX, LABEL = "index", "label"
ROWS_PER_GROUP = 1024
WRITE = {"compression": "zstd", "write_page_checksum": True}  # as pyarrow.parquet takes it
OPEN_GROUPS = 4  # row groups that stay decompressed
OPEN_FILES = 16
AT_ONCE = 16  # files whose heads are read at a time


def shard_schema(about: Mapping[str, Any], *, codec: ShardCodec, label: pa.DataType | None) -> pa.Schema:
    """The schema of every shard of an embedding.

    Args:
        about: what JSON can hold of the embedding, "layers" with "name", "start" and "stop" of each among it.
        codec: how values stand in the file.
        label: the type of the column of labels; None where there is none.

    Raises:
        InputError: a layer called "index" or "label", or an unknown codec.
    """
    import pyarrow as pa

    types = {"2bit": None, "int8": pa.int8(), "float16": pa.float16(), "float32": pa.float32()}
    if codec not in types:
        raise InputError(f"codec should be '2bit', 'int8', 'float16' or 'float32', got {codec!r}")
    fields = [pa.field(INDEX, pa.int64())]
    if label is not None:
        fields.append(pa.field(LABEL, label))
    for layer in about["layers"]:
        width = layer["stop"] - layer["start"]
        item = types[codec]
        kind = pa.binary(Codec("2bit", width).n_bytes) if item is None else pa.list_(item, width)
        fields.append(pa.field(layer["name"], kind, nullable=False))
    names = [f.name for f in fields]
    if len(set(names)) < len(names):
        raise InputError("a layer is called 'index' or 'label', as columns of a shard are; rename the module")
    metadata = {METADATA: json.dumps({"format": FORMAT, "codec": codec, **about}).encode()}
    return pa.schema(fields, metadata=metadata)


def shard_batch(
    schema: pa.Schema, values: np.ndarray, indices: np.ndarray, labels: Sequence | None = None
) -> pa.RecordBatch:
    """Rows of a shard: values (n, n_features), indices (n,), labels (n,) where the schema has them."""
    import pyarrow as pa

    about = json.loads(schema.metadata[METADATA])
    arrays = [pa.array(np.asarray(indices, np.int64))]
    if LABEL in schema.names:
        arrays.append(pa.array(labels, schema.field(LABEL).type))
    for layer in about["layers"]:
        part, kind = values[:, layer["start"] : layer["stop"]], schema.field(layer["name"]).type
        if about["codec"] == "2bit":
            packed = np.ascontiguousarray(Codec("2bit", part.shape[1]).encode(part))
            arrays.append(pa.FixedSizeBinaryArray.from_buffers(kind, len(part), [None, pa.py_buffer(packed)]))
        else:
            flat = np.ascontiguousarray(part, kind.value_type.to_pandas_dtype()).reshape(-1)
            arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(flat), type=kind))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def label_type(labels: np.ndarray | None) -> pa.DataType | None:
    """The type of the column of labels: integers, strings, numbers, or 0 and 1 of several classes each."""
    import pyarrow as pa

    if labels is None:
        return None
    if labels.ndim == 2:
        return pa.list_(pa.int8(), labels.shape[1])
    return {"U": pa.string(), "f": pa.float64()}.get(labels.dtype.kind, pa.int64())


class Shards:
    """The Parquet files of one embedding, in a folder or behind an fsspec URL such as "s3://bucket/flowers".

    Attributes:
        about: what their metadata says of the embedding.
        codec: how values stand in them.
        indices: (rows,) the column "index" of all files, one after the other.
        labels: (rows,) the column "label", or None.

    Raises:
        InputError: no such files, files that are damaged, that do not come from here, or that do not fit together.
    """

    def __init__(self, place: str | Path):
        self._place = str(place)
        self._fs, self._paths = self._find()
        with ThreadPoolExecutor(AT_ONCE) as pool:  # a folder in a bucket answers late, but to all at once
            heads = list(pool.map(self._head, self._paths))
        self.about, schema = heads[0].about, heads[0].schema
        for name, head in zip(self._paths, heads, strict=True):
            if head.about != self.about or not head.schema.equals(schema):
                raise InputError(
                    f"{name} is of another embedding than {self._paths[0]}; keep each in a folder of its own"
                )
        self.codec: ShardCodec = self.about["codec"]
        self._groups = [(i, j) for i, head in enumerate(heads) for j in range(len(head.groups))]
        self._starts = np.cumsum([0, *(rows for head in heads for rows in head.groups)])
        self._files: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._tables: OrderedDict[tuple[int, tuple[str, ...]], pa.Table] = OrderedDict()
        self.indices = np.concatenate([head.indices for head in heads])
        labels = [head.labels for head in heads if head.labels is not None]
        self.labels = np.concatenate(labels) if labels else None

    def order(self) -> np.ndarray:
        """(rows,) the rows in the order of the dataset.

        Raises:
            InputError: a sample that is there twice.
        """
        order = np.argsort(self.indices, kind="stable")
        twice = np.flatnonzero(np.diff(self.indices[order]) == 0)
        if len(twice):
            raise InputError(
                f"sample {self.indices[order[twice[0]]]} is in the shards of {self._place!r} twice: there may be "
                f"those of two runs in one folder; keep each run in a folder of its own"
            )
        return order

    def read(self, rows: np.ndarray, spans: Sequence[tuple[int, int]], out: np.ndarray) -> None:
        """Puts the columns `spans` of some rows into `out`, (len(rows), columns)."""
        layers = [
            (layer, max(a, layer["start"]) - layer["start"], min(b, layer["stop"]) - layer["start"])
            for a, b in spans
            for layer in self.about["layers"]
            if max(a, layer["start"]) < min(b, layer["stop"])
        ]
        names = tuple(dict.fromkeys(layer["name"] for layer, _, _ in layers))
        group_of = np.searchsorted(self._starts, rows, side="right") - 1
        for group in np.unique(group_of):
            chosen = np.flatnonzero(group_of == group)
            table = self._table(int(group), names)
            local, column = rows[chosen] - self._starts[group], 0
            for layer, a, b in layers:
                out[chosen, column : column + b - a] = self._decoded(table[layer["name"]], local, layer, a, b)
                column += b - a

    def _decoded(self, column: pa.ChunkedArray, rows: np.ndarray, layer: Mapping, a: int, b: int) -> np.ndarray:
        array, width = column.combine_chunks(), layer["stop"] - layer["start"]
        if self.codec != "2bit":
            return array.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)[rows, a:b]
        codec = Codec("2bit", width)
        stored = np.frombuffer(array.buffers()[1], np.uint8).reshape(-1, codec.n_bytes)
        return codec.decode(stored[array.offset :][rows], a, b)

    def _find(self) -> tuple[AbstractFileSystem, list[str]]:
        from fsspec.core import url_to_fs

        try:
            fs, path = url_to_fs(self._place)
            paths = sorted(fs.glob(f"{path.rstrip('/')}/*.parquet"))
        except (OSError, ValueError, ImportError) as error:
            raise InputError(f"{self._place!r} cannot be read: {in_one_line(error)}") from error
        if not paths:
            raise InputError(f"{self._place!r} holds no Parquet files")
        return fs, paths

    def _head(self, name: str) -> _Head:
        import pyarrow as pa

        try:
            file = self._open(name)
            about, schema = _read_about(file.schema_arrow), file.schema_arrow
            groups = tuple(file.metadata.row_group(j).num_rows for j in range(file.metadata.num_row_groups))
            head = file.read(columns=[INDEX, *([LABEL] if LABEL in schema.names else [])], use_threads=False)
            file.close(force=True)
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{name} is no shard of an embedding, or damaged: {in_one_line(error)}; make it again"
            ) from error
        labels = _labels_of(head[LABEL]) if LABEL in schema.names else None
        return _Head(about, schema, groups, head[INDEX].to_numpy(), labels)

    def _open(self, name: str) -> pq.ParquetFile:
        import pyarrow.parquet as pq

        exact = self._fs.open(name, "rb", cache_type="none")  # fsspec reads megabytes ahead of each kilobyte otherwise
        return pq.ParquetFile(exact, page_checksum_verification=True)

    def _file(self, number: int) -> pq.ParquetFile:
        if number not in self._files:
            self._files[number] = self._open(self._paths[number])
        self._files.move_to_end(number)
        while len(self._files) > OPEN_FILES:
            self._files.popitem(last=False)[1].close(force=True)
        return self._files[number]

    def _table(self, group: int, names: tuple[str, ...]) -> pa.Table:
        import pyarrow as pa

        key = (group, names)
        if key not in self._tables:
            i, j = self._groups[group]
            try:
                self._tables[key] = self._file(i).read_row_group(j, columns=list(names))
            except (pa.ArrowException, OSError, ValueError) as error:
                raise InputError(
                    f"{self._paths[i]} is damaged, or was written anew: {in_one_line(error)}; make it again"
                ) from error
        self._tables.move_to_end(key)
        while len(self._tables) > OPEN_GROUPS:
            self._tables.popitem(last=False)
        return self._tables[key]


@dataclass(frozen=True)
class _Head:
    """What is read of a shard when an embedding is loaded.

    Attributes:
        about: what its metadata says of the embedding.
        schema: of the file.
        groups: rows of each row group.
        indices: (rows,) the column "index".
        labels: (rows,) or (rows, classes), the column "label"; None where there is none.
    """

    about: Mapping[str, Any]
    schema: pa.Schema
    groups: tuple[int, ...]
    indices: np.ndarray
    labels: np.ndarray | None


@dataclass(frozen=True, eq=False)
class ShardedArray(LazyArray):
    """Some rows and columns of Parquet shards, read when they are asked for.

    Attributes:
        shards: the files.
        positions: (rows,) which of their rows are the rows of the array.
        spans: the columns of the embedding, as (start, stop), that are the columns of the array.
    """

    shards: Shards
    positions: np.ndarray = field(repr=False)
    spans: tuple[tuple[int, int], ...]

    @property
    def dtype(self) -> np.dtype:
        """Of what is read: float32 or int8."""
        return np.dtype(np.int8 if self.shards.codec in ("2bit", "int8") else np.float32)

    def _read(self, positions: np.ndarray, spans: list[tuple[int, int]]) -> np.ndarray:
        out = np.empty((len(positions), sum(b - a for a, b in spans)), self.dtype)
        if out.size:
            self.shards.read(positions, spans, out)
        return out


def _labels_of(column: pa.ChunkedArray) -> np.ndarray:
    """(rows,), or (rows, classes) of several classes each."""
    import pyarrow as pa

    if not pa.types.is_fixed_size_list(column.type):
        return column.to_numpy()
    return column.combine_chunks().flatten().to_numpy().reshape(-1, column.type.list_size)


def _read_about(schema: pa.Schema) -> dict[str, Any]:
    """What a schema says of the embedding, checked as far as reading relies on it."""
    metadata = schema.metadata or {}
    if METADATA not in metadata:
        raise ValueError("its schema does not say what its columns are")
    about = json.loads(metadata[METADATA])
    if about["format"] != FORMAT:
        raise ValueError(f"format should be {FORMAT!r}, got {about['format']!r}")
    label = schema.field(LABEL).type if LABEL in schema.names else None
    stop = 0
    for layer in about["layers"]:
        if type(layer["start"]) is not int or type(layer["stop"]) is not int or layer["start"] != stop:
            raise ValueError(f"the columns of layer {layer['name']!r} do not follow those of the layer before it")
        if layer["stop"] <= stop:
            raise ValueError(f"layer {layer['name']!r} has no columns")
        stop = layer["stop"]
    own = {key: value for key, value in about.items() if key not in ("format", "codec")}
    if not shard_schema(own, codec=about["codec"], label=label).equals(schema):
        raise ValueError("its columns are not those that its schema's metadata tells")
    return about
