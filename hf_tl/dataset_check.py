"""A look at data before a network is loaded: folders without classes, inputs that cannot be read, rare classes."""

from __future__ import annotations

import io
import os
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hf_tl.errors import InputError, in_one_line
from hf_tl.inputs import read_image, read_text
from hf_tl.labels import LabelTable, find_problem
from hf_tl.table import in_words


SPLITS = ("train", "training", "test", "validation", "valid", "val", "dev", "eval")
TABLES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow")
TEXTS = (".md", ".txt", ".html", ".pdf", "")  # what lies beside data without being any
IMBALANCED = 10  # times as many samples of the largest class as of the smallest
JPEG_END, PADDING = b"\xff\xd9", b"\0\r\n "


def check_folder(folder: str | Path) -> list[str]:
    """What there is to say about a folder of images or recordings, one sub-folder a class, in sentences.

    Args:
        folder: which may as well hold tables; then there is nothing to say.

    Raises:
        InputError: files that lie deeper or less deep than the others, so that `datasets` finds no classes at all.
    """
    files = [path.relative_to(folder) for path in _walk(Path(folder))]
    media = [path for path in files if path.suffix.lower() in _media_endings()]
    if not media or any(path.suffix.lower() in TABLES for path in files):
        return []
    split = [path for path in media if path.parts[0].lower() in SPLITS and len(path.parts) > 1]
    media = split or media  # beside folders of splits, datasets reads nothing else
    depths = Counter(len(path.parts) for path in media)
    if len(depths) > 1:
        usual = depths.most_common(1)[0][0]
        odd = Counter(str(path.parent) for path in media if len(path.parts) != usual)
        places = in_words([f"{place} ({n})" for place, n in odd.items()])
        raise InputError(
            f"{sum(odd.values())} of the {len(media)} files in {str(folder)!r} do not lie as deep as the others, so "
            f"their class cannot be told: {places}; move them into the folder of their class, or elsewhere"
        )
    notes = []
    others = [str(path) for path in files if path.suffix.lower() not in (*_media_endings(), *TEXTS)]
    if others:
        notes.append(f"{len(others)} files are neither images nor recordings and not read: {in_words(others)}")
    classes = {path.parent for path in media}
    empty = [
        str(path.relative_to(folder))
        for parent in {kept.parent for kept in classes}
        for path in sorted((Path(folder) / parent).iterdir())
        if path.is_dir() and not _is_hidden(path.name) and path.relative_to(folder) not in classes
    ]
    if empty and not split:
        notes.append(f"no file to read is in {in_words(empty)}")
    return notes


def find_bad_samples(dataset: Any, column: str, *, modality: str) -> dict[int, str]:
    """Which samples surely cannot be read, and why: number -> "name: reason".

    Of images headers and ends of files are looked at; one is decoded only where these leave a doubt.

    Args:
        dataset: a `datasets.Dataset`, or a sequence of mappings.
        column: of the input.
        modality: what the network reads: "image", "text" or "audio"; other inputs are not looked at.
    """
    import datasets

    looks: dict[str, Callable[[Any], object]] = {
        "image": _look_at_image,
        "audio": _look_at_recording,
        "text": read_text,
    }
    if modality not in looks:
        return {}
    if isinstance(dataset, datasets.Dataset):
        kind = {"image": datasets.Image, "audio": datasets.Audio}.get(modality)
        if kind is not None and isinstance(dataset.features[column], kind):
            dataset = dataset.cast_column(column, kind(decode=False))
    bad = {}
    for i in range(len(dataset)):
        value = dataset[i][column]
        try:
            if value is None:
                raise ValueError("it is empty")
            looks[modality](value)
        except Exception as error:  # whatever a foreign file does to its reader, the file is at fault
            path = value.get("path") if isinstance(value, Mapping) else value if modality != "text" else None
            bad[i] = f"{path or f'sample {i}'}: {in_one_line(error)}"
    return bad


def check_classes(taught: LabelTable, name: str) -> list[str]:
    """What there is to say about the classes of training samples, in sentences.

    Args:
        taught: their labels.
        name: of the dataset.

    Raises:
        InputError: one class, or one number, for all.
    """
    labels, problem = taught.labels, find_problem(taught.labels)
    if problem == "multilabel":
        return []
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2:
        what = "number" if problem == "regression" else "class"
        raise InputError(
            f"the {len(labels)} training samples of {name!r} have one {what} only, {taught.name_of(classes[0])!r}; "
            f"expected two or more"
        )
    if problem == "regression":
        return []
    notes, called = [], [taught.name_of(value) for value in classes.tolist()]
    single = [repr(called[i]) for i in np.flatnonzero(counts == 1)]
    if single:
        notes.append(f"one training sample is all there is of {in_words(single)}")
    most, fewest = int(counts.argmax()), int(counts.argmin())
    if counts[most] >= IMBALANCED * counts[fewest]:
        notes.append(
            f"the classes are imbalanced: {counts[most]} of {len(labels)} training samples "
            f"({counts[most] / len(labels):.0%}) are of class {called[most]!r}, {counts[fewest]} of class "
            f"{called[fewest]!r}"
        )
    return notes


def _look_at_image(value: object) -> None:
    """Raises where an image cannot be read."""
    if not isinstance(value, Mapping):
        return  # it is in memory already
    end = _end_of(value)
    if end is None:
        read_image(value)
        return
    with Image.open(value["path"] if value.get("bytes") is None else io.BytesIO(value["bytes"])) as image:
        if image.format == "PNG":
            image.verify()  # the sums of all parts
        elif image.format != "JPEG" or not end.rstrip(PADDING).endswith(JPEG_END):
            read_image(value)


def _look_at_recording(value: object) -> None:
    """Raises where a WAV file cannot be read, or another one is missing or empty."""
    from scipy.io import wavfile

    if not isinstance(value, Mapping) or "array" in value:
        return
    content = value.get("bytes")
    content = Path(value["path"]).read_bytes() if content is None else content
    if not content:
        raise ValueError("the file is empty")
    if content[:4] == b"RIFF":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # chunks of other programs
            wavfile.read(io.BytesIO(content))


def _end_of(file: Mapping) -> bytes | None:
    """The last bytes; None of an empty file."""
    if file.get("bytes") is not None:
        return file["bytes"][-64:] or None
    with open(file["path"], "rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(size - 64, 0))
        return stream.read() or None


def _walk(folder: Path) -> list[Path]:
    """All files, without those that `datasets` does not see."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        found += [Path(parent) / name for name in sorted(names) if not _is_hidden(name)]
    return found


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__"))


def _media_endings() -> frozenset[str]:
    from datasets.packaged_modules.audiofolder.audiofolder import AudioFolder
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    return frozenset((*ImageFolder.EXTENSIONS, *AudioFolder.EXTENSIONS))
