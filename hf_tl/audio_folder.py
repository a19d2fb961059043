"""A folder of recordings -> datasets, a sub-folder a class; `datasets` itself needs torchcodec to list them."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from hf_tl.errors import InputError


if TYPE_CHECKING:
    from datasets import DatasetDict

RECORDINGS = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".aiff", ".aif", ".wma")
SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
}
TABLES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".arrow")


def holds_recordings(folder: str) -> bool:
    """Whether a folder has recordings, and no table that says more about them."""
    endings = {ending for _, ending in _files(folder)}
    return bool(endings & set(RECORDINGS)) and not endings & set(TABLES)


def load_audio_folder(folder: str) -> DatasetDict:
    """The splits of a folder: train/CLASS/1.wav and so on, or CLASS/1.wav for one split.

    The columns are "audio", files that are decoded when they are read, and "label".

    Raises:
        InputError: recordings beside the folders of classes.
    """
    from datasets import Audio, ClassLabel, Dataset, DatasetDict

    found: dict[str, list[tuple[str, str]]] = defaultdict(list)  # split -> class and file
    for path, ending in _files(folder):
        if ending not in RECORDINGS:
            continue
        parts = Path(path).relative_to(folder).parts
        split = SPLITS.get(parts[0].lower()) if len(parts) > 2 else None
        if len(parts) < 2 or (split is None and parts[0].lower() in SPLITS):
            raise InputError(f"{path!r} lies in no folder of a class; put each class into a sub-folder of its own")
        found[split or "train"].append((parts[-2], path))
    names = sorted({name for files in found.values() for name, _ in files})
    splits = {}
    for split, files in found.items():
        table = {
            "audio": [{"bytes": None, "path": path} for _, path in files],
            "label": [names.index(name) for name, _ in files],
        }
        undecoded = Dataset.from_dict(table).cast_column("audio", Audio(decode=False))
        splits[split] = undecoded.cast_column("label", ClassLabel(names=names))
    return DatasetDict(splits)


def _files(folder: str) -> list[tuple[str, str]]:
    """Files below a folder and their endings, hidden ones left out."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            (os.path.join(place, name), Path(name).suffix.lower())
            for name in sorted(files)
            if not name.startswith(".")
        ]
    return found
