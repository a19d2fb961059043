"""A name -> a target task: training and test samples with their input column, labels and class names."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import numpy as np

from hf_tl.audio_folder import holds_recordings, load_audio_folder
from hf_tl.containers import are_labelled, array_columns, as_table, is_row, items_of
from hf_tl.dataset_check import check_classes, check_folder, find_bad_samples
from hf_tl.errors import InputError, in_one_line
from hf_tl.input_column import find_input_column
from hf_tl.labels import LABEL_NAMES, LabelTable, Problem, find_label, find_problem, read_labels
from hf_tl.names import closest
from hf_tl.table import in_words


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

FILE_FORMATS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "validation", "valid", "val", "dev", "eval")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
EMPTY = ("corresponds to no data", "BatchSize must be greater than 0")  # how datasets says that a file has no samples
PAIR = "pair"  # the column of two that are read as one
HELD_OUT = 0.2  # share of the training samples that becomes the test set where a dataset has none


@dataclass(frozen=True)
class Samples:
    """Samples whose input and labels are known.

    Attributes:
        dataset: `datasets.Dataset`, or a sequence of mappings.
        input_column: key of the raw input.
        labels: (samples,) integers or strings, a class each; (samples, classes) of 0 and 1 for several classes each;
            (samples,) floats, a number each; or None for unlabelled samples.
        class_names: names of the integer labels, or of the columns of 0 and 1, or None.
        name: what messages call these samples.
    """

    dataset: Sequence[Mapping] | Dataset
    input_column: str
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None
    name: str = "samples"

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def label_table(self) -> LabelTable:
        """The labels with their names.

        Raises:
            InputError: there are none.
        """
        if self.labels is None:
            raise InputError(f"{self.name} has no labels")
        return LabelTable(np.asarray(self.labels), self.class_names, self.name)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the table that are read; two for pairs."""
        return self.dataset.columns if isinstance(self.dataset, _Pairs) else (self.input_column,)

    def sample(self, n: int, *, random_state: int = 0) -> Samples:
        """At most `n` of them, drawn at random, in their order.

        Args:
            n: how many.
            random_state: decides which.
        """
        if n >= len(self):
            return self
        return self.select(np.sort(np.random.default_rng(random_state).permutation(len(self))[:n]))

    def select(self, indices: Sequence[int] | np.ndarray) -> Samples:
        """Some of them, with their labels.

        Args:
            indices: (n,) which, in the order that is wanted.
        """
        labels = None if self.labels is None else self.labels[indices]
        if isinstance(self.dataset, list):
            return replace(self, dataset=[self.dataset[index] for index in indices], labels=labels)
        return replace(self, dataset=cast(Any, self.dataset).select(indices), labels=labels)

    def __getitem__(self, index: int) -> object:
        """The raw input of one sample; a corrupt image raises here."""
        row = self.dataset[index]
        if self.input_column not in row:
            raise ValueError(f"there is no column {self.input_column!r}, but {sorted(map(str, row))[:5]}")
        value = row[self.input_column]
        if value is None:
            raise ValueError(f"column {self.input_column!r} is empty")
        return value


@dataclass(frozen=True)
class Task:
    """A task to transfer to: one class a sample, several, or a number.

    Attributes:
        train: the samples to learn from; at least two classes, or two numbers.
        test: the samples to evaluate on; not empty; labels numbered as the training samples' are.
        notes: what had to be decided to make the two, in sentences for the user.
    """

    train: Samples
    test: Samples
    notes: tuple[str, ...] = ()

    @property
    def problem(self) -> Problem:
        """What is to be learnt: "classification", "multilabel" or "regression"."""
        return find_problem(np.asarray(self.train.labels))


class GroupFinder(Protocol):
    """Says which samples belong together, such as copies: `hf_tl.analysis.twin_groups`, or a function of your own."""

    def __call__(self, samples: Samples, *, modality: str) -> np.ndarray:
        """(n_samples,) int: samples of one number are on one side of every split."""


