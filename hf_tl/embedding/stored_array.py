"""An array whose rows stay in a file until they are asked for: float32, int8, or four values in a byte."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, cast

import numpy as np

from hf_tl.errors import InputError


CodecName = Literal["float32", "int8", "2bit"]
Key = int | slice | np.ndarray | list
SKIPPED = np.uint32(0xFFFFFFFF)  # in place of the checksum of a row that cannot be read
PER_BYTE = 4  # values of two bits each
_UNPACK = (np.arange(256)[:, None] >> np.array([0, 2, 4, 6]) & 3).astype(np.int8) - 1  # (256, 4)


@dataclass(frozen=True)
class Codec:
    """Rows of one width, as bytes.

    Attributes:
        name: "float32"; "int8"; or "2bit", which holds -1, 0 and 1 only and packs four of them into a byte.
        width: number of features of a row.

    Raises:
        InputError: an unknown name.
    """

    name: CodecName
    width: int

    def __post_init__(self) -> None:
        if self.name not in ("float32", "int8", "2bit"):
            raise InputError(f"codec should be 'float32', 'int8' or '2bit', got {self.name!r}")

    @property
    def dtype(self) -> np.dtype:
        """What rows are decoded to."""
        return np.dtype(np.float32 if self.name == "float32" else np.int8)

    @property
    def stored_dtype(self) -> np.dtype:
        """The items of a row in the file."""
        return np.dtype({"float32": "<f4", "int8": "i1", "2bit": "u1"}[self.name])

    @property
    def n_items(self) -> int:
        """Items of a row in the file."""
        return -(-self.width // PER_BYTE) if self.name == "2bit" else self.width

    @property
    def n_bytes(self) -> int:
        """Bytes of a row in the file."""
        return self.n_items * self.stored_dtype.itemsize

    def encode(self, values: np.ndarray) -> np.ndarray:
        """(n, width) -> (n, n_items) of `stored_dtype`.

        Raises:
            ValueError: values that "2bit" cannot hold.
        """
        if self.name != "2bit":
            return np.ascontiguousarray(values, dtype=self.stored_dtype)
        if values.size and (values.min() < -1 or values.max() > 1):
            raise ValueError(f"two bits hold -1, 0 and 1, got values from {values.min()} to {values.max()}")
        codes = np.ones((len(values), self.n_items * PER_BYTE), np.uint8)  # what fills the last byte reads as 0
        codes[:, : self.width] = values.astype(np.int8) + np.int8(1)
        first, second, third, fourth = (codes[:, place::PER_BYTE] for place in range(PER_BYTE))
        return first | second << 2 | third << 4 | fourth << 6

    def decode(self, stored: np.ndarray, start: int, stop: int) -> np.ndarray:
        """(n, n_items) -> the columns from `start` to `stop`, (n, stop - start), a copy."""
        if self.name != "2bit":
            return np.array(stored[:, start:stop], dtype=self.dtype)
        first, last = start // PER_BYTE, -(-stop // PER_BYTE)
        values = _UNPACK[stored[:, first:last]].reshape(len(stored), -1)
        return values[:, start - first * PER_BYTE : stop - first * PER_BYTE]


class LazyArray:
    """Rows and columns that stay where they are until they are asked for: `array[10:20]`, `array[mask, 5:9]`.

    Abstract: a subclass is a dataclass with the attributes below, and says what `_read` reads.

    Attributes:
        positions: (rows,) where each row of the array stands.
        spans: the stored columns, as (start, stop), that are the columns of the array.
    """

    positions: np.ndarray
    spans: tuple[tuple[int, int], ...]

    @property
    def dtype(self) -> np.dtype:
        """Of what is read: float32 or int8."""
        raise NotImplementedError

    def _read(self, positions: np.ndarray, spans: list[tuple[int, int]]) -> np.ndarray:
        """(len(positions), columns of the spans), read."""
        raise NotImplementedError

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return len(self.positions), sum(stop - start for start, stop in self.spans)

    @property
    def ndim(self) -> int:
        """2."""
        return 2

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
            start, stop, _ = columns.indices(self.shape[1])
            values = self._read(np.atleast_1d(positions), self._within(start, stop))
        else:
            values = self._read(np.atleast_1d(positions), list(self.spans))[:, columns]
        return values[0] if np.ndim(positions) == 0 else values

    def take(self, rows: slice | np.ndarray) -> Self:
        """Some of the rows, still where they are."""
        return self._with(positions=self.positions[rows])

    def columns(self, spans: list[tuple[int, int]]) -> Self:
        """Some of the columns, still where they are."""
        return self._with(spans=tuple(part for start, stop in spans for part in self._within(start, stop)))

    def _with(self, **changes: Any) -> Self:
        return replace(cast(Any, self), **changes)

    def _within(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The stored columns behind columns `start` to `stop` of the array."""
        found, seen = [], 0
        for first, last in self.spans:
            left, right = max(start - seen, 0), min(stop - seen, last - first)
            if left < right:
                found.append((first + left, first + right))
            seen += last - first
        return found


@dataclass(frozen=True, eq=False)
class StoredArray(LazyArray):
    """Some rows and columns of a file.

    The file is mapped for the time of one reading only, so that a loop over chunks needs the memory of a chunk. A
    row is compared with its checksum when it is read for the first time.

    Attributes:
        path: the file: one row after the other.
        codec: how a row stands in it.
        positions: (rows,) where in the file each row of the array stands.
        spans: the columns of the file, as (start, stop), that are the columns of the array.
        checksums: (rows of the file,) uint32, of each; what was found right is set to 0.
    """

    path: Path
    codec: Codec
    positions: np.ndarray
    spans: tuple[tuple[int, int], ...]
    checksums: np.ndarray

    @property
    def dtype(self) -> np.dtype:
        """Of what is read: float32 or int8."""
        return self.codec.dtype

    def _read(self, positions: np.ndarray, spans: list[tuple[int, int]]) -> np.ndarray:
        out = np.empty((len(positions), sum(b - a for a, b in spans)), self.dtype)
        if not out.size:
            return out
        n_items = self.codec.n_items
        stored = np.memmap(self.path, self.codec.stored_dtype, "r").reshape(-1, n_items)
        run = positions[-1] - positions[0] + 1 == len(positions) and (np.diff(positions) == 1).all()
        chosen = stored[positions[0] : positions[-1] + 1] if run else stored[positions]
        self._check(positions, chosen)
        column = 0
        for a, b in spans:
            out[:, column : column + b - a] = self.codec.decode(chosen, a, b)
            column += b - a
        return out

    def _check(self, positions: np.ndarray, stored: np.ndarray) -> None:
        unread = np.flatnonzero(self.checksums[positions])
        if not len(unread):
            return
        damaged = positions[unread][checksums(stored[unread]) != self.checksums[positions[unread]]]
        if len(damaged):
            raise InputError(
                f"{self.path.name} in {str(self.path.parent)!r} is damaged: {len(damaged)} rows differ from their "
                f"checksums, the first is row {damaged[0]}; repeat the command that made it, and they are made again"
            )
        self.checksums[positions] = 0


def checksums(stored: np.ndarray) -> np.ndarray:
    """(n,) uint32, CRC-32 of each row; the two values that mean something else are moved by one."""
    sums = np.fromiter((zlib.crc32(row.data) for row in np.ascontiguousarray(stored)), np.uint32, len(stored))
    sums[sums == 0] = 1
    sums[sums == SKIPPED] = SKIPPED - np.uint32(1)
    return sums
