"""An embedding in a folder: rows written at their index in the dataset, so that a pass can be continued or shared.

    embedding.json            what it is: layers, labels' names, fingerprints of what it was made of
    raw.f32                   raw activations, one row after the other
    raw.crc                   a checksum a row: 0 where the row is not there yet, SKIPPED where it cannot be read
    features.bin              the rows as features: float32, int8, or two bits a value
    index.safetensors         which row of the dataset each row is, and its label; written when all rows are there
    statistics.safetensors    of the training rows, where they were fitted here

A row is written first and its checksum after it, so a row with a checksum is whole; whatever a crash left in
between is read again. Several processes may write rows of one folder at the same time.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from hf_tl.embedding.codec import Codec, find_codec
from hf_tl.embedding.stored_array import StoredArray
from hf_tl.errors import InputError


FORMAT = "hf_tl embedding 2"
MANIFEST, RAW, CHECKSUMS, FEATURES = "embedding.json", "raw.f32", "raw.crc", "features.bin"
INDEX, STATISTICS = "index.safetensors", "statistics.safetensors"
SKIPPED = np.uint32(0xFFFFFFFF)
ROWS_AT_ONCE = 256


class Store:
    """A folder that holds an embedding, whole or half made.

    Attributes:
        folder: where it is.
        manifest: what stands in embedding.json.
        n_rows: rows of the dataset, read or not.
        width: number of raw features.
    """

    def __init__(self, folder: Path, manifest: dict):
        self.folder = folder
        self.manifest = manifest
        self.n_rows = manifest["n_rows"]
        self.width = manifest["layers"][-1]["stop"]

    @classmethod
    def create(cls, folder: str | Path, manifest: Mapping) -> Store:
        """Opens the folder to write rows: a new one, or one that holds rows of the same making.

        Args:
            folder: made where it is not there.
            manifest: "n_rows", "layers", "fingerprints" and whatever else belongs to the embedding.

        Raises:
            InputError: the folder holds an embedding that was made of something else, with what differs; or the
                disk has no room.
        """
        folder = Path(folder)
        manifest = {"format": FORMAT, **manifest, "features": None}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{str(folder)!r} cannot be made a folder: {error.strerror}") from error
        if (folder / MANIFEST).exists():
            store = cls(folder, read_manifest(folder))
            store._check_same(manifest)
        else:
            store = cls(folder, manifest)
        store._allot(RAW, store.n_rows * store.width * 4)
        store._allot(CHECKSUMS, store.n_rows * 4)
        store.write_manifest()
        return store

    @classmethod
    def open(cls, folder: str | Path) -> Store:
        """Opens a folder to read it.

        Raises:
            InputError: no embedding there, or one that is damaged.
        """
        return cls(Path(folder), read_manifest(Path(folder)))

    def write_manifest(self) -> None:
        """Writes embedding.json in one step: a reader sees the old one or the new one."""
        replace_file(self.folder / MANIFEST, (json.dumps(self.manifest, indent=1) + "\n").encode())

    @property
    def checksums(self) -> np.ndarray:
        """(n_rows,) uint32, as they stand in the file now."""
        return np.fromfile(self.folder / CHECKSUMS, np.dtype("<u4"))

    @property
    def positions(self) -> np.ndarray:
        """(rows,) where the rows stand that are there and were not skipped."""
        sums = self.checksums
        return np.flatnonzero((sums != 0) & (sums != SKIPPED))

    def verify(self) -> np.ndarray:
        """Checks every row against its checksum and forgets those that differ; (n_rows,) bool, which rows are done."""
        sums = self.checksums
        damaged = [
            row
            for rows, values in self.raw_blocks(np.flatnonzero((sums != 0) & (sums != SKIPPED)))
            for row, checksum in zip(rows.tolist(), _checksums(values), strict=True)
            if checksum != sums[row]
        ]
        if damaged:
            sums[damaged] = 0
            self._write(CHECKSUMS, sums.tobytes(), 0)
        return sums != 0

    def write_rows(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Writes raw rows at their indices: rows (n,), values (n, width). Writing a row again changes nothing."""
        values = np.ascontiguousarray(values, dtype="<f4")
        for first, last in _runs(rows):
            self._write(RAW, values[first:last].data, int(rows[first]) * self.width * 4)
        self._mark(rows, _checksums(values))

    def skip_rows(self, rows: np.ndarray) -> None:
        """Marks rows that cannot be read."""
        self._mark(rows, np.full(len(rows), SKIPPED))

    def declare_rows(self, rows: np.ndarray) -> None:
        """Marks rows as there that have features only."""
        self._mark(rows, np.ones(len(rows), np.uint32))

    def raw_blocks(self, positions: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Raw rows, a block at a time: (positions (n,), values (n, width))."""
        raw = self.raw(positions)
        for start in range(0, len(positions), ROWS_AT_ONCE):
            yield positions[start : start + ROWS_AT_ONCE], raw[start : start + ROWS_AT_ONCE]

    def raw(self, positions: np.ndarray) -> StoredArray:
        """The raw activations of some rows."""
        return StoredArray(self.folder / RAW, Codec("float32", self.width), positions, ((0, self.width),))

    def features(self, positions: np.ndarray) -> StoredArray:
        """The features of some rows."""
        codec = find_codec(self.manifest["features"]["codec"], self.width)
        return StoredArray(self.folder / FEATURES, codec, positions, ((0, self.width),))

    def allot_features(self, codec: Codec) -> None:
        """Makes room for features; those of an earlier recipe are no longer valid."""
        self.manifest["features"] = None
        self.write_manifest()
        self._allot(FEATURES, self.n_rows * codec.n_bytes)

    def write_features(self, positions: np.ndarray, values: np.ndarray, codec: Codec) -> None:
        """Writes features at the positions of their rows: positions (n,), values (n, width)."""
        stored = codec.encode(values)
        for first, last in _runs(positions):
            self._write(FEATURES, stored[first:last].data, int(positions[first]) * codec.n_bytes)

    def finish_features(self, about: Mapping) -> None:
        """Declares the features whole; `about` says how they were made."""
        self.manifest["features"] = dict(about)
        self.write_manifest()

    def drop_raw(self) -> None:
        """Deletes the raw activations; the features stay."""
        (self.folder / RAW).unlink(missing_ok=True)

    @property
    def has_raw(self) -> bool:
        """Whether the raw activations are there."""
        return (self.folder / RAW).exists()

    def _check_same(self, manifest: Mapping) -> None:
        old, new = self.manifest["fingerprints"], manifest["fingerprints"]
        if self.manifest["n_rows"] != manifest["n_rows"]:
            old, new = {**old, "rows": self.manifest["n_rows"]}, {**new, "rows": manifest["n_rows"]}
        differing = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
        if differing:
            raise InputError(
                f"{str(self.folder)!r} holds an embedding that was made of other {', '.join(differing)}; nothing was "
                f"changed: choose another folder, delete this one, or repeat what made it"
            )

    def _allot(self, name: str, n_bytes: int) -> None:
        path = self.folder / name
        if name == RAW and self.manifest["features"] is not None and not path.exists():
            return  # dropped on purpose
        there = path.stat().st_blocks * 512 if path.exists() else 0
        free = shutil.disk_usage(self.folder).free
        if n_bytes - there > free:
            raise InputError(
                f"{name} in {str(self.folder)!r} needs {n_bytes / 2**20:,.0f} MiB, and {free / 2**20:,.0f} MiB are "
                f"free on that disk; choose another folder, or fewer layers with taps=... (--taps)"
            )
        with open(path, "ab") as file:
            file.truncate(n_bytes)

    def _mark(self, rows: np.ndarray, sums: np.ndarray) -> None:
        sums = np.ascontiguousarray(sums, dtype="<u4")
        for first, last in _runs(rows):
            self._write(CHECKSUMS, sums[first:last].data, int(rows[first]) * 4)

    def _write(self, name: str, content: memoryview | bytes, offset: int) -> None:
        descriptor = os.open(self.folder / name, os.O_WRONLY)
        try:
            content = memoryview(content).cast("B")
            while content:
                written = os.pwrite(descriptor, content, offset)
                content, offset = content[written:], offset + written
        except OSError as error:
            raise InputError(f"{name} in {str(self.folder)!r} cannot be written: {error.strerror}") from error
        finally:
            os.close(descriptor)


def read_manifest(folder: Path) -> dict:
    """What stands in a folder's embedding.json, checked as far as everything else relies on it.

    Raises:
        InputError: no such file, or not one of ours.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            f"{str(folder)!r} holds no embedding: {folder / MANIFEST} is missing; make it with hf-tl embed"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"the embedding in {str(folder)!r} cannot be read: {error}") from error
    try:
        _check(manifest)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(
            f"the embedding in {str(folder)!r} is damaged: {error!r}; make it again with hf-tl embed"
        ) from error
    return manifest


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file in one step."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def _check(manifest: dict) -> None:
    if manifest["format"] != FORMAT:
        raise ValueError(f"format should be {FORMAT!r}, got {manifest['format']!r}")
    stop = 0
    for layer in manifest["layers"]:
        if int(layer["start"]) != stop or int(layer["stop"]) <= stop:
            raise ValueError(f"the columns of layer {layer['name']!r} do not follow those of the layer before it")
        stop = int(layer["stop"])
    if stop == 0 or int(manifest["n_rows"]) < 1:
        raise ValueError("an embedding has one row and one column at least")
    if manifest["activation"] not in ("after", "before"):
        raise ValueError(f"activation should be 'after' or 'before', got {manifest['activation']!r}")
    manifest["fingerprints"].items()
    if manifest["features"] is not None:
        find_codec(manifest["features"]["codec"], stop)


def _runs(rows: np.ndarray) -> Iterator[tuple[int, int]]:
    """Slices of `rows` that are consecutive numbers."""
    cuts = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
    return ((first, last) for first, last in pairwise(cuts) if first < last)


def _checksums(values: Sequence[np.ndarray]) -> np.ndarray:
    """CRC-32 of each row; the two values that mean something else are moved by one."""
    sums = np.fromiter((zlib.crc32(row.data) for row in np.ascontiguousarray(values, "<f4")), np.uint32, len(values))
    sums[sums == 0] = 1
    sums[sums == SKIPPED] = SKIPPED - np.uint32(1)
    return sums