def load_task(
    name: str,
    *,
    modality: str,
    label: str | Sequence[str] | None = None,
    input_column: str | Sequence[str] | None = None,
    config: str | None = None,
    problem: Problem | None = None,
    groups: GroupFinder | None = None,
) -> Task:
    """Loads a labelled dataset as training and test samples.

    The test samples are the labelled split named test, else validation; where there is neither, a fifth of the
    training samples is held out, the same fifth each time.

    Args:
        name: a Hub id; a .csv, .tsv, .json, .jsonl or .parquet file; a folder of images, one sub-folder per class; a
            folder that `save_to_disk` wrote; or any other folder that `datasets.load_dataset` reads.
        modality: what the network reads: "image", "text" or "audio".
        label: the label column, or several of 0 and 1, a class each; found where there is one candidate only.
        input_column: the column to read, or two columns of texts that are read as pairs; found likewise, pairs such
            as premise and hypothesis too.
        config: the configuration of the dataset, where it has several.
        problem: "classification", "multilabel" (lists of classes, or several label columns) or "regression"; None to
            tell from the labels.
        groups: finds the samples that are held out together, where some have to be, such as `twin_groups`.

    Raises:
        InputError: no such dataset, no label column, an empty split, one class only, or splits whose labels are not
            of one kind.
    """
    from datasets import ClassLabel

    folder_notes = check_folder(name) if os.path.isdir(name) and not _is_saved(name) else []
    splits = _load(name, config)
    for split, samples in splits.items():
        if len(samples) == 0:
            raise InputError(f"split {split!r} of {name!r} is empty (0 samples); there is nothing to train or test on")
    train_name = _training_split(splits, name)
    table, notes = splits[train_name], list(folder_notes)
    if label is None:
        label = find_label(table, inputs=_listed(input_column))
        if label is not None and label not in LABEL_NAMES and not isinstance(table.features[label], ClassLabel):
            notes.append(f"the label is taken from column {label!r}, whose strings come again and again")
    if label is None:
        raise InputError(
            f"{name!r} has no column that is recognised as the label among {table.column_names}; "
            f"name it with label=... (--label), or put each class of images in a sub-folder of its own, two or more"
        )
    if input_column is None:
        input_column = find_input_column(table, modality=modality, labels=_listed(label))
        if not isinstance(input_column, str):
            notes.append(f"columns {input_column[0]!r} and {input_column[1]!r} are read as pairs")
    train, *tests = (
        as_samples(
            splits[split], modality=modality, label=label, input_column=input_column, problem=problem, name=split
        )
        for split in (train_name, *(split for split in TEST_NAMES if split in splits and split != train_name))
    )
    if train.labels is None:
        raise InputError(f"no sample of {name!r}, split {train_name!r}, has a value in label column {label!r}")
    notes += [f"split {samples.name!r} has no labels and is not used" for samples in tests if samples.labels is None]
    test = next((samples for samples in tests if samples.labels is not None), None)
    if test is None:
        together, of_groups = None, ""
        if groups is not None:
            try:
                together = groups(train, modality=modality)
                of_groups = ", copies and the like together" if len(np.unique(together)) < len(train) else ""
            except InputError as error:  # what looks for copies is an extra
                notes.append(f"copies among the samples were not looked for: {error}")
        train, test = _hold_out(train, train.labels, together)
        held_out = f"{len(test)} of {len(test) + len(train)} training samples are held out{of_groups}"
        notes.append(f"no labelled test split: {held_out}")
    elif test.name != "test":
        notes.append(f"tested on split {test.name!r}")
    taught = train.label_table
    aligned = test.label_table.aligned_to(taught)
    test = replace(test, labels=aligned.labels, class_names=aligned.names)
    return Task(train, test, (*notes, *aligned.untaught(taught), *check_classes(taught, name)))


