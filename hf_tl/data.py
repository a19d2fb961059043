"""A name -> a target task: training and test samples with their input column, labels and class names."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hf_tl.errors import InputError, in_one_line
from hf_tl.names import closest


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

FILE_FORMATS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "validation", "valid", "val", "dev", "eval")
LABEL_NAMES = ("label", "labels", "target", "class", "category")
TEXT_NAMES = ("text", "sentence", "content", "review", "document", "question")
PLURALS = {"image": "images", "text": "texts", "audio": "recordings", "array": "arrays"}
EMPTY = ("corresponds to no data", "BatchSize must be greater than 0")  # how datasets says that a file has no samples
HELD_OUT = 0.2  # share of the training samples that becomes the test set where a dataset has none


@dataclass(frozen=True)
class Samples:
    """Samples whose input and labels are known.

    Attributes:
        dataset: `datasets.Dataset`, or a sequence of mappings.
        input_column: key of the raw input.
        labels: (samples,) integers or strings, or None for unlabelled samples.
        class_names: names of the integer labels, or None.
        name: what messages call these samples.
    """

    dataset: Sequence[Mapping] | Dataset
    input_column: str
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None
    name: str = "samples"

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> object:
        """The raw input of one sample; a corrupt image raises here."""
        value = self.dataset[index][self.input_column]
        if value is None:
            raise ValueError(f"column {self.input_column!r} is empty")
        return value


@dataclass(frozen=True)
class Task:
    """A classification task to transfer to.

    Attributes:
        train: the samples to learn from; at least two classes.
        test: the samples to evaluate on; not empty.
        notes: what had to be decided to make the two, in sentences for the user.
    """

    train: Samples
    test: Samples
    notes: tuple[str, ...] = ()


def load_task(
    name: str, *, modality: str, label: str | None = None, input_column: str | None = None, config: str | None = None
) -> Task:
    """Loads a labelled dataset as training and test samples.

    The test samples are the labelled split named test, else validation; where there is neither, a fifth of the
    training samples is held out, the same fifth each time.

    Args:
        name: a Hub id; a .csv, .tsv, .json, .jsonl or .parquet file; a folder of images, one sub-folder a class;
            or any other folder that `datasets.load_dataset` reads.
        modality: what the network reads: "image", "text" or "audio".
        label: the label column; found where there is one candidate only.
        input_column: the column to read; found likewise.
        config: the configuration of the dataset, where it has several.

    Raises:
        InputError: no such dataset, no label column, an empty split, one class only.
    """
    splits = _load(name, config)
    for split, samples in splits.items():
        if len(samples) == 0:
            raise InputError(f"split {split!r} of {name!r} is empty (0 samples); there is nothing to train or test on")
    train_name = next((split for split in TRAIN_NAMES if split in splits), None)
    if train_name is None:
        if len(splits) != 1:
            raise InputError(f"{name!r} has no split 'train', but {sorted(splits)}; rename one to 'train'")
        train_name = next(iter(splits))
    train = as_samples(splits[train_name], modality=modality, label=label, input_column=input_column, name=train_name)
    if train.labels is None:
        raise InputError(
            f"{name!r} has no column that is recognised as the label among {splits[train_name].column_names}; "
            f"name it with label=... (--label), or put each class of images in a sub-folder of its own, two or more"
        )
    test, notes = None, []
    for split in TEST_NAMES:
        if split in splits and split != train_name:
            samples = as_samples(
                splits[split], modality=modality, label=label, input_column=train.input_column, name=split
            )
            if samples.labels is None:
                notes.append(f"split {split!r} has no labels and is not used")
            else:
                test = samples
                notes += [] if split == "test" else [f"tested on split {split!r}"]
                break
    if test is None:
        train, test = _hold_out(train)
        notes.append(f"no labelled test split: {len(test)} of {len(test) + len(train)} training samples are held out")
    classes = np.unique(train.labels)
    if len(classes) < 2:
        only = train.class_names[classes[0]] if train.class_names is not None else classes[0]
        raise InputError(
            f"the {len(train)} training samples of {name!r} have one class only, {str(only)!r}; expected two or more"
        )
    return Task(train, test, tuple(notes))


def as_samples(
    dataset: Dataset,
    *,
    modality: str,
    label: str | None = None,
    input_column: str | None = None,
    name: str = "samples",
) -> Samples:
    """Finds the input column and the labels of one split; `labels` stays None where no column looks like one.

    Raises:
        InputError: a named column that does not exist, several candidates, or labels that are not classes.
    """
    columns = dataset.column_names
    for wanted in (label, input_column):
        if wanted is not None and wanted not in columns:
            raise InputError(f"there is no column {wanted!r} among {columns}; {closest(wanted, columns)}")
    label = label or _find_label(dataset)
    input_column = input_column or _find_input(dataset, modality, label)
    labels, class_names = (None, None) if label is None else _read_labels(dataset, label)
    dataset = _undecoded(dataset, input_column)
    return Samples(dataset.select_columns(input_column), input_column, labels, class_names, name)


def _load(name: str, config: str | None) -> DatasetDict:
    import datasets

    suffix = os.path.splitext(name)[1].lower()
    try:
        if suffix in FILE_FORMATS and not os.path.isdir(name):
            if not os.path.isfile(name):
                raise InputError(f"data file {name!r} does not exist")
            options = {"sep": "\t"} if suffix == ".tsv" else {}
            return datasets.load_dataset(FILE_FORMATS[suffix], data_files=name, **options)
        if not os.path.isdir(name) and name.startswith((".", "~", os.sep)):
            raise InputError(f"data folder {name!r} does not exist")
        return datasets.load_dataset(name, config)
    except InputError:
        raise
    except Exception as error:  # whatever a foreign file does to its reader, the file is at fault
        said = in_one_line(error.__cause__ or error)
        if any(words in said for words in EMPTY):
            raise InputError(
                f"a split of {name!r} is empty (0 samples); there is nothing to train or test on"
            ) from error
        raise InputError(f"datasets could not load {name!r}: {said}") from error


def _find_label(dataset: Dataset) -> str | None:
    from datasets import ClassLabel

    classes = [name for name, feature in dataset.features.items() if isinstance(feature, ClassLabel)]
    named = [name for name in LABEL_NAMES if name in (classes or dataset.column_names)]
    if named:
        return named[0]
    if len(classes) > 1:
        raise InputError(f"several columns hold classes: {classes}; name one with label=... (--label)")
    return classes[0] if classes else None


def _find_input(dataset: Dataset, modality: str, label: str | None) -> str:
    from datasets import Audio, Image, Value

    kinds = {
        "audio": lambda feature: isinstance(feature, Audio),
        "image": lambda feature: isinstance(feature, Image),
        "text": lambda feature: isinstance(feature, Value) and feature.dtype in ("string", "large_string"),
        "array": lambda feature: True,
    }
    found = [name for name, feature in dataset.features.items() if name != label and kinds[modality](feature)]
    if not found:
        raise InputError(
            f"the network reads {PLURALS[modality]}, but no column of the data holds one: "
            f"{ {name: type(feature).__name__ for name, feature in dataset.features.items()} }; "
            f"name the column with input_column=... (--input)"
        )
    preferred = [name for name in TEXT_NAMES if name in found]
    if len(found) > 1 and not preferred:
        raise InputError(
            f"several columns hold {PLURALS[modality]}: {found}; name one with input_column=... (--input)"
        )
    return (preferred or found)[0]


def _undecoded(dataset: Dataset, column: str) -> Dataset:
    """Recordings as files, which `hf_tl.audio` reads: the decoder of `datasets` is a package of its own."""
    from datasets import Audio

    return dataset.cast_column(column, Audio(decode=False)) if isinstance(dataset.features[column], Audio) else dataset


def _read_labels(dataset: Dataset, label: str) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    from datasets import ClassLabel

    feature = dataset.features[label]
    values = dataset.select_columns(label)[:][label]
    names = tuple(feature.names) if isinstance(feature, ClassLabel) else None
    missing = [i for i, value in enumerate(values) if value is None or (names is not None and value < 0)]
    if len(missing) == len(values):
        return None, names
    if missing:
        raise InputError(
            f"{len(missing)} of {len(values)} samples have no value in label column {label!r}, "
            f"first sample {missing[0]}"
        )
    labels = np.asarray(values)
    if labels.ndim != 1 or labels.dtype.kind not in "iubU":
        raise InputError(
            f"label column {label!r} should hold one class per sample (integers or strings), "
            f"got {type(values[0]).__name__}"
        )
    return labels, names


def _hold_out(samples: Samples) -> tuple[Samples, Samples]:
    """Splits off a fifth of each class, with a fixed seed; a class of one sample stays in training."""
    generator = np.random.default_rng(0)
    test = []
    for value in np.unique(samples.labels):
        members = generator.permutation(np.flatnonzero(samples.labels == value))
        test.extend(members[: min(max(1, round(HELD_OUT * len(members))), len(members) - 1)])
    if not test:
        raise InputError(f"there is no test split, and none can be held out: {len(samples)} samples, one per class")
    chosen = np.zeros(len(samples), dtype=bool)
    chosen[test] = True

    def part(mask: np.ndarray, name: str) -> Samples:
        return Samples(
            samples.dataset.select(np.flatnonzero(mask)),
            samples.input_column,
            samples.labels[mask],
            samples.class_names,
            name,
        )

    return part(~chosen, samples.name), part(chosen, "test")
