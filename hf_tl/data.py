"""A name -> a target task: training and test samples with their input column, labels and class names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

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
PAIR = "pair"  # the column of two that are read as one
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
    name: str,
    *,
    modality: str,
    label: str | None = None,
    input_column: str | Sequence[str] | None = None,
    config: str | None = None,
) -> Task:
    """Loads a labelled dataset as training and test samples.

    The test samples are the labelled split named test, else validation; where there is neither, a fifth of the
    training samples is held out, the same fifth each time.

    Labels of the test samples are numbered as the training samples' are.

    Args:
        name: a Hub id; a .csv, .tsv, .json, .jsonl or .parquet file; a folder of images, one sub-folder per class; a
            folder that `save_to_disk` wrote; or any other folder that `datasets.load_dataset` reads.
        modality: what the network reads: "image", "text" or "audio".
        label: the label column; found where there is one candidate only.
        input_column: the column to read, or two columns of texts that are read as pairs; one is found likewise.
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
                splits[split],
                modality=modality,
                label=label,
                input_column=input_column or train.input_column,
                name=split,
            )
            if samples.labels is None:
                notes.append(f"split {split!r} has no labels and is not used")
            else:
                test = samples
                notes += [] if split == "test" else [f"tested on split {split!r}"]
                break
    if test is None:
        train, test = _hold_out(train, train.labels)
        notes.append(f"no labelled test split: {len(test)} of {len(test) + len(train)} training samples are held out")
    if train.class_names is not None and test.class_names is not None:
        test = replace(
            test,
            labels=renumber(np.asarray(test.labels), test.class_names, train.class_names),
            class_names=train.class_names,
        )
    classes = np.unique(np.asarray(train.labels))
    if len(classes) < 2:
        only = train.class_names[classes[0]] if train.class_names is not None else classes[0]
        raise InputError(
            f"the {len(train)} training samples of {name!r} have one class only, {str(only)!r}; expected two or more"
        )
    for value in np.setdiff1d(np.asarray(test.labels), classes):
        n = int((test.labels == value).sum())
        named = str(value if train.class_names is None else train.class_names[value])
        notes.append(f"{n} of {len(test)} test samples are of class {named!r}, of which there is no training sample")
    return Task(train, test, tuple(notes))


def renumber(labels: np.ndarray, names: Sequence[str], onto: Sequence[str]) -> np.ndarray:
    """Numbers of classes in one table of names as numbers in another one.

    Args:
        labels: (samples,) integers, indices of `names`.
        names: of the classes.
        onto: the other table.

    Raises:
        InputError: a class among the labels that the other table does not have.
    """
    if tuple(names) == tuple(onto):
        return labels
    for value in np.unique(labels):
        if names[value] not in onto:
            raise InputError(f"class {names[value]!r} is none of {list(onto)}; {closest(names[value], onto)}")
    numbers = np.array([onto.index(name) if name in onto else -1 for name in names])
    return numbers[labels].astype(labels.dtype)


def as_samples(
    data: object,
    *,
    modality: str,
    label: str | None = None,
    input_column: str | Sequence[str] | None = None,
    name: str = "samples",
) -> Samples:
    """Samples from whatever holds some: a `datasets.Dataset`, a DataFrame, a sequence of raw inputs, or `Samples`.

    In a table the input column and the labels are found; `labels` stays None where no column looks like one.

    Raises:
        InputError: a container that is iterated over in something else than samples, a named column that does not
            exist, several candidates, or labels that are not classes.
    """
    from datasets import Dataset, IterableDataset

    if isinstance(data, Samples):
        return data
    if type(data).__name__ == "DataFrame" and type(data).__module__.partition(".")[0] == "pandas":
        data = Dataset.from_pandas(data, preserve_index=False)
    if isinstance(data, Dataset):
        return _from_table(data, modality, label, input_column, name)
    if isinstance(data, IterableDataset):
        raise InputError(
            "a streamed dataset has no length and no order of access; give Dataset.from_list(list(stream)), "
            "or a part of it: list(stream.take(1000))"
        )
    if isinstance(data, Mapping):
        split = next((name for name, part in data.items() if isinstance(part, Dataset)), None)
        wanted = "Dataset.from_dict(columns)" if split is None else f"one split, data[{split!r}]"
        raise InputError(
            f"expected a sequence of raw inputs or a Dataset, got {type(data).__name__} of "
            f"{sorted(map(str, data))[:5]}; give {wanted}"
        )
    if isinstance(data, (str, bytes, os.PathLike)) or not isinstance(data, Iterable):
        raise InputError(f"expected a sequence of raw inputs, got one {type(data).__name__}; put it into a list")
    return Samples([{"input": value} for value in data], "input", name=name)


def _from_table(
    dataset: Dataset, modality: str, label: str | None, input_column: str | Sequence[str] | None, name: str
) -> Samples:
    columns = dataset.column_names
    named = [input_column] if isinstance(input_column, str) else list(input_column or ())
    for wanted in (label, *named):
        if wanted is not None and wanted not in columns:
            raise InputError(f"there is no column {wanted!r} among {columns}; {closest(wanted, columns)}")
    label = label or _find_label(dataset)
    labels, class_names = (None, None) if label is None else _read_labels(dataset, label)
    if len(named) > 1:
        return Samples(_Pairs(dataset, tuple(named)), PAIR, labels, class_names, name)
    column = named[0] if named else _find_input(dataset, modality, label)
    return Samples(_undecoded(dataset, column).select_columns(column), column, labels, class_names, name)


@dataclass(frozen=True)
class _Pairs(Sequence):
    """Two columns of a dataset as one."""

    dataset: Dataset
    columns: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, tuple]:  # type: ignore[override]  # nobody asks for a slice
        row = self.dataset[index]
        return {PAIR: tuple(row[column] for column in self.columns)}

    def select(self, indices: Sequence[int]) -> _Pairs:
        """Some of them."""
        return _Pairs(self.dataset.select(indices), self.columns)


def _load(name: str, config: str | None) -> DatasetDict:
    import datasets

    suffix = os.path.splitext(name)[1].lower()
    try:
        if any(os.path.isfile(os.path.join(name, mark)) for mark in ("state.json", "dataset_dict.json")):
            saved = datasets.load_from_disk(name)
            return saved if isinstance(saved, datasets.DatasetDict) else datasets.DatasetDict(train=saved)
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
    """Recordings as files, which `hf_tl.inputs` reads: the decoder of `datasets` is a package of its own."""
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


def _hold_out(samples: Samples, labels: np.ndarray) -> tuple[Samples, Samples]:
    """Splits off a fifth of each class, with a fixed seed; a class of one sample stays in training."""
    from sklearn.model_selection import train_test_split

    _, numbers, counts = np.unique(labels, return_inverse=True, return_counts=True)
    several = np.flatnonzero(counts[numbers] > 1)
    if not len(several):
        raise InputError(f"there is no test split, and none can be held out: {len(samples)} samples, one per class")
    n_test = max(round(HELD_OUT * len(several)), int((counts > 1).sum()))
    test = train_test_split(several, test_size=n_test, stratify=numbers[several], random_state=0)[1]

    def part(indices: np.ndarray, name: str) -> Samples:
        return replace(samples, dataset=cast(Any, samples.dataset).select(indices), labels=labels[indices], name=name)

    return part(np.setdiff1d(np.arange(len(samples)), test), samples.name), part(np.sort(test), "test")
