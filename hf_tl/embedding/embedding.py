"""The embedding of a set of rows: one row of features each, its columns by layer, its labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from hf_tl.embedding.taps import Selection, select_names
from hf_tl.errors import InputError


FORMAT = "hf_tl embedding 1"


@dataclass(frozen=True)
class LayerColumns:
    """The columns of one layer: `values[:, start:stop]`.

    Attributes:
        name: the tap's name.
        depth: 0 for the layer nearest to the data, 1 for the one nearest to the task.
    """

    name: str
    start: int
    stop: int
    depth: float


@dataclass(frozen=True)
class Embedding:
    """Features of a set of rows; `np.asarray(embedding)` is its values.

    Attributes:
        values: (rows, n_features), float32 or, discretised, int8 in {-1, 0, 1}.
        layers: the columns of each layer, in column order.
        rows: (rows,) the index of each row in the dataset it came from; rows that were skipped are missing.
        labels: (rows,) integers or strings, or None.
        class_names: names of the integer labels, or None.
        activation: whether layers were read "after" their activation or "before" it.
        network: the name of the network.
    """

    values: np.ndarray
    layers: tuple[LayerColumns, ...]
    rows: np.ndarray
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None
    activation: Literal["after", "before"] = "after"
    network: str = "network"

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.values, dtype=dtype, copy=copy)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, n_features)."""
        return self.values.shape

    @property
    def widths(self) -> list[int]:
        """Number of features of each layer, in column order."""
        return [layer.stop - layer.start for layer in self.layers]

    def select(self, taps: Selection, *, top: float = 1.0) -> Embedding:
        """The columns of some layers only; see `hf_tl.embedding.taps.Selection`.

        Args:
            taps: "auto", "last", or glob patterns over layer names.
            top: the share of the selected layers to keep, counted from the task side.

        Raises:
            InputError: a pattern that matches nothing, with the closest names.
        """
        names = set(select_names([layer.name for layer in self.layers], taps, top))
        kept = [layer for layer in self.layers if layer.name in names]
        if len(kept) == len(self.layers):
            return self
        stops = np.cumsum([layer.stop - layer.start for layer in kept]).tolist()
        moved = tuple(
            replace(layer, start=stop - (layer.stop - layer.start), stop=stop)
            for layer, stop in zip(kept, stops, strict=True)
        )
        values = np.concatenate([self.values[:, layer.start : layer.stop] for layer in kept], axis=1)
        return replace(self, values=values, layers=moved)

    def save(self, folder: str | Path) -> Path:
        """Writes embedding.safetensors and embedding.json into a folder, which is made; returns the folder."""
        from safetensors.numpy import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {"values": np.ascontiguousarray(self.values), "rows": self.rows}
        labels, label_values = _encode_labels(self.labels)
        if labels is not None:
            tensors["labels"] = labels
        about = {
            "format": FORMAT,
            "network": self.network,
            "activation": self.activation,
            "class_names": self.class_names,
            "label_values": label_values,
            "layers": [asdict(layer) for layer in self.layers],
        }
        save_file(tensors, folder / "embedding.safetensors")
        (folder / "embedding.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Embedding:
        """Reads what `save` wrote.

        Raises:
            InputError: files that are missing, damaged or do not fit together.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        folder = Path(folder)
        try:
            about = json.loads((folder / "embedding.json").read_text(encoding="utf-8"))
            tensors = load_file(folder / "embedding.safetensors")
        except FileNotFoundError as error:
            raise InputError(
                f"{str(folder)!r} holds no embedding: {error.filename} is missing; make it with hf-tl embed"
            ) from error
        except (OSError, ValueError, SafetensorError) as error:
            raise InputError(f"the embedding in {str(folder)!r} cannot be read: {error}") from error
        try:
            return cls._checked(about, tensors)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise InputError(
                f"the embedding in {str(folder)!r} is damaged: {error!r}; make it again with hf-tl embed"
            ) from error

    @classmethod
    def _checked(cls, about: dict, tensors: dict[str, np.ndarray]) -> Embedding:
        if about["format"] != FORMAT:
            raise ValueError(f"format should be {FORMAT!r}, got {about['format']!r}")
        values, rows = tensors["values"], tensors["rows"]
        layers = tuple(
            LayerColumns(str(item["name"]), int(item["start"]), int(item["stop"]), float(item["depth"]))
            for item in about["layers"]
        )
        stops = [0, *(layer.stop for layer in layers)]
        if (
            values.ndim != 2
            or stops[-1] != values.shape[1]
            or any(layer.start != start or layer.stop <= start for layer, start in zip(layers, stops, strict=False))
        ):
            raise ValueError(f"the layers' columns do not tile values of shape {values.shape}")
        labels = tensors.get("labels")
        if rows.shape != values.shape[:1] or (labels is not None and labels.shape != rows.shape):
            raise ValueError("values, rows and labels differ in length")
        if labels is not None and about["label_values"] is not None:
            if labels.min(initial=0) < 0:
                raise ValueError("a label code is negative")
            labels = np.asarray([str(value) for value in about["label_values"]])[labels]
        if about["activation"] not in ("after", "before"):
            raise ValueError(f"activation should be 'after' or 'before', got {about['activation']!r}")
        names = about["class_names"]
        return cls(
            values=values,
            layers=layers,
            rows=rows,
            labels=labels,
            class_names=None if names is None else tuple(str(name) for name in names),
            activation=about["activation"],
            network=str(about["network"]),
        )


def _encode_labels(labels: np.ndarray | None) -> tuple[np.ndarray | None, Sequence | None]:
    """String labels become codes and their values, for a file that holds numbers only."""
    if labels is None or labels.dtype.kind in "iub":
        return labels, None
    values, codes = np.unique(labels, return_inverse=True)
    return codes, values.tolist()
