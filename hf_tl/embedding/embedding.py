"""The embedding of a set of rows: one row of features each, its columns by layer, its labels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from hf_tl.embedding.codec import Codec
from hf_tl.embedding.store import INDEX, Store, replace_file
from hf_tl.embedding.stored_array import StoredArray
from hf_tl.embedding.tap import Selection
from hf_tl.embedding.taps import select_names
from hf_tl.errors import InputError


if TYPE_CHECKING:
    from datasets import Dataset


ROWS_AT_ONCE = 256


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
    """Features of a set of rows; `np.asarray(embedding)` is its values.

    Attributes:
        values: (rows, n_features), float32 or, discretised, int8 in {-1, 0, 1}; an array, or rows that stay in
            their file until they are asked for.
        layers: the columns of each layer, in column order.
        rows: (rows,) the index of each row in the dataset it came from; rows that were skipped are missing.
        labels: (rows,) integers or strings, or None.
        class_names: names of the integer labels, or None.
        activation: whether layers were read "after" their activation or "before" it.
        network: the name of the network.
    """

    values: np.ndarray | StoredArray
    layers: tuple[LayerColumns, ...]
    rows: np.ndarray
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None
    activation: Literal["after", "before"] = "after"
    network: str = "network"

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        if isinstance(self.values, StoredArray):
            return self.values.__array__(dtype, copy)
        return np.array(self.values, dtype=dtype, copy=copy)

    def __getitem__(self, rows: slice | np.ndarray | Sequence[int]) -> Embedding:
        """Some of the rows, with their labels: `embedding[:100]`, `embedding[mask]`; rows in a file stay there."""
        rows = rows if isinstance(rows, slice) else np.asarray(rows)
        if not isinstance(rows, slice) and rows.ndim != 1:
            raise InputError(
                f"rows are chosen by a slice, indices or a mask, got {rows!r}; one row is embedding[i : i + 1]"
            )
        values = self.values.take(rows) if isinstance(self.values, StoredArray) else self.values[rows]
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, values=values, rows=self.rows[rows], labels=labels)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, n_features)."""
        return self.values.shape

    @property
    def dtype(self) -> np.dtype:
        """float32, or int8 for discretised features."""
        return self.values.dtype

    @property
    def widths(self) -> list[int]:
        """Number of features of each layer, in column order."""
        return [layer.stop - layer.start for layer in self.layers]

    def select(self, taps: Selection, *, top: float = 1.0) -> Embedding:
        """The columns of some layers only; see `hf_tl.embedding.taps.Selection`.

        Args:
            taps: presets, places such as "-2..", or patterns over layer names.
            top: the share of the selected layers to keep, counted from the task side.

        Raises:
            InputError: a pattern that matches nothing, with the closest names.
        """
        names = [layer.name for layer in self.layers]
        kinds, places = [layer.kind for layer in self.layers], [layer.place for layer in self.layers]
        chosen = set(select_names(names, taps, top, kinds=kinds, places=places))
        kept = [layer for layer in self.layers if layer.name in chosen]
        if len(kept) == len(self.layers):
            return self
        stops = np.cumsum([layer.stop - layer.start for layer in kept]).tolist()
        moved = tuple(
            replace(layer, start=stop - (layer.stop - layer.start), stop=stop)
            for layer, stop in zip(kept, stops, strict=True)
        )
        if isinstance(self.values, StoredArray):
            values = self.values.columns([(layer.start, layer.stop) for layer in kept])
        else:
            values = np.concatenate([self.values[:, layer.start : layer.stop] for layer in kept], axis=1)
        return replace(self, values=values, layers=moved)

    @property
    def blocks(self) -> Iterator[np.ndarray]:
        """The values, 256 rows at a time."""
        return (self.values[start : start + ROWS_AT_ONCE] for start in range(0, len(self), ROWS_AT_ONCE))

    def to_dataset(self, path: str | Path | None = None) -> Dataset:
        """A `datasets.Dataset` with the columns "row", "embedding" (lists of one length) and "label".

        Args:
            path: an Arrow file to write and to map into memory, block by block; without it the table is in memory.
        """
        from hf_tl.embedding.arrow import to_dataset

        return to_dataset(self, path)

    def save(self, folder: str | Path) -> Path:
        """Writes the embedding as a store, see `hf_tl.embedding.store`; returns the folder, which is made.

        Raises:
            InputError: the folder holds another embedding.
        """
        return save_embedding(self, folder)

    @classmethod
    def load(cls, folder: str | Path, *, values: Literal["features", "raw"] | None = None) -> Embedding:
        """Opens what `save`, `FullNetworkEmbedding` or `hf-tl embed` wrote; the rows stay in their file.

        Args:
            folder: where it is.
            values: "features", "raw" activations, or None for the features if there are any.

        Raises:
            InputError: files that are missing, damaged, unfinished or do not fit together.
        """
        return load_embedding(folder, values=values)


def feature_names(layers: Sequence[LayerColumns]) -> list[str]:
    """A name for each column: the layer's, and the number of its channel, "layer4.0.conv1[17]"."""
    return [f"{layer.name}[{i}]" for layer in layers for i in range(layer.stop - layer.start)]