def load_samples(
    name: str,
    *,
    modality: str,
    label: str | Sequence[str] | None = None,
    input_column: str | Sequence[str] | None = None,
    config: str | None = None,
) -> Samples:
    """The training samples of a dataset, with its labels where it has some; none are held out.

    Args:
        name: as for `load_task`.
        modality: what the network reads: "image", "text" or "audio".
        label: likewise.
        input_column: likewise.
        config: likewise.

    Raises:
        InputError: no such dataset, no training split, or one without a sample or a column to read.
    """
    splits = _load(name, config)
    split = _training_split(splits, name)
    if len(splits[split]) == 0:
        raise InputError(f"split {split!r} of {name!r} is empty (0 samples); there is nothing to read")
    return as_samples(splits[split], modality=modality, label=label, input_column=input_column, name=split)


def load_table(path: str) -> Dataset:
    """The samples of one .csv, .tsv, .json, .jsonl or .parquet file.

    Raises:
        InputError: no such file, a file that cannot be read, or one without a sample.
    """
    (table,) = _load(path, None).values()
    if len(table) == 0:
        raise InputError(f"{path!r} has no samples")
    return table


def find_data_modality(name: str, *, config: str | None = None) -> str:
    """What a dataset's samples are, "image", "audio" or "text", as its columns tell.

    Args:
        name: as for `load_task`.
        config: the configuration of the dataset, where it has several.

    Raises:
        InputError: no such dataset, or none of the three.
    """
    from datasets import Audio, Image, Value

    splits = _load(name, config)
    features = next(iter(splits.values())).features
    kinds = [type(feature) for feature in features.values()]
    for kind, modality in ((Image, "image"), (Audio, "audio")):
        if kind in kinds:
            return modality
    if any(
        isinstance(feature, Value) and feature.dtype in ("string", "large_string") for feature in features.values()
    ):
        return "text"
    raise InputError(f"no column of {name!r} holds images, recordings or texts: {sorted(features)}")


def check_inputs(task: Task, *, modality: str, on_bad_samples: Literal["raise", "skip"] = "raise") -> list[str]:
    """Looks for inputs that cannot be read, before a network is loaded; what is left out, in sentences.

    Args:
        task: whose samples are looked at, at headers and ends of files.
        modality: what the network reads.
        on_bad_samples: whether they will be left out.

    Raises:
        InputError: with "raise", naming all files that cannot be read.
    """
    notes = []
    for samples in (task.train, task.test):
        bad = find_bad_samples(samples.dataset, samples.input_column, modality=modality)
        if bad and on_bad_samples == "raise":
            raise InputError(
                f"{len(bad)} of {len(samples)} {samples.name} samples cannot be read: "
                f"{in_words(list(bad.values()), most=20)}; mend or remove them, or leave them out with "
                f"on_bad_samples='skip' (--on-bad-samples skip)"
            )
        notes += _unreadable(samples, bad)
    return notes


def drop_unreadable(task: Task, *, modality: str) -> Task:
    """The task without the samples that cannot be read, which its notes name: for a training, which ends at one.

    Args:
        task: whose samples are looked at, at headers and ends of files.
        modality: what the network reads.

    Raises:
        InputError: none can be read.
    """
    kept, notes = [], list(task.notes)
    for samples in (task.train, task.test):
        bad = find_bad_samples(samples.dataset, samples.input_column, modality=modality)
        notes += _unreadable(samples, bad)
        if len(bad) == len(samples):
            raise InputError(f"none of the {len(bad)} {samples.name} samples can be read: {bad[0]}")
        kept.append(samples.select([i for i in range(len(samples)) if i not in bad]))
    return Task(kept[0], kept[1], tuple(notes))


def _unreadable(samples: Samples, bad: Mapping[int, str]) -> list[str]:
    return [f"{samples.name} samples that cannot be read: {in_words(list(bad.values()), most=20)}"] if bad else []


