"""The embedding of samples: a row of features each, its columns by layer, its labels; in memory or on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from hf_tl.embedding.shards import (
    ROWS_PER_GROUP,
    WRITE,
    ShardCodec,
    ShardedArray,
    Shards,
    label_type,
    shard_batch,
    shard_schema,
)
from hf_tl.embedding.store import INDEX, MANIFEST, ROWS_AT_ONCE, Store, writing
from hf_tl.embedding.stored_array import Codec, LazyArray
from hf_tl.embedding.taps import TapSelection, select_names
from hf_tl.errors import InputError
from hf_tl.files import make_folder, writing_to
from hf_tl.table import as_html, format_table, in_words


if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, Features

WHOLE = 2**24  # up to which float32 holds every integer


@dataclass(frozen=True)
class LayerColumns:
    """The columns of one layer: `values[:, start:stop]`.

    Attributes:
        name: the tap's name.
        depth: 0 for the layer nearest to the data, 1 for the one nearest to the task.
        kind: "conv", "linear", "attention", "hidden", "block", "norm", "other" or "last".
        place: where in the network it stands: "stem", "3/12" for the fourth of twelve blocks, "encoder.0/6", "norm",
            "head"; "" where that is not known.
    """

    name: str
    start: int
    stop: int
    depth: float
    kind: str = "other"
    place: str = ""


@dataclass(frozen=True)
class Embedding:
    """Features of a set of samples; `np.asarray(embedding)` is its values.

    Attributes:
        values: (n_samples, n_features), float32 or, discretised, int8 in {-1, 0, 1}; an array, or rows that stay in
            their file until they are asked for.
        layers: the columns of each layer, in column order.
        indices: (n_samples,) of each sample in the dataset it came from; samples that were skipped are missing.
        labels: (n_samples,) integers or strings, a class each; (n_samples, n_classes) of 0 and 1 for several classes
            each; (n_samples,) floats, a number each; or None.
        class_names: names of the integer labels, or of the columns of 0 and 1, or None.
        activation: whether layers were read "after" their activation or "before" it.
        network: the name of the network.
    """

    values: np.ndarray | LazyArray
    layers: tuple[LayerColumns, ...]
    indices: np.ndarray
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None
    activation: Literal["after", "before"] = "after"
    network: str = "network"

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        if isinstance(self.values, LazyArray):
            return self.values.__array__(dtype, copy)
        return np.array(self.values, dtype=dtype, copy=copy)

    def __getitem__(self, rows: slice | np.ndarray | Sequence[int]) -> Embedding:
        """Some of the samples, with their labels: `embedding[:100]`, `embedding[mask]`; rows in a file stay there."""
        rows = rows if isinstance(rows, slice) else np.asarray(rows)
        if not isinstance(rows, slice) and rows.ndim != 1:
            raise InputError(
                f"samples are chosen by a slice, indices or a mask, got {rows!r}; one sample is embedding[i : i + 1]"
            )
        values = self.values.take(rows) if isinstance(self.values, LazyArray) else self.values[rows]
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, values=values, indices=self.indices[rows], labels=labels)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> tuple[int, int]:
        """(n_samples, n_features)."""
        return len(self.values), self.values.shape[1]

    @property
    def dtype(self) -> np.dtype:
        """float32, or int8 for discretised features."""
        return self.values.dtype

    @property
    def widths(self) -> list[int]:
        """Number of features of each layer, in column order."""
        return [layer.stop - layer.start for layer in self.layers]

    def select(self, taps: TapSelection, *, top: float = 1.0) -> Embedding:
        """The columns of some layers only; see `hf_tl.embedding.taps.TapSelection`.

        Args:
            taps: presets, places such as "-2..", or patterns over layer names.
            top: the share of the selected layers to keep, counted from the task side.

        Raises:
            InputError: a pattern that matches nothing, with the closest names.
        """
        kept = select_columns(self.layers, taps, top)
        if len(kept) == len(self.layers):
            return self
        values: np.ndarray | LazyArray
        if isinstance(self.values, LazyArray):
            values = self.values.columns([(layer.start, layer.stop) for layer in kept])
        else:
            values = np.concatenate([self.values[:, layer.start : layer.stop] for layer in kept], axis=1)
        return replace(self, values=values, layers=moved_together(kept))

    def __str__(self) -> str:
        (n, d), layers = self.shape, self.layers
        labelled = "no labels" if self.labels is None else "labelled"
        if self.class_names is not None:
            labelled = f"{len(self.class_names)} classes: {in_words(self.class_names)}"
        return (
            f"embedding of {n:,} samples by {self.network}: {d:,} features ({self.dtype}) of {len(layers)} layers, "
            f"{layers[0].name} to {layers[-1].name}; {labelled}"
        )

    def _repr_html_(self) -> str:
        rows = [[layer.name, layer.place, layer.kind, layer.stop - layer.start] for layer in self.layers]
        return as_html(f"{self}\n\n{format_table(['layer', 'place', 'kind', 'features'], rows)}", most=24)

    def chunks(self, n: int = ROWS_AT_ONCE) -> Iterator[np.ndarray]:
        """The values, `n` samples at a time."""
        return (self.values[start : start + n] for start in range(0, len(self), n))

    def to_dataset(self, path: str | Path | None = None) -> Dataset:
        """A `datasets.Dataset` with the columns "index", "embedding" (lists of one length) and "label".

        Args:
            path: an Arrow file to write and to map into memory, chunk by chunk; without it the table is in memory.
        """
        import pyarrow as pa
        from datasets import Dataset

        schema = self._arrow_features().arrow_schema
        if path is None:
            return Dataset(pa.Table.from_batches(self._arrow_batches(schema), schema))
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for batch in self._arrow_batches(schema):
                writer.write_batch(batch)
        return Dataset.from_file(str(path))

    def to_parquet(self, folder: str | Path, *, codec: ShardCodec | None = None, rows_per_file: int = 65536) -> Path:
        """Writes Parquet shards, a column a layer, which pandas, DuckDB, Ray Data and `datasets` read.

        Args:
            folder: a new one, or an empty one.
            codec: "2bit" (values -1, 0 and 1, four in a byte), "int8", "float16" (raw values, rounded to 11 bits) or
                "float32"; None for the smallest that holds the values as they are.
            rows_per_file: samples in a shard.

        Raises:
            InputError: the folder holds shards already, or the codec cannot hold the values.
        """
        import pyarrow.parquet as pq

        folder = make_folder(folder)
        if list(folder.glob("*.parquet")):
            raise InputError(f"{str(folder)!r} holds Parquet files already; choose another folder")
        chosen = codec or self._smallest_codec()
        schema = shard_schema(self.describe(), codec=chosen, label=label_type(self.labels))
        for n, start in enumerate(range(0, len(self), rows_per_file)):
            unfinished = folder / f".{n:05d}"
            with writing_to(folder), pq.ParquetWriter(unfinished, schema, **WRITE) as writer:
                for first in range(start, min(start + rows_per_file, len(self)), ROWS_PER_GROUP):
                    part = self[first : min(first + ROWS_PER_GROUP, start + rows_per_file)]
                    labels = None if part.labels is None else part.labels.tolist()
                    writer.write_batch(shard_batch(schema, np.asarray(part), part.indices, labels))
            unfinished.rename(folder / f"{n:05d}.parquet")
        return folder

    def describe(self) -> dict:
        """What shards say of an embedding: its layers, activation, network and class names, as JSON holds it."""
        return {
            "network": self.network,
            "activation": self.activation,
            "class_names": None if self.class_names is None else list(self.class_names),
            "layers": [asdict(layer) for layer in self.layers],
        }

    def save(self, folder: str | Path) -> Path:
        """Writes the values, labels and layers into a folder; a folder that holds just that is left as it is.

        Values are stored as float32, integers of one byte as int8; float64 is rounded.

        Raises:
            InputError: the folder holds another embedding, or neither type holds the values.
        """
        with writing(folder):
            return self._save(folder)

    def _save(self, folder: str | Path) -> Path:
        codec = self._codec()
        store = Store.create(
            folder,
            {
                "network": self.network,
                "activation": self.activation,
                "n_samples": len(self),
                **describe_labels(self.labels, self.class_names),
                "layers": [asdict(layer) for layer in self.layers],
                "fingerprints": {"values": self._digest()},
            },
        )
        if codec.name == "int8":
            store.allot_features(codec)
        n = 0
        for chunk in self.chunks():
            rows = np.arange(n, n := n + len(chunk))
            if codec.name == "int8":
                store.write_features(rows, chunk, codec)
            else:
                store.write_rows(rows, chunk)
        if codec.name == "int8":
            store.finish_features({"codec": codec.name})
            store.drop_raw()
            store.declare_rows(np.arange(n))
        store.write_tensors(INDEX, index_tensors(self.indices, self.labels))
        return store.folder

    @classmethod
    def load(cls, folder: str | Path, *, values: Literal["features", "raw"] | None = None) -> Embedding:
        """Opens what `save`, `to_parquet`, `FullNetworkEmbedding` or `hf-tl embed` wrote; rows stay in their files.

        Args:
            folder: where it is; Parquet shards may be behind a URL that fsspec knows, "s3://bucket/flowers".
            values: "features", "raw" activations, or None for the features if there are any.

        Raises:
            InputError: files that are missing, damaged, unfinished or do not fit together. A row that is damaged is
                found when it is read.
        """
        if "://" in str(folder) or (not (Path(folder) / MANIFEST).exists() and any(Path(folder).glob("*.parquet"))):
            return cls._of_shards(Shards(folder))
        store = Store.open(folder)
        try:
            return cls._of_store(store, values)
        except InputError:
            raise
        except (OSError, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise InputError(
                f"the embedding in {str(folder)!r} is damaged: {error!r}; make it again with hf-tl embed"
            ) from error

    @classmethod
    def _of_store(cls, store: Store, values: Literal["features", "raw"] | None) -> Embedding:
        folder, about = str(store.folder), store.manifest
        missing = int((store.sums == 0).sum())
        if missing or not (store.folder / INDEX).exists():
            raise InputError(
                f"the embedding in {folder!r} is not finished: {missing} of {store.n_rows} samples are missing; "
                f"repeat the command that makes it, and it resumes there"
            )
        positions = store.positions
        index = store.read_tensors(INDEX)
        labels = index.get("labels")
        if index["indices"].shape != (store.n_rows,) or (labels is not None and labels.shape[:1] != (store.n_rows,)):
            raise ValueError("indices and labels differ in length")
        if labels is not None:
            labels = _decode_labels(labels[positions], about["label_values"])
        if values is None:
            values = "raw" if about["features"] is None else "features"
        if (values == "raw" and not store.has_raw) or (values == "features" and about["features"] is None):
            raise InputError(f"{folder!r} holds no {values}; make them again with hf-tl embed")
        made = store.raw(positions) if values == "raw" else store.features(positions)
        if made.path.stat().st_size != store.n_rows * made.codec.n_bytes:
            raise ValueError(f"{made.path.name} does not have the size of {store.n_rows} rows")
        names = about["class_names"]
        return cls(
            values=made,
            layers=tuple(read_layer(item) for item in about["layers"]),
            indices=index["indices"][positions],
            labels=labels,
            class_names=None if names is None else tuple(str(name) for name in names),
            activation=about["activation"],
            network=str(about["network"]),
        )

    @classmethod
    def _of_shards(cls, shards: Shards) -> Embedding:
        order, about = shards.order(), shards.about
        labels, names = shards.labels, about["class_names"]
        layers = tuple(read_layer(item) for item in about["layers"])
        if labels is not None and labels.dtype == object:
            labels = labels.astype(str)
        return cls(
            values=ShardedArray(shards=shards, positions=order, spans=((0, layers[-1].stop),)),
            layers=layers,
            indices=shards.indices[order],
            labels=None if labels is None else labels[order],
            class_names=None if names is None else tuple(str(name) for name in names),
            activation=about["activation"],
            network=str(about["network"]),
        )

    def _smallest_codec(self) -> ShardCodec:
        name = self._codec().name
        if name == "int8" and all(np.abs(chunk).max(initial=0) <= 1 for chunk in self.chunks()):
            return "2bit"
        return "int8" if name == "int8" else "float32"

    def _codec(self) -> Codec:
        """How the values are stored: float32 and int8 as they are, others as the one of the two that holds them."""
        width, kind = self.shape[1], self.dtype.kind
        if self.dtype in (np.float32, np.int8):
            return Codec("int8" if kind == "i" else "float32", width)
        if kind not in "iubf":
            raise InputError(f"features should be numbers, float or int, got {self.dtype}")
        values = np.asarray(self.values)
        low, high = values.min(initial=0, where=np.isfinite(values)), values.max(initial=0, where=np.isfinite(values))
        most = np.finfo(np.float32).max if kind == "f" else WHOLE
        if low < -most or high > most:
            raise InputError(
                f"features are stored as float32, which holds {self.dtype} up to {most:,g}, got {low:,g} to "
                f"{high:,g}; scale them"
            )
        return Codec("int8" if kind != "f" and low >= -128 and high <= 127 else "float32", width)

    def _digest(self) -> str:
        """Digest of the values of all samples, which samples they are and their labels."""
        digest = hashlib.sha256(str(self.dtype).encode())
        for chunk in self.chunks():
            digest.update(np.ascontiguousarray(chunk).data)
        digest.update(np.ascontiguousarray(self.indices).data)
        digest.update(json.dumps(None if self.labels is None else self.labels.tolist()).encode())
        return digest.hexdigest()

    def _arrow_features(self) -> Features:
        from datasets import ClassLabel, Features, List, Value

        columns = {"index": Value("int64"), "embedding": List(Value(str(self.dtype)), length=self.shape[1])}
        if self.labels is not None:
            named = None if self.class_names is None else ClassLabel(names=list(self.class_names))
            columns["label"] = named or Value({"U": "string", "f": "float64"}.get(self.labels.dtype.kind, "int64"))
            if self.labels.ndim == 2:
                columns["label"] = List(Value("int8"), length=self.labels.shape[1])
        return Features(columns)

    def _arrow_batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        start = 0
        for chunk in self.chunks():
            rows = slice(start, start := start + len(chunk))
            flat = pa.array(np.ascontiguousarray(chunk).reshape(-1))
            arrays = [pa.array(self.indices[rows]), pa.FixedSizeListArray.from_arrays(flat, self.shape[1])]
            if self.labels is not None:
                arrays.append(pa.array(self.labels[rows].tolist(), schema.field("label").type))
            columns = [array.cast(field.type) for array, field in zip(arrays, schema, strict=True)]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)


def feature_names(layers: Sequence[LayerColumns]) -> list[str]:
    """A name for each column: the layer's, and the number of its channel, "layer4.0.conv1[17]"."""
    return [f"{layer.name}[{i}]" for layer in layers for i in range(layer.stop - layer.start)]