def save_embedding(embedding: Embedding, folder: str | Path) -> Path:
    """See `Embedding.save`."""
    real, n = embedding.values.dtype.kind == "f", len(embedding)
    about = {
        "network": embedding.network,
        "activation": embedding.activation,
        "n_rows": n,
        **describe_labels(embedding.labels, embedding.class_names),
        "layers": [asdict(layer) for layer in embedding.layers],
        "fingerprints": {"values": digest_of(embedding)},
    }
    store = Store.create(folder, about)
    if real:
        for start, block in zip(range(0, n, ROWS_AT_ONCE), embedding.blocks, strict=True):
            store.write_rows(np.arange(start, start + len(block)), block)
    else:
        codec = Codec("int8", embedding.shape[1])
        store.allot_features(codec)
        for start, block in zip(range(0, n, ROWS_AT_ONCE), embedding.blocks, strict=True):
            store.write_features(np.arange(start, start + len(block)), block, codec)
        store.finish_features({"codec": codec.name})
        store.drop_raw()
        store.declare_rows(np.arange(n))
    write_index(store.folder, embedding.rows, embedding.labels)
    return store.folder


def load_embedding(folder: str | Path, *, values: Literal["features", "raw"] | None = None) -> Embedding:
    """See `Embedding.load`."""
    store = Store.open(folder)
    about = store.manifest
    try:
        missing = int((store.checksums == 0).sum())
        if missing or not (store.folder / INDEX).exists():
            raise InputError(
                f"the embedding in {str(folder)!r} is not finished: {missing} of {store.n_rows} rows are missing; "
                f"repeat the command that makes it, and it goes on from there"
            )
        positions = store.positions
        index = _read_index(store.folder)
        rows, labels = index["rows"][positions], index.get("labels")
        if len(index["rows"]) != store.n_rows or (labels is not None and labels.shape != index["rows"].shape):
            raise ValueError("rows and labels differ in length")
        if labels is not None:
            labels = _decode_labels(labels[positions], about["label_values"])
        if values is None:
            values = "raw" if about["features"] is None else "features"
        if (values == "raw" and not store.has_raw) or (values == "features" and about["features"] is None):
            raise InputError(f"{str(folder)!r} holds no {values}; make them again with hf-tl embed")
        made = store.raw(positions) if values == "raw" else store.features(positions)
        if made.path.stat().st_size != store.n_rows * made.codec.n_bytes:
            raise ValueError(f"{made.path.name} does not have the size of {store.n_rows} rows")
        names = about["class_names"]
        return Embedding(
            values=made,
            layers=tuple(read_layer(item) for item in about["layers"]),
            rows=rows,
            labels=labels,
            class_names=None if names is None else tuple(str(name) for name in names),
            activation=about["activation"],
            network=str(about["network"]),
        )
    except InputError:
        raise
    except (OSError, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(
            f"the embedding in {str(folder)!r} is damaged: {error!r}; make it again with hf-tl embed"
        ) from error


def describe_labels(labels: np.ndarray | None, class_names: Sequence[str] | None) -> dict:
    """What embedding.json says of the labels: names of integer labels, and the values that codes stand for."""
    strings = labels is not None and labels.dtype.kind not in "iub"
    return {
        "class_names": None if class_names is None else list(class_names),
        "label_values": np.unique(labels).tolist() if strings else None,
    }


def write_index(folder: Path, rows: np.ndarray, labels: np.ndarray | None) -> None:
    """Writes which row of the dataset each row is, and its label."""
    from safetensors.numpy import save

    tensors = {"rows": np.ascontiguousarray(rows, dtype=np.int64)}
    if labels is not None:
        coded = labels if labels.dtype.kind in "iub" else np.unique(labels, return_inverse=True)[1]
        tensors["labels"] = np.ascontiguousarray(coded)
    replace_file(folder / INDEX, save(tensors))


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file.

    Raises:
        InputError: a file that is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{str(path)!r} cannot be read: {error}") from error


def digest_of(embedding: Embedding) -> str:
    """Digest of the values of all rows, which rows they are and their labels."""
    digest = hashlib.sha256(str(embedding.values.dtype).encode())
    for block in embedding.blocks:
        digest.update(np.ascontiguousarray(block).data)
    digest.update(np.ascontiguousarray(embedding.rows).data)
    digest.update(json.dumps(None if embedding.labels is None else embedding.labels.tolist()).encode())
    return digest.hexdigest()


def read_layer(item: Mapping) -> LayerColumns:
    """A layer as a manifest holds it."""
    return LayerColumns(
        str(item["name"]),
        int(item["start"]),
        int(item["stop"]),
        float(item["depth"]),
        str(item["kind"]),
        str(item.get("place", "")),
    )


def _read_index(folder: Path) -> dict[str, np.ndarray]:
    index = read_tensors(folder / INDEX)
    if index["rows"].ndim != 1:
        raise ValueError("the index should hold one number a row")
    return index


def _decode_labels(labels: np.ndarray, values: Sequence | None) -> np.ndarray:
    if values is None:
        return labels
    if labels.min(initial=0) < 0:
        raise ValueError("a label code is negative")
    return np.asarray([str(value) for value in values])[labels]
