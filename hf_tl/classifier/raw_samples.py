"""Whatever a user points at -> samples to classify, each with a name: files, folders, tables, or objects in memory.

Nothing is read before its turn, and nothing is ever fetched from an address.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeGuard

from datasets import Dataset

from hf_tl.audio_folder import RECORDINGS
from hf_tl.containers import as_table
from hf_tl.data import FILE_FORMATS, Samples, as_samples, load_table
from hf_tl.errors import InputError
from hf_tl.input_column import PLURALS


FILE_COLUMNS = ("file", "file_name", "filename", "path", "filepath", "image", "audio")
ADDRESSES = ("http:", "https:", "ftp:", "file:", "s3:", "gs:", "hf:")


@dataclass(frozen=True)
class RawSamples:
    """Samples to classify.

    Attributes:
        samples: the raw inputs, in order; labels where there are some.
        names: of each: a path below the folder, or the number of its row.
        kind: what the names are, "file" or "row".
        left_out: files of the folder that are of another kind by their ending.
        files: where the samples are, if each is a file.
    """

    samples: Samples
    names: Sequence[str]
    kind: Literal["file", "row"] = "row"
    left_out: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


def read_raw(data: object, *, modality: str, columns: Sequence[str] = (), labelled: bool = False) -> RawSamples:
    """Samples to classify.

    Args:
        data: a folder, searched to its bottom; a .csv, .tsv, .json, .jsonl or .parquet file, of texts or of paths; one
            file; or a sequence of paths, PIL images, arrays, recordings or texts; a `datasets.Dataset`, a DataFrame,
            `Samples`.
        modality: what the network reads: "image", "text", "audio" or "array".
        columns: of a table, those to read where it has them all; two for pairs of texts.
        labelled: whether the column of labels is looked for.

    Raises:
        InputError: nothing there, an address instead of a file, a folder without a file of the kind.
    """
    if isinstance(data, (str, os.PathLike)):
        return _from_path(str(data), modality, columns, labelled)
    if isinstance(data, (list, tuple)):
        for value in data:
            _check_no_address(value, modality)
        if modality != "text" and data and all(isinstance(value, (str, os.PathLike)) for value in data):
            files = [str(value) for value in data]
            return RawSamples(as_samples(files, modality=modality), files, "file", files=tuple(files))
    samples = _of_table(data, modality, columns, labelled)
    return RawSamples(samples, _Numbers(len(samples)))


def _of_table(data: object, modality: str, columns: Sequence[str], labelled: bool, name: str = "samples") -> Samples:
    """Samples of a table or a sequence; of a table that has the columns, these alone where labels are not wanted."""
    if len(columns) == 2 and not labelled and _are_pairs(data):
        data = Dataset.from_dict({column: [pair[k] for pair in data] for k, column in enumerate(columns)})
    table = as_table(data)
    if table is None or not columns or not set(columns) <= set(table.column_names):
        return as_samples(data, modality=modality, name=name)
    if not labelled and table.format["type"] != "custom":  # a transform may need the others
        table = table.select_columns(list(columns))
    return as_samples(table, modality=modality, input_column=list(columns), name=name)


def _are_pairs(data: object) -> TypeGuard[Sequence[tuple[str, str]]]:
    """Whether it is a sequence of two texts each, which may come again and again as classes do."""
    return isinstance(data, (list, tuple)) and all(
        isinstance(value, tuple) and len(value) == 2 and all(isinstance(text, str) for text in value) for value in data
    )


@dataclass(frozen=True)
class _Numbers(Sequence[str]):
    """The numbers of rows, as words."""

    n: int

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # nobody asks for a slice
        return str(range(self.n)[index])


class _TextFiles(Sequence[Mapping[str, str]]):
    """Files of UTF-8 text, each a sample, read when it is asked for."""

    def __init__(self, files: Sequence[str]):
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, str]:  # type: ignore[override]  # nobody asks for a slice
        return {"input": Path(self._files[index]).read_text(encoding="utf-8")}


def _from_path(path: str, modality: str, columns: Sequence[str], labelled: bool) -> RawSamples:
    _check_no_address(path, "")
    if os.path.isdir(path):
        return _from_folder(Path(path), modality)
    if not os.path.exists(path):
        hint = "; a text goes into a list: predict([text])" if modality == "text" else ""
        raise InputError(f"{path!r} is neither a file nor a folder here{hint}")
    if Path(path).suffix.lower() in FILE_FORMATS:
        return _from_table(path, modality, columns, labelled)
    return RawSamples(_of_files([path], modality), [path], "file", files=(path,))


def _from_folder(folder: Path, modality: str) -> RawSamples:
    endings = _endings(modality)
    found: list[str] = []
    left_out: list[str] = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                (found if Path(name).suffix.lower() in endings else left_out).append(str(Path(place, name)))
    if not found:
        some = f", but {', '.join(Path(name).name for name in left_out[:3])}" if left_out else ""
        raise InputError(f"{str(folder)!r} holds no {PLURALS[modality]} ({', '.join(sorted(endings))}){some}")
    names, others = ([str(Path(name).relative_to(folder)) for name in part] for part in (found, left_out))
    return RawSamples(_of_files(found, modality), names, "file", tuple(others), tuple(found))


def _endings(modality: str) -> set[str]:
    if modality == "image":
        from PIL import Image

        Image.init()
        return {ending for ending, kind in Image.EXTENSION.items() if kind in Image.OPEN} - {".pdf", ".mpg", ".mpeg"}
    known = {"audio": set(RECORDINGS), "text": {".txt", ".md"}}
    if modality not in known:
        raise InputError(
            f"a folder holds images, texts or recordings, but this network reads {modality}s; give a list"
        )
    return known[modality]


def _of_files(files: Sequence[str], modality: str) -> Samples:
    if modality == "text":
        return Samples(_TextFiles(files), "input", name="files")
    return replace(as_samples(list(files), modality=modality), name="files")


def _from_table(path: str, modality: str, columns: Sequence[str], labelled: bool) -> RawSamples:
    table = load_table(path)
    if modality in ("image", "audio"):
        strings = [
            name
            for name in (*columns, *FILE_COLUMNS)
            if name in table.column_names and table.features[name].dtype in ("string", "large_string")
        ]
        if strings:
            named = [str(value) for value in table[strings[0]]]
            for value in named:
                _check_no_address(value, modality)
            files = [os.path.join(os.path.dirname(path), value) for value in named]
            return RawSamples(_of_files(files, modality), named, "file", files=tuple(files))
    samples = _of_table(table, modality, columns, labelled, os.path.basename(path))
    return RawSamples(samples, _Numbers(len(samples)))


def _check_no_address(value: object, modality: str) -> None:
    if modality != "text" and isinstance(value, str) and value.lower().startswith(ADDRESSES):
        raise InputError(f"{value[:80]!r} is an address, and only files are opened; download it, and give its path")
