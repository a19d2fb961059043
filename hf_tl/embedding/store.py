"""An embedding in a folder: rows written at their index in the dataset, so that a pass can be resumed or shared.

    embedding.json            what it is: layers, labels' names, fingerprints of what it was made of
    raw.f32, raw.crc          raw activations, one row after the other, and a checksum a row: 0 where the row is not
                              there yet, SKIPPED where its sample cannot be read
    features.bin, features.crc  the rows as features: float32, int8, or two bits a value
    index.safetensors         which sample of the dataset each row is, and its label; written when all rows are there
    statistics.safetensors    of the training samples, where they were fitted here

A row is written first and its checksum after it, so a row with a checksum is whole; whatever a crash left in
between is read again. The processes of one run write rows of one folder at the same time, two runs never.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, pairwise
from pathlib import Path

import numpy as np

from hf_tl.embedding.autotune import Choice
from hf_tl.embedding.batches import Processes
from hf_tl.embedding.fingerprint import fingerprint_bytes, fingerprint_json
from hf_tl.embedding.stored_array import SKIPPED, Codec, StoredArray, checksums
from hf_tl.errors import InputError
from hf_tl.files import make_folder, write_whole


FORMAT = "hf_tl embedding 3"
MANIFEST, LOCK = "embedding.json", ".lock"
RAW, RAW_SUMS, FEATURES, FEATURE_SUMS = "raw.f32", "raw.crc", "features.bin", "features.crc"
INDEX, STATISTICS = "index.safetensors", "statistics.safetensors"
ROWS_AT_ONCE = 256


class Store:
    """A folder that holds an embedding, whole or half made.

    Attributes:
        folder: where it is.
        manifest: what stands in embedding.json.
        n_rows: samples of the dataset, read or not.
        width: number of raw features.
    """

    def __init__(self, folder: Path, manifest: dict):
        self.folder = folder
        self.manifest = manifest
        self.n_rows: int = manifest["n_samples"]
        self.width: int = manifest["layers"][-1]["stop"]

    @classmethod
    def create(cls, folder: str | Path, manifest: Mapping) -> Store:
        """Opens the folder to write rows: a new one, or one that holds rows of the same making.

        Args:
            folder: made where it is not there.
            manifest: "n_samples", "layers", "fingerprints" and whatever else belongs to the embedding.

        Raises:
            InputError: the folder holds an embedding that was made of something else, with what differs; or the
                disk has no room.
        """
        folder = make_folder(folder)
        manifest = {"format": FORMAT, **manifest, "features": None, "files": {}}
        if (folder / MANIFEST).exists():
            store = cls(folder, read_manifest(folder))
            store._check_same(manifest)
        else:
            store = cls(folder, manifest)
        if store.has_raw or store.manifest["features"] is None:  # else they were dropped on purpose
            done = _read_sums(folder / RAW_SUMS) if (folder / RAW_SUMS).exists() else np.empty(0)
            store._allot(RAW, store.n_rows * store.width * 4, there=int((done != 0).sum()) * store.width * 4)
        store._allot(RAW_SUMS, store.n_rows * 4)
        store.write_manifest()
        return store

    @classmethod
    def open(cls, folder: str | Path) -> Store:
        """Opens a folder to read it.

        Raises:
            InputError: no embedding there, or one that is damaged.
        """
        return cls(Path(folder), read_manifest(Path(folder)))

    @property
    def choice(self) -> Choice:
        """The batch size and memory layout that were chosen for the pass; empty where none were yet."""
        return self.manifest.get("choice", {})

    def keep_choice(self, choice: Choice) -> None:
        """Writes down what was chosen for the pass, so that it goes on like that when it resumes."""
        if choice != self.choice:
            self.manifest["choice"] = dict(choice)
            self.write_manifest()

    def write_manifest(self) -> None:
        """Writes embedding.json in one step: a reader sees the old one or the new one."""
        self.manifest["digest"] = _digest(self.manifest)
        write_whole(self.folder / MANIFEST, json.dumps(self.manifest, indent=1) + "\n")

    @property
    def sums(self) -> np.ndarray:
        """(n_rows,) uint32, the checksums of the raw rows as they stand in the file now.

        Raises:
            InputError: the file was cut short.
        """
        return self._sums(RAW_SUMS)

    @property
    def positions(self) -> np.ndarray:
        """(rows,) where the rows stand that are there and were not skipped."""
        sums = self.sums
        return np.flatnonzero((sums != 0) & (sums != SKIPPED))

    def verify(self) -> np.ndarray:
        """Checks every row against its checksum and forgets those that differ; (n_rows,) bool, which rows are done."""
        sums = self.sums
        there = np.flatnonzero((sums != 0) & (sums != SKIPPED))
        unchecked = self._array(RAW, Codec("float32", self.width), there, np.zeros(self.n_rows, np.uint32))
        damaged: list[int] = []
        for positions, rows in _chunks(there):
            damaged += positions[checksums(unchecked[rows]) != sums[positions]].tolist()
        if damaged:
            sums[damaged] = 0
            self._write(RAW_SUMS, sums.tobytes(), 0)
        return sums != 0

    def write_rows(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Writes raw rows at their indices: rows (n,), values (n, width). Writing a row again changes nothing."""
        self._write_rows(RAW, RAW_SUMS, rows, np.ascontiguousarray(values, dtype="<f4"))

    def skip_rows(self, rows: np.ndarray) -> None:
        """Marks rows whose samples cannot be read."""
        self._mark(RAW_SUMS, rows, np.full(len(rows), SKIPPED))

    def raw_chunks(self, positions: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Raw rows, some at a time: (positions (n,), values (n, width))."""
        raw = self.raw(positions)
        return ((part, raw[rows]) for part, rows in _chunks(positions))

    def raw(self, positions: np.ndarray) -> StoredArray:
        """The raw activations of some rows."""
        return self._array(RAW, Codec("float32", self.width), positions, self.sums)

    def features(self, positions: np.ndarray) -> StoredArray:
        """The features of some rows."""
        codec = Codec(self.manifest["features"]["codec"], self.width)
        return self._array(FEATURES, codec, positions, self._sums(FEATURE_SUMS))

    def make_features(
        self, scale: Callable[[np.ndarray], np.ndarray], about: Mapping, *, codec: Codec, processes: Processes
    ) -> None:
        """Writes the features of all rows, unless they are there; when it returns, all processes have.

        Args:
            scale: raw activations (n, width) -> features.
            about: how they are made, in what JSON can hold.
            codec: how they stand in the file.
            processes: who takes part.

        Raises:
            InputError: the raw activations were dropped and the features are of another recipe, or damaged.
        """
        about = {"codec": codec.name, **about}
        if processes.gather(self.manifest["features"] == about and self._has_features())[0]:
            return
        if not self.has_raw:
            what = "damaged features" if self.manifest["features"] == about else "features of another recipe"
            raise InputError(
                f"{str(self.folder)!r} holds {what}, and its raw activations were dropped; choose another folder"
            )
        if processes.main:
            self.allot_features(codec)
        processes.wait()
        for positions, values in self.raw_chunks(processes.share(self.positions)):
            self.write_features(positions, scale(values), codec)
        processes.wait()
        if processes.main:
            self.finish_features(about)

    def allot_features(self, codec: Codec) -> None:
        """Makes room for features; those of an earlier recipe are no longer valid."""
        there = self.manifest["features"] is not None and (self.folder / FEATURES).exists()
        self.manifest["features"] = None
        self.write_manifest()
        n_bytes = self.n_rows * codec.n_bytes
        self._allot(FEATURES, n_bytes, there=n_bytes if there else 0)
        self._allot(FEATURE_SUMS, self.n_rows * 4)

    def write_features(self, positions: np.ndarray, values: np.ndarray, codec: Codec) -> None:
        """Writes features at the positions of their rows: positions (n,), values (n, width)."""
        self._write_rows(FEATURES, FEATURE_SUMS, positions, codec.encode(values))

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

    def declare_rows(self, rows: np.ndarray) -> None:
        """Marks rows as there that have features only."""
        self._mark(RAW_SUMS, rows, np.ones(len(rows), np.uint32))

    def write_tensors(self, name: str, tensors: Mapping[str, np.ndarray]) -> None:
        """Writes index.safetensors or statistics.safetensors in one step, and its digest into embedding.json."""
        from safetensors.numpy import save

        content = save(dict(tensors))
        write_whole(self.folder / name, content)
        digests = self.manifest["files"]
        if digests.get(name) != (digest := fingerprint_bytes(content)):
            digests[name] = digest
            self.write_manifest()

    def read_tensors(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of index.safetensors or statistics.safetensors.

        Raises:
            InputError: a file that is missing, or not the one that was written.
        """
        tensors = read_tensors(self.folder / name)
        if fingerprint_bytes((self.folder / name).read_bytes()) != self.manifest["files"].get(name):
            raise InputError(f"the embedding in {str(self.folder)!r} is damaged: {name} has changed; make it again")
        return tensors

    def _has_features(self) -> bool:
        """Whether every row is among the features, and none damaged."""
        features = self.features(self.positions)
        try:
            for _, rows in _chunks(features.positions):
                features[rows, :1]
        except (InputError, OSError, ValueError):
            return False
        return True

    def _array(self, name: str, codec: Codec, positions: np.ndarray, sums: np.ndarray) -> StoredArray:
        return StoredArray(self.folder / name, codec, positions, ((0, self.width),), sums)

    def _sums(self, name: str) -> np.ndarray:
        sums = _read_sums(self.folder / name)
        if len(sums) != self.n_rows:
            raise InputError(
                f"the embedding in {str(self.folder)!r} is damaged: {name} holds {len(sums)} checksums of "
                f"{self.n_rows} rows; repeat the command that made it, and what is missing is read again"
            )
        return sums

    def _check_same(self, manifest: Mapping) -> None:
        old, new = self.manifest["fingerprints"], manifest["fingerprints"]
        if self.n_rows != manifest["n_samples"]:
            old, new = {**old, "samples": self.n_rows}, {**new, "samples": manifest["n_samples"]}
        differing = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
        if differing:
            raise InputError(
                f"{str(self.folder)!r} holds an embedding that was made of other {', '.join(differing)}; nothing was "
                f"changed: choose another folder, delete this one, or repeat what made it"
            )

    def _allot(self, name: str, n_bytes: int, *, there: int = 0) -> None:
        """Gives a file its size; `there` bytes of it are on the disk already, the rest must find room."""
        free = shutil.disk_usage(self.folder).free
        if n_bytes - there > free:
            raise InputError(
                f"{name} in {str(self.folder)!r} needs {n_bytes / 2**20:,.0f} MiB, and {free / 2**20:,.0f} MiB are "
                f"free on that disk; choose another folder, or fewer layers with taps=... (--taps)"
            )
        with open(self.folder / name, "ab") as file:
            file.truncate(n_bytes)

    def _write_rows(self, name: str, sums: str, rows: np.ndarray, stored: np.ndarray) -> None:
        for first, last in _runs(rows):
            self._write(name, stored[first:last].data, int(rows[first]) * stored.itemsize * stored.shape[1])
        self._mark(sums, rows, checksums(stored))

    def _mark(self, name: str, rows: np.ndarray, sums: np.ndarray) -> None:
        sums = np.ascontiguousarray(sums, dtype="<u4")
        for first, last in _runs(rows):
            self._write(name, sums[first:last].data, int(rows[first]) * 4)

    def _write(self, name: str, content: memoryview | bytes, offset: int) -> None:
        content = memoryview(content).cast("B")
        try:
            with open(self.folder / name, "r+b", buffering=0) as file:
                file.seek(offset)
                while content:
                    content = content[file.write(content) :]
        except OSError as error:
            raise InputError(f"{name} in {str(self.folder)!r} cannot be written: {error.strerror}") from error


@contextmanager
def writing(folder: str | Path) -> Iterator[None]:
    """Inside, no other run writes into the folder.

    Raises:
        InputError: another one does, in this process or in another.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(make_folder(folder) / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(
            f"another run is writing into {str(folder)!r}; wait for it and repeat this one, or choose another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


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
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"the embedding in {str(folder)!r} cannot be read: {error}") from error
    try:
        _check(manifest)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise InputError(
            f"the embedding in {str(folder)!r} is damaged: {error!r}; make it again with hf-tl embed"
        ) from error
    return manifest


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


def _check(manifest: dict) -> None:
    if manifest["format"] != FORMAT:
        raise ValueError(f"format should be {FORMAT!r}, got {manifest['format']!r}")
    if manifest["digest"] != _digest(manifest):
        raise ValueError("it was changed after it was written")
    stop = 0
    for layer in manifest["layers"]:
        start, next_stop = _whole(layer["start"]), _whole(layer["stop"])
        if start != stop or next_stop <= stop:
            raise ValueError(f"the columns of layer {layer['name']!r} do not follow those of the layer before it")
        stop = next_stop
        _all(str, [layer["name"], layer["kind"], layer["place"]])
        if type(layer["depth"]) not in (int, float) or not 0 <= layer["depth"] <= 1:
            raise ValueError(f"the depth of layer {layer['name']!r} should be from 0 to 1, got {layer['depth']!r}")
    if stop == 0 or _whole(manifest["n_samples"]) < 1:
        raise ValueError("an embedding has one row and one column at least")
    if manifest["activation"] not in ("after", "before"):
        raise ValueError(f"activation should be 'after' or 'before', got {manifest['activation']!r}")
    _all(dict, [manifest["fingerprints"], manifest["files"]])
    _all(str, [manifest.get("network", ""), *manifest["fingerprints"].values(), *manifest["files"].values()])
    names = [manifest[key] for key in ("class_names", "label_values") if manifest.get(key) is not None]
    _all(list, names)
    _all(str, chain(*names))
    choice = manifest.get("choice", {})
    if choice and (_whole(choice["batch_size"]) < 1 or type(choice["channels_last"]) is not bool):
        raise ValueError(f"choice should be a batch size and a memory layout, got {choice!r}")
    if manifest["features"] is not None:
        Codec(manifest["features"]["codec"], stop)


def _all(kind: type, values: Iterable) -> None:
    for value in values:
        if type(value) is not kind:
            raise TypeError(f"expected a {kind.__name__}, got {value!r:.80}")


def _whole(value: object) -> int:
    if type(value) is not int:
        raise TypeError(f"expected a whole number, got {value!r}")
    return value


def _digest(manifest: Mapping) -> str:
    return fingerprint_json({key: value for key, value in manifest.items() if key != "digest"})


def _read_sums(path: Path) -> np.ndarray:
    return np.fromfile(path, np.dtype("<u4"))


def _chunks(positions: np.ndarray) -> Iterator[tuple[np.ndarray, slice]]:
    """Some of the positions at a time, and which of them they are."""
    for start in range(0, len(positions), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        yield positions[rows], rows


def _runs(rows: np.ndarray) -> Iterator[tuple[int, int]]:
    """Slices of `rows` that are consecutive numbers."""
    bounds = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
    return ((first, last) for first, last in pairwise(bounds) if first < last)
