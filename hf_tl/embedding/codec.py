"""How rows of features stand in a file: float32, int8, or three values in two bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from hf_tl.errors import InputError


CodecName = Literal["float32", "int8", "2bit"]
PER_BYTE = 4  # values of two bits each
_UNPACK = (np.arange(256)[:, None] >> np.array([0, 2, 4, 6]) & 3).astype(np.int8) - 1  # (256, 4)


@dataclass(frozen=True)
class Codec:
    """Rows of one width, as bytes.

    Attributes:
        name: "float32"; "int8"; or "2bit", which holds -1, 0 and 1 only and packs four of them into a byte.
        width: number of features of a row.
    """

    name: CodecName
    width: int

    @property
    def dtype(self) -> np.dtype:
        """What rows are decoded to."""
        return np.dtype(np.float32 if self.name == "float32" else np.int8)

    @property
    def stored_dtype(self) -> np.dtype:
        """The items of a row in the file."""
        return np.dtype({"float32": "<f4", "int8": np.int8, "2bit": np.uint8}[self.name])

    @property
    def n_items(self) -> int:
        """Items of a row in the file."""
        return -(-self.width // PER_BYTE) if self.name == "2bit" else self.width

    @property
    def n_bytes(self) -> int:
        """Bytes of a row in the file."""
        return self.n_items * self.stored_dtype.itemsize

    def encode(self, values: np.ndarray) -> np.ndarray:
        """(rows, width) -> (rows, n_items) of `stored_dtype`.

        Raises:
            ValueError: values that "2bit" cannot hold.
        """
        if self.name != "2bit":
            return np.ascontiguousarray(values, dtype=self.stored_dtype)
        if values.size and (values.min() < -1 or values.max() > 1):
            raise ValueError(f"two bits hold -1, 0 and 1, got values from {values.min()} to {values.max()}")
        codes = np.ones((len(values), self.n_items * PER_BYTE), np.uint8)  # what fills the last byte reads as 0
        codes[:, : self.width] = values.astype(np.int8) + np.int8(1)
        codes = codes.reshape(len(values), self.n_items, PER_BYTE)
        return codes[..., 0] | codes[..., 1] << 2 | codes[..., 2] << 4 | codes[..., 3] << 6

    def decode(self, stored: np.ndarray, start: int, stop: int) -> np.ndarray:
        """(rows, n_items) -> the columns from `start` to `stop`, (rows, stop - start), a copy."""
        if self.name != "2bit":
            return np.array(stored[:, start:stop], dtype=self.dtype)
        first, last = start // PER_BYTE, -(-stop // PER_BYTE)
        values = _UNPACK[stored[:, first:last]].reshape(len(stored), -1)
        return values[:, start - first * PER_BYTE : stop - first * PER_BYTE]


def find_codec(name: str, width: int) -> Codec:
    """The codec of that name.

    Raises:
        InputError: an unknown name.
    """
    if name not in ("float32", "int8", "2bit"):
        raise InputError(f"codec should be 'float32', 'int8' or '2bit', got {name!r}")
    return Codec(name, width)
