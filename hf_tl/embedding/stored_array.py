"""An array whose rows stay in a file until they are asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hf_tl.embedding.codec import Codec


Key = int | slice | np.ndarray | list


@dataclass(frozen=True, eq=False)
class StoredArray:
    """Some rows and columns of a file, read when they are asked for: `array[10:20]`, `array[mask, 5:9]`.

    The file is mapped for the time of one reading only, so that a loop over blocks needs the memory of a block.

    Attributes:
        path: the file: one row after the other.
        codec: how a row stands in it.
        positions: (rows,) where in the file each row of the array stands.
        spans: the columns of the file, as (start, stop), that are the columns of the array.
    """

    path: Path
    codec: Codec
    positions: np.ndarray
    spans: tuple[tuple[int, int], ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return len(self.positions), sum(stop - start for start, stop in self.spans)

    @property
    def ndim(self) -> int:
        """2."""
        return 2

    @property
    def dtype(self) -> np.dtype:
        """Of what is read: float32 or int8."""
        return self.codec.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the array when all of it is read."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self.positions)

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("rows in a file cannot become an array without a copy")
        return self[:].astype(dtype or self.dtype, copy=False)

    def __getitem__(self, key: Key | tuple[Key, Key]) -> np.ndarray:
        rows, columns = key if isinstance(key, tuple) else (key, slice(None))
        positions = self.positions[rows]
        if isinstance(columns, slice) and columns.step in (None, 1):
            values = self._read(np.atleast_1d(positions), *columns.indices(self.shape[1])[:2])
        else:
            values = self._read(np.atleast_1d(positions), 0, self.shape[1])[:, columns]
        return values[0] if np.ndim(positions) == 0 else values

    def take(self, rows: slice | np.ndarray) -> StoredArray:
        """Some of the rows, still in the file."""
        return replace(self, positions=self.positions[rows])

    def columns(self, spans: list[tuple[int, int]]) -> StoredArray:
        """Some of the columns, still in the file."""
        return replace(self, spans=tuple(part for start, stop in spans for part in self._within(start, stop)))

    def _within(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The file's columns behind columns `start` to `stop` of the array."""
        found, seen = [], 0
        for first, last in self.spans:
            left, right = max(start - seen, 0), min(stop - seen, last - first)
            if left < right:
                found.append((first + left, first + right))
            seen += last - first
        return found

    def _read(self, positions: np.ndarray, start: int, stop: int) -> np.ndarray:
        spans = self._within(start, stop)
        out = np.empty((len(positions), sum(b - a for a, b in spans)), self.dtype)
        if not out.size:
            return out
        n_items = self.codec.n_items
        stored = np.memmap(self.path, self.codec.stored_dtype, "r").reshape(-1, n_items)
        run = positions[-1] - positions[0] + 1 == len(positions) and (np.diff(positions) == 1).all()
        chosen = stored[positions[0] : positions[-1] + 1] if run else stored[positions]
        column = 0
        for a, b in spans:
            out[:, column : column + b - a] = self.codec.decode(chosen, a, b)
            column += b - a
        return out
