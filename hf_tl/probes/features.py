"""What probes read: rows of features, in memory, memory-mapped or lazy, and the columns of each layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from mmap import mmap
from typing import Protocol, runtime_checkable

import numpy as np

from hf_tl.errors import InputError


ROWS_AT_ONCE = 2048
EXACT = 2**24  # sums of integers up to here are exact in float32


class LayerSpan(Protocol):
    """The columns of one layer: `values[:, start:stop]`.

    Attributes:
        name: the layer's name.
        depth: 0 for the layer nearest to the data, 1 for the one nearest to the task.
    """

    name: str
    start: int
    stop: int
    depth: float


@runtime_checkable
class LayeredFeatures(Protocol):
    """An embedding, as far as probes need one; `hf_tl.Embedding` is one.

    Attributes:
        values: (rows, n_features), an array or anything that fulfils `LazyRows`.
        layers: the columns of each layer, from data to task.
        labels: (rows,) integers or strings, or None.
    """

    values: LazyRows
    layers: Sequence[LayerSpan]
    labels: np.ndarray | None


@runtime_checkable
class LazyRows(Protocol):
    """(rows, n_features) numbers that need not be in memory: slices of rows and `np.asarray` give arrays."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __getitem__(self, rows: slice) -> np.ndarray: ...

    def __array__(self) -> np.ndarray: ...


def plain_values(features: object) -> object:
    """The values of an embedding; anything else as it is."""
    return features.values if isinstance(features, LayeredFeatures) else features


def needed_labels(features: LayeredFeatures, what: str) -> np.ndarray:
    """The labels of an embedding.

    Raises:
        InputError: it has none.
    """
    if features.labels is None:
        raise InputError(f"the {what} embedding has no labels; a probe needs the class of every row")
    return np.asarray(features.labels)


def row_blocks(X: LazyRows, *, rows: int = ROWS_AT_ONCE) -> Iterator[slice]:
    """Slices that cover the rows, `rows` at a time."""
    return (slice(start, min(start + rows, X.shape[0])) for start in range(0, X.shape[0], rows))


def read_rows(X: LazyRows, rows: slice) -> np.ndarray:
    """Some rows as an array; of a memory-mapped file, through a mapping of their own.

    The pages that a process has touched count as its memory until the mapping goes, so one mapping of the whole file
    would in the end count as much as the file.
    """
    if isinstance(X, np.memmap) and isinstance(X.base, mmap) and X.flags.c_contiguous and X.ndim == 2:
        offset = X.offset + rows.start * X.strides[0]
        shape = (rows.stop - rows.start, X.shape[1])
        return np.array(np.memmap(X.filename, X.dtype, mode="r", offset=offset, shape=shape))
    return np.asarray(X[rows])


def gram(X: LazyRows, other: LazyRows | None = None) -> np.ndarray:
    """Inner products of all pairs of rows, in float64, a block of rows at a time.

    Small integers, as discretised features are, are multiplied in float32, where every partial sum is exact.

    Args:
        X: (rows, n_features), real or integer.
        other: (other_rows, n_features); None for X itself.

    Returns:
        (rows, other_rows), or the symmetric (rows, rows), float64.
    """
    dtype = _exact_dtype(X, other)
    columns = X if other is None else other
    out = np.empty((X.shape[0], columns.shape[0]))
    for i in row_blocks(X):
        left = read_rows(X, i).astype(dtype)
        for j in row_blocks(columns):
            if other is None and j.start > i.start:
                break
            same = other is None and i == j
            right = left if same else read_rows(columns, j).astype(dtype)
            out[i, j] = left @ right.T  # numpy halves the work where both are the same array
            if other is None and not same:
                out[j, i] = out[i, j].T
    return out


def weighted_rows(weights: np.ndarray, X: LazyRows) -> np.ndarray:
    """Sums of rows, weights.T @ X in float64: (rows, sums), (rows, n_features) -> (sums, n_features)."""
    out = np.zeros((weights.shape[1], X.shape[1]))
    for rows in row_blocks(X):
        used = np.flatnonzero(weights[rows].any(axis=1))  # rows that support no class cost nothing
        out += weights[rows][used].T @ read_rows(X, rows)[used].astype(np.float64)
    return out


def _exact_dtype(X: LazyRows, other: LazyRows | None) -> type:
    largest = 1.0
    for values in (X, other):
        if values is not None and values.dtype.kind not in "biu":
            return np.float64
        if values is not None and values.shape[0]:
            largest = max(largest, max(float(np.abs(read_rows(values, rows).astype(np.float32)).max())
                                       for rows in row_blocks(values)))  # fmt: skip
    return np.float32 if largest**2 * X.shape[1] < EXACT else np.float64
