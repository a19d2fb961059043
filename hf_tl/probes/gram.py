"""Inner products of rows of features that are in memory, memory-mapped or lazy."""

from __future__ import annotations

from collections.abc import Iterator
from mmap import mmap
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import DTypeLike

from hf_tl.embedding.embedding import Embedding
from hf_tl.errors import InputError


ROWS_AT_ONCE = 2048
BEYOND = "inner products of the features are beyond float64; scale the features, or leave out what is not finite"
EXACT = 2**24  # sums of integers up to here are exact in float32


@runtime_checkable
class Matrix(Protocol):
    """(n_samples, n_features) numbers that need not be in memory: an array, a memory map, the values of an
    `Embedding`, or an array of another library; slices of rows and `np.asarray` give arrays."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n_samples, n_features)."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """Of the numbers."""
        ...

    def __getitem__(self, rows: slice, /) -> np.ndarray: ...

    def __array__(self) -> np.ndarray: ...


Features = Embedding | Matrix


def plain_values(X: Features) -> Matrix:
    """The values of an embedding; anything else as it is."""
    return X.values if isinstance(X, Embedding) else X


def is_lazy(X: Matrix) -> bool:
    """Whether X has to be read in blocks: memory-mapped, or lazy, which no sparse matrix or frame is."""
    return isinstance(X, np.memmap) or (isinstance(X, Matrix) and not isinstance(X, np.ndarray))


def row_blocks(X: Matrix) -> Iterator[slice]:
    """Slices that cover the rows."""
    return (slice(i, min(i + ROWS_AT_ONCE, X.shape[0])) for i in range(0, X.shape[0], ROWS_AT_ONCE))


def read_rows(X: Matrix, rows: slice) -> np.ndarray:
    """Some rows as an array; of a memory-mapped file, through a mapping of their own.

    The pages that a process has touched count as its memory until the mapping goes, so one mapping of the whole file
    would in the end count as much as the file.
    """
    if isinstance(X, np.memmap) and isinstance(X.base, mmap) and X.flags.c_contiguous and X.ndim == 2:
        offset = X.offset + rows.start * X.strides[0]
        shape = (rows.stop - rows.start, X.shape[1])
        return np.array(np.memmap(X.filename, X.dtype, mode="r", offset=offset, shape=shape))
    return np.asarray(X[rows])


def gram(X: Matrix, other: Matrix | None = None) -> np.ndarray:
    """Inner products of all pairs of rows, in float64, a block of rows at a time.

    Small integers, as discretised features are, are multiplied in float32, where every partial sum is exact.

    Args:
        X: (n_samples, n_features), real or integer.
        other: (n_others, n_features); None for X itself.

    Returns:
        (n_samples, n_others), or the symmetric (n_samples, n_samples), float64.

    Raises:
        InputError: products that are not finite.
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
            with np.errstate(over="ignore", invalid="ignore"):
                out[i, j] = left @ right.T  # numpy halves the work where both are the same array
            if other is None and not same:
                out[j, i] = out[i, j].T
    if not np.isfinite(out).all():
        raise InputError(BEYOND)
    return out


def weighted_rows(weights: np.ndarray, X: Matrix) -> np.ndarray:
    """Sums of rows, weights.T @ X in float64: (n_samples, n_sums), (n_samples, n_features) -> (n_sums, n_features)."""
    out = np.zeros((weights.shape[1], X.shape[1]))
    for rows in row_blocks(X):
        used = np.flatnonzero(weights[rows].any(axis=1))  # samples that support no class cost nothing
        out += weights[rows][used].T @ read_rows(X, rows)[used].astype(np.float64)
    return out


def _exact_dtype(X: Matrix, other: Matrix | None) -> DTypeLike:
    largest = 1.0
    for values in (X, other):
        if values is not None and values.dtype.kind not in "biu":
            return np.float64
        if values is not None and values.shape[0]:
            largest = max(largest, max(float(np.abs(read_rows(values, rows).astype(np.float32)).max())
                                       for rows in row_blocks(values)))  # fmt: skip
    return np.float32 if largest**2 * X.shape[1] < EXACT else np.float64