def select_columns(layers: Sequence[LayerColumns], taps: TapSelection, top: float = 1.0) -> list[LayerColumns]:
    """Those of some layers that a selection names, where they stand.

    Raises:
        InputError: a term that chooses nothing, with the closest names.
    """
    names = [layer.name for layer in layers]
    kinds, places = [layer.kind for layer in layers], [layer.place for layer in layers]
    chosen = set(select_names(names, taps, top, kinds=kinds, places=places))
    return [layer for layer in layers if layer.name in chosen]


def moved_together(layers: Sequence[LayerColumns]) -> tuple[LayerColumns, ...]:
    """Layers whose columns follow one another from 0 on."""
    stop, moved = 0, []
    for layer in layers:
        start, stop = stop, stop + layer.stop - layer.start
        moved.append(replace(layer, start=start, stop=stop))
    return tuple(moved)


def describe_labels(labels: np.ndarray | None, class_names: Sequence[str] | None) -> dict:
    """What embedding.json says of the labels: names of integer labels, and the values that codes stand for."""
    return {
        "class_names": None if class_names is None else list(class_names),
        "label_values": None if labels is None or labels.dtype.kind in "iubf" else np.unique(labels).tolist(),
    }


def index_tensors(indices: np.ndarray, labels: np.ndarray | None) -> dict[str, np.ndarray]:
    """What index.safetensors holds: which sample of the dataset each row is, and its label or the code of that."""
    tensors = {"indices": np.ascontiguousarray(indices, dtype=np.int64)}
    if labels is not None:
        coded = labels if labels.dtype.kind in "iubf" else np.unique(labels, return_inverse=True)[1]
        tensors["labels"] = np.ascontiguousarray(coded)
    return tensors


def read_layer(item: Mapping) -> LayerColumns:
    """A layer as a file holds it."""
    return LayerColumns(
        str(item["name"]),
        int(item["start"]),
        int(item["stop"]),
        float(item["depth"]),
        str(item["kind"]),
        str(item["place"]),
    )


def _decode_labels(labels: np.ndarray, values: Sequence | None) -> np.ndarray:
    if values is None:
        return labels
    if labels.min(initial=0) < 0:
        raise ValueError("a label code is negative")
    return np.asarray([str(value) for value in values])[labels]