def as_samples(
    data: object,
    *,
    modality: str,
    label: str | Sequence[str] | None = None,
    input_column: str | Sequence[str] | None = None,
    problem: Problem | None = None,
    name: str = "samples",
) -> Samples:
    """Samples from whatever holds some: a table, a sequence of raw inputs or of a table's rows, or `Samples`.

    Texts and images may come in pairs with the numbers of their classes, as the datasets of torch give them.

    A table is a `datasets.Dataset`, a DataFrame of pandas or polars, or a pyarrow Table. Its input column and labels
    are found, as `load_task` finds them; `labels` stays None where no column looks like one.

    Raises:
        InputError: a container that is iterated over in something else than samples, a named column that does not
            exist, several candidates, or labels that are not classes.
    """
    from datasets import Dataset

    if isinstance(data, Samples):
        return data
    table = as_table(data)
    if table is None:
        items = items_of(data, modality)
        if are_labelled(items, modality):
            labels = np.array([int(number) for _, number in items])
            return Samples([{"input": value} for value, _ in items], "input", labels, name=name)
        if not (items and modality != "array" and all(is_row(item) for item in items)):
            return Samples([{"input": value} for value in items], "input", name=name)
        arrays = [key for key in array_columns(items) if modality != "text" and key not in _listed(label)]
        if arrays and (input_column is None or input_column in arrays):
            return _from_rows(items, arrays, label, input_column, problem, name)
        try:
            table = Dataset.from_list([dict(item) for item in items])
        except Exception as error:  # of pyarrow: values of several types in one column
            raise InputError(f"the {len(items)} mappings are no rows of one table: {in_one_line(error)}") from error
    return _from_table(table, modality, label, input_column, problem, name)


def _from_rows(
    rows: Sequence[Mapping],
    arrays: Sequence[str],
    label: str | Sequence[str] | None,
    input_column: str | Sequence[str] | None,
    problem: Problem | None,
    name: str,
) -> Samples:
    """Rows with arrays, which a table would turn into lists, as they are."""
    from datasets import Dataset

    if input_column is None and len(arrays) > 1:
        raise InputError(f"several columns hold arrays: {list(arrays)}; name one with input_column=...")
    others = Dataset.from_list([{key: value for key, value in row.items() if key not in arrays} for row in rows])
    label = label or find_label(others)
    labels, class_names = (None, None) if label is None else read_labels(others, _listed(label), problem=problem)
    return Samples(rows, str(input_column or arrays[0]), labels, class_names, name)


def _from_table(
    dataset: Dataset,
    modality: str,
    label: str | Sequence[str] | None,
    input_column: str | Sequence[str] | None,
    problem: Problem | None,
    name: str,
) -> Samples:
    from datasets import Array2D, Array3D

    transformed = dataset.format["type"] == "custom"  # it may need all columns
    shown, dataset = dataset, dataset.with_format(None)
    columns = dataset.column_names
    for wanted in (*_listed(label), *_listed(input_column)):
        if wanted not in columns:
            raise InputError(f"there is no column {wanted!r} among {columns}; {closest(wanted, columns)}")
    label = label or find_label(dataset, inputs=_listed(input_column))
    labels, class_names = (None, None) if label is None else read_labels(dataset, _listed(label), problem=problem)
    inputs = _listed(input_column or find_input_column(dataset, modality=modality, labels=_listed(label)))
    if len(inputs) == 2:
        return Samples(_Pairs(shown if transformed else dataset, inputs), PAIR, labels, class_names, name)
    if len(inputs) > 2:
        raise InputError(f"one column is read, or two as pairs, got {len(inputs)}: {list(inputs)}")
    read = shown if transformed else _undecoded(dataset, inputs[0]).select_columns(inputs[0])
    feature = dataset.features[inputs[0]]
    if isinstance(feature, (Array2D, Array3D)) and not transformed:
        read = read.with_format("numpy", dtype=np.dtype(feature.dtype))
    return Samples(read, inputs[0], labels, class_names, name)


