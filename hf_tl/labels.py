"""The labels of samples: a class each, several classes each, or a number each; found in a table, numbered alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hf_tl.errors import InputError
from hf_tl.names import closest
from hf_tl.table import in_words


if TYPE_CHECKING:
    from datasets import Dataset

Problem = Literal["classification", "multilabel", "regression"]
PROBLEM_TYPES: dict[Problem, str] = {
    "classification": "single_label_classification",
    "multilabel": "multi_label_classification",
    "regression": "regression",
}  # as transformers' configurations name them, which choose the loss
Labels = tuple[np.ndarray | None, tuple[str, ...] | None]
"""Labels, None where no sample has any, and the names of classes that they number."""

LABEL_NAMES = ("label", "labels", "target", "class", "category")
REPEATED = 4  # a column of strings that holds each value so often on average looks like labels


def find_problem(labels: np.ndarray) -> Problem:
    """What is to be learnt from labels, as their array tells.

    Args:
        labels: (n_samples,) integers or strings, a class each; (n_samples, n_classes) of 0 and 1, the classes that
            each has; or (n_samples,) floats, a number each.
    """
    if labels.ndim == 2:
        return "multilabel"
    return "regression" if labels.dtype.kind == "f" else "classification"


def renumber(labels: np.ndarray, names: Sequence[str], onto: Sequence[str]) -> np.ndarray:
    """Numbers of classes in one table of names as numbers in another one.

    Args:
        labels: (n_samples,) integers, indices of `names`; or (n_samples, n_classes) of 0 and 1, a column a name.
        names: of the classes.
        onto: the other table.

    Raises:
        InputError: a class among the labels that the other table does not have.
    """
    if tuple(names) == tuple(onto):
        return labels
    used: list[int] = (np.flatnonzero(labels.any(axis=0)) if labels.ndim == 2 else np.unique(labels)).tolist()
    for value in used:
        if names[value] not in onto:
            raise InputError(f"class {names[value]!r} is none of {list(onto)}; {closest(names[value], onto)}")
    if labels.ndim == 2:
        moved = np.zeros((len(labels), len(onto)), labels.dtype)
        moved[:, [onto.index(names[value]) for value in used]] = labels[:, used]
        return moved
    numbers = np.array([onto.index(name) if name in onto else -1 for name in names])
    return numbers[labels].astype(labels.dtype)


@dataclass(frozen=True)
class LabelTable:
    """Labels with the names of the classes that they number.

    Attributes:
        labels: see `find_problem`.
        names: of integer labels or of columns of 0 and 1, or None.
        source: what messages call the samples.
    """

    labels: np.ndarray
    names: tuple[str, ...] | None
    source: str

    def aligned_to(self, taught: LabelTable) -> LabelTable:
        """The same labels in the form of others: numbers in their table of names, or names.

        Raises:
            InputError: labels of another form, or a class that the other table does not have.
        """
        labels, names = self.labels, self.names
        if names is not None and taught.names is not None:
            labels, names = renumber(labels, names, taught.names), taught.names
        elif names is not None and taught.labels.dtype.kind == "U":
            labels, names = np.asarray(names)[labels], None
        elif taught.names is not None and labels.dtype.kind == "U":
            found, numbers = np.unique(labels, return_inverse=True)
            labels, names = renumber(numbers, found.tolist(), taught.names), taught.names
        aligned = LabelTable(labels, names, self.source)
        if aligned._form != taught._form:
            raise InputError(
                f"labels of {taught.source} are such as {taught._example}, of {self.source} such as {self._example}; "
                f"give both in one form"
            )
        return aligned

    def untaught(self, taught: LabelTable) -> list[str]:
        """Which classes are tested and never taught, in sentences; these labels are aligned to the others."""
        if find_problem(taught.labels) == "regression":
            return []
        if taught.labels.ndim == 2:
            counts = {i: int(self.labels[:, i].sum()) for i in np.flatnonzero(~taught.labels.any(axis=0)).tolist()}
        else:
            missing = np.setdiff1d(self.labels, taught.labels).tolist()
            counts = {value: int((self.labels == value).sum()) for value in missing}
        return [
            f"{n} of {len(self.labels)} test samples are of class {taught.name_of(value)!r}, of which there is no "
            f"training sample"
            for value, n in counts.items()
        ]

    def name_of(self, label: Any) -> str:
        """What a class is called."""
        return str(label if self.names is None else self.names[label])

    @property
    def _form(self) -> tuple:
        kind = self.labels.dtype.kind.replace("u", "i").replace("b", "i")
        return find_problem(self.labels), kind, self.names, self.labels.shape[1:]

    @property
    def _example(self) -> str:
        of = "" if self.names is None else f" of {in_words(self.names)}"
        return f"{self.labels[0].tolist()!r}{of}"


def find_label(dataset: Dataset, *, inputs: Sequence[str] = ()) -> str | None:
    """The column of classes: a ClassLabel, one of the usual names, or the only strings that come again and again.

    Args:
        dataset: a table.
        inputs: columns that are read, and so are none of classes.

    Raises:
        InputError: several candidates.
    """
    from datasets import ClassLabel, Value

    features = {name: feature for name, feature in dataset.features.items() if name not in inputs}
    classes = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    named = [name for name in LABEL_NAMES if name in (classes or features)]
    if named:
        return named[0]
    if not classes:
        strings = [
            name
            for name, feature in features.items()
            if isinstance(feature, Value) and feature.dtype in ("string", "large_string")
        ]
        classes = [name for name in strings if repeats(dataset.select_columns(name)[:][name])]
    if len(classes) > 1:
        raise InputError(f"several columns hold classes: {classes}; name one with label=... (--label)")
    return classes[0] if classes else None


def repeats(values: Sequence) -> bool:
    """Whether values come again and again, as classes do."""
    n_different = len(set(values))
    return n_different >= 2 and len(values) >= REPEATED * n_different


def read_labels(dataset: Dataset, columns: Sequence[str], *, problem: Problem | None = None) -> Labels:
    """The labels in one column, or in several of 0 and 1, a class each.

    Args:
        dataset: a table.
        columns: their names.
        problem: what is to be learnt; None to tell from the values: floats that are not whole are numbers, lists are
            several classes, anything else is one class.

    Raises:
        InputError: values that are not such labels, or that some samples lack.
    """
    from datasets import ClassLabel, List

    if len(columns) > 1:
        return _read_columns(dataset, columns, problem)
    column = columns[0]
    feature = dataset.features[column]
    values = dataset.select_columns(column)[:][column]
    if isinstance(feature, List) or isinstance(next((v for v in values if v is not None), None), list):
        _expect(problem, "multilabel", f"label column {column!r} holds lists of classes")
        inner = feature.feature if isinstance(feature, List) else None
        return _read_lists(values, column, tuple(inner.names) if isinstance(inner, ClassLabel) else None)
    names = tuple(feature.names) if isinstance(feature, ClassLabel) else None
    missing = [i for i, v in enumerate(values) if v is None or v != v or (names is not None and v < 0)]
    if len(missing) == len(values):
        return None, names
    if missing:
        raise InputError(
            f"{len(missing)} of {len(values)} samples have no value in label column {column!r}, "
            f"first sample {missing[0]}"
        )
    labels = np.asarray(values)
    if labels.ndim != 1 or labels.dtype.kind not in "iubUf":
        raise InputError(
            f"label column {column!r} should hold one class per sample (integers or strings), a number, or a list of "
            f"classes, got {type(values[0]).__name__}"
        )
    if problem == "multilabel":
        raise InputError(
            f"label column {column!r} should hold lists of classes, got {type(values[0]).__name__}; "
            f"or name several columns of 0 and 1"
        )
    if problem == "regression":
        if labels.dtype.kind not in "iuf" or names is not None:
            raise InputError(f"label column {column!r} should hold numbers, got {'classes' if names else labels[0]!r}")
        labels = labels.astype(np.float64)
    elif labels.dtype.kind == "f":
        labels = _classes_or_numbers(labels, column, problem)
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise InputError(f"label column {column!r} should hold finite numbers, got infinity")
    return labels, names


def _classes_or_numbers(labels: np.ndarray, column: str, problem: Problem | None) -> np.ndarray:
    whole = bool((labels == np.round(labels)).all())
    if problem is None and whole:
        raise InputError(
            f"label column {column!r} holds whole numbers as floats, such as {labels[0]}: give "
            f"problem='classification' or 'regression' (--problem)"
        )
    if problem == "classification" and not whole:
        raise InputError(f"label column {column!r} should hold one class per sample, got the number {labels[0]}")
    return labels.astype(np.int64) if problem == "classification" else labels.astype(np.float64)


def _read_columns(dataset: Dataset, columns: Sequence[str], problem: Problem | None) -> Labels:
    """A class a column: (n_samples, n_classes) int8."""
    _expect(problem, "multilabel", f"{len(columns)} label columns are given")
    parts = []
    for column in columns:
        values = np.asarray(dataset.select_columns(column)[:][column])
        if values.dtype.kind not in "iubf" or not np.isin(values, (0, 1)).all():
            raise InputError(
                f"of several label columns each should hold 0 and 1, whether a sample has the class; "
                f"{column!r} holds {values[~np.isin(values, (0, 1))][0]!r}"
            )
        parts.append(values.astype(np.int8))
    return np.stack(parts, axis=1), tuple(columns)


def _read_lists(values: Sequence, column: str, names: tuple[str, ...] | None) -> Labels:
    """(n_samples, n_classes) int8 of lists of classes."""
    missing = [i for i, value in enumerate(values) if value is None]
    if len(missing) == len(values):
        return None, names
    if missing:
        raise InputError(
            f"{len(missing)} of {len(values)} samples have no list in label column {column!r}, first sample "
            f"{missing[0]}; a sample without any class has an empty one"
        )
    found = {item for value in values for item in value}
    if not found or not all(isinstance(item, (int, str)) for item in found):
        raise InputError(f"label column {column!r} should hold lists of classes, got {values[0]!r}")
    table: Sequence = (
        range(len(names)) if names is not None else sorted(found, key=lambda item: (str(type(item)), item))
    )
    if len(table) < 2:
        raise InputError(f"label column {column!r} should hold two classes or more, got {list(table)} only")
    numbers = {item: i for i, item in enumerate(table)}
    labels = np.zeros((len(values), len(table)), np.int8)
    for row, value in zip(labels, values, strict=True):
        row[[numbers[item] for item in value]] = 1
    return labels, names or tuple(map(str, table))


def _expect(problem: Problem | None, found: Problem, why: str) -> None:
    if problem not in (None, found):
        raise InputError(f"{why}, which is {found}, got problem={problem!r}; leave it out, or name another column")