def _listed(columns: str | Sequence[str] | None) -> tuple[str, ...]:
    return (columns,) if isinstance(columns, str) else tuple(columns or ())


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
        if _is_saved(name):
            saved = datasets.load_from_disk(name)
            return saved if isinstance(saved, datasets.DatasetDict) else datasets.DatasetDict(train=saved)
        if suffix in FILE_FORMATS and not os.path.isdir(name):
            if not os.path.isfile(name):
                raise InputError(f"data file {name!r} does not exist")
            options = {"sep": "\t"} if suffix == ".tsv" else {}
            return datasets.load_dataset(FILE_FORMATS[suffix], data_files=name, **options)
        if os.path.isfile(name):
            raise InputError(f"data file {name!r} is none of {', '.join(FILE_FORMATS)}; convert it to one of them")
        if not os.path.isdir(name) and (name.startswith((".", "~", os.sep)) or not HUB_ID.fullmatch(name)):
            raise InputError(f"data folder {name!r} does not exist")
        if os.path.isdir(name) and config is None and holds_recordings(name):
            return load_audio_folder(name)
        return datasets.load_dataset(name, config)
    except InputError:
        raise
    except Exception as error:  # whatever a foreign file does to its reader, the file is at fault
        said = in_one_line(error.__cause__ or error)
        if any(words in said for words in EMPTY):
            raise InputError(
                f"a split of {name!r} is empty (0 samples); there is nothing to train or test on"
            ) from error
        if not os.path.exists(name):
            raise InputError(
                f"{name!r} is neither a folder or file in {os.getcwd()} nor a dataset that the Hub gives: {said}"
            ) from error
        raise InputError(f"datasets could not load {name!r}: {said}") from error


def _training_split(splits: Mapping[str, Dataset], name: str) -> str:
    """Its name: "train", or that of the only one."""
    found = next((split for split in TRAIN_NAMES if split in splits), None)
    if found is None and len(splits) != 1:
        raise InputError(f"{name!r} has no split 'train', but {sorted(splits)}; rename one to 'train'")
    return found or next(iter(splits))


def _is_saved(folder: str) -> bool:
    """Whether `save_to_disk` wrote it."""
    return any(os.path.isfile(os.path.join(folder, mark)) for mark in ("state.json", "dataset_dict.json"))


def _undecoded(dataset: Dataset, column: str) -> Dataset:
    """Recordings as files, which `hf_tl.inputs` reads: the decoder of `datasets` is a package of its own."""
    from datasets import Audio

    return dataset.cast_column(column, Audio(decode=False)) if isinstance(dataset.features[column], Audio) else dataset


def _hold_out(samples: Samples, labels: np.ndarray, groups: np.ndarray | None = None) -> tuple[Samples, Samples]:
    """Splits off a fifth, of each class where a sample has one, with a fixed seed; single samples stay in training.

    Of groups a fifth is split off, each as its first sample.
    """
    from sklearn.model_selection import train_test_split

    strata = np.zeros(len(labels)) if find_problem(labels) != "classification" else labels
    groups = np.arange(len(labels)) if groups is None else np.asarray(groups)
    if groups.shape != (len(labels),):
        raise InputError(f"groups should find one number a sample, ({len(labels)},), got shape {groups.shape}")
    firsts = np.sort(np.unique(groups, return_index=True)[1])
    _, numbers, counts = np.unique(strata[firsts], return_inverse=True, return_counts=True)
    several = np.flatnonzero(counts[numbers] > 1)
    if not len(several):
        each = "one per class" if len(firsts) == len(labels) else "those of a class copies of one another"
        raise InputError(f"there is no test split, and none can be held out: {len(samples)} samples, {each}")
    n_test = max(round(HELD_OUT * len(several)), int((counts > 1).sum()))
    chosen = train_test_split(several, test_size=n_test, stratify=numbers[several], random_state=0)[1]
    test = np.flatnonzero(np.isin(groups, groups[firsts[chosen]]))

    train = samples.select(np.setdiff1d(np.arange(len(samples)), test))
    return train, replace(samples.select(test), name="test")
