"""What predictions are worth: scores, the accuracy of each class, and which class is taken for which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from hf_tl import plots
from hf_tl.embedding.embedding import Embedding
from hf_tl.errors import InputError
from hf_tl.intervals import mean_interval, wilson
from hf_tl.labels import LabelTable, Problem, find_problem
from hf_tl.table import as_html, format_table, in_words


METRICS: dict[Problem, str] = {"classification": "accuracy", "multilabel": "F1", "regression": "R2"}
FEW = 15  # classes whose whole confusion matrix fits a page


@dataclass(frozen=True)
class Evaluation:
    """Predictions beside the truth.

    Attributes:
        truth: labels as `hf_tl.labels.find_problem` reads them: (n_samples,) classes or numbers, or
            (n_samples, n_classes) of 0 and 1.
        predicted: of the same shape.
        class_names: names of integer classes, or of the columns; None where classes name themselves.
    """

    truth: np.ndarray
    predicted: np.ndarray
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if np.shape(self.truth) != np.shape(self.predicted) or not len(self.truth):
            raise InputError(
                f"expected predictions in the shape of the labels, one sample or more, got {np.shape(self.predicted)} "
                f"and {np.shape(self.truth)}"
            )

    @property
    def problem(self) -> Problem:
        """What was to be learnt."""
        return find_problem(np.asarray(self.truth))

    @property
    def metric(self) -> str:
        """The name of the score that counts: "accuracy", "F1" or "R2"."""
        return METRICS[self.problem]

    @property
    def score(self) -> float:
        """The value of `metric`."""
        return self.scores[self.metric]

    @cached_property
    def scores(self) -> dict[str, float]:
        """Name -> value, of all samples.

        Of classes: the accuracy, its mean over the classes, and the share of the largest class, which is the accuracy
        of always saying it. Of several classes a sample: F1 over all decisions, its mean over the classes,
        and the share of samples whose classes are all right. Of numbers: R2, the mean absolute error, and that of
        always saying the median.
        """
        from sklearn.metrics import f1_score, mean_absolute_error, r2_score

        truth, predicted = np.asarray(self.truth), np.asarray(self.predicted)
        if self.problem == "regression":
            return {
                "R2": float(r2_score(truth, predicted)) if len(truth) > 1 else float("nan"),
                "MAE": float(mean_absolute_error(truth, predicted)),
                "MAE of the median": float(np.abs(truth - np.median(truth)).mean()),
            }
        if self.problem == "multilabel":
            return {
                "F1": float(f1_score(truth, predicted, average="micro", zero_division=0)),
                "mean F1 of classes": float(f1_score(truth, predicted, average="macro", zero_division=0)),
                "all classes right": float((truth == predicted).all(axis=1).mean()),
            }
        counts = self.confusion.sum(axis=1)
        tested = counts > 0
        return {
            "accuracy": float((truth == predicted).mean()),
            "mean accuracy of classes": float((self.confusion.diagonal()[tested] / counts[tested]).mean()),
            "share of the largest class": float(counts.max() / counts.sum()),
        }

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of `score` for new samples; None where these tell none: one, or numbers that are equal."""
        truth = np.asarray(self.truth)
        if self.problem != "classification" and (len(truth) == 1 or np.ptp(truth) == 0):
            return None
        return mean_interval(score_samples(truth, np.asarray(self.predicted)))

    @cached_property
    def classes(self) -> np.ndarray:
        """(n_classes,) the values that truth or predictions have, in order; of columns of 0 and 1 their numbers."""
        if self.problem == "multilabel":
            return np.arange(np.shape(self.truth)[1])
        return np.union1d(self.truth, self.predicted)

    @property
    def names(self) -> list[str]:
        """Of `classes`."""
        return [str(value if self.class_names is None else self.class_names[value]) for value in self.classes.tolist()]

    @cached_property
    def confusion(self) -> np.ndarray:
        """(n_classes, n_classes) how many samples of one class, a row each, are taken for another.

        Raises:
            InputError: labels that are not one class each.
        """
        if self.problem != "classification":
            raise InputError(f"a confusion matrix is of one class a sample, got a {self.problem} problem")
        rows, columns = np.searchsorted(self.classes, self.truth), np.searchsorted(self.classes, self.predicted)
        matrix = np.zeros((len(self.classes),) * 2, dtype=np.int64)
        np.add.at(matrix, (rows, columns), 1)
        return matrix

    def table(self) -> str:
        """One row a class: how many samples, how many right with the 95 % interval, and what it is taken for most.

        Of several classes a sample: precision, recall and F1. Of numbers: quantiles of the absolute error.
        """
        if self.problem == "regression":
            errors = np.quantile(np.abs(np.asarray(self.truth) - self.predicted), (0.5, 0.9, 1))
            return format_table(["absolute error", "median", "90 %", "largest"], [["", *map(float, errors)]])
        if self.problem == "multilabel":
            return self._table_of_labels()
        rows = []
        for i, (name, counts) in enumerate(zip(self.names, self.confusion, strict=True)):
            n, right = int(counts.sum()), int(counts[i])
            wrong = np.where(np.arange(len(counts)) == i, 0, counts)
            taken = f"{self.names[int(wrong.argmax())]} ({wrong.max()})" if wrong.any() else ""
            share = f"{right / n:.3f}" if n else "-"
            span = "{:.3f} .. {:.3f}".format(*wilson(right, n)) if n else "never tested"
            rows.append([name, n, right, share, span, taken])
        return format_table(["class", "samples", "right", "accuracy", "95 %", "most often taken for"], rows)

    def confusion_table(self) -> str:
        """The confusion matrix; of many classes, those pairs that are confused most often."""
        if len(self.classes) <= FEW:
            rows = [[name, *map(int, counts)] for name, counts in zip(self.names, self.confusion, strict=True)]
            return format_table(["is \\ taken for", *self.names], rows)
        wrong = self.confusion - np.diag(self.confusion.diagonal())
        worst = np.argsort(-wrong, axis=None, kind="stable")[:FEW]
        pairs = [np.unravel_index(i, wrong.shape) for i in worst if wrong.flat[i]]
        return format_table(
            ["is", "taken for", "samples"], [[self.names[i], self.names[j], int(wrong[i, j])] for i, j in pairs]
        )

    def plot(self, path: str | Path, *, title: str) -> None:
        """Draws the confusion matrix, each row as shares of its class.

        Args:
            path: of the picture; its ending says which kind.
            title: above it.
        """
        counts, n = self.confusion.sum(axis=1, keepdims=True), len(self.classes)
        shares = self.confusion / np.maximum(counts, 1)
        texts = [[str(value) if value else "" for value in row] for row in self.confusion.tolist()]
        side = min(2.5 + 0.42 * n, 16)
        caption = f"{len(self.truth)} samples; rows: what they are, columns: what they are taken for"
        with plots.picture(path, title=title, size=(side + 0.8, side), caption=caption) as (panel,):
            plots.heatmap(panel, shares, rows=self.names, columns=self.names, texts=texts if n <= 40 else ())

    def __str__(self) -> str:
        return scores_in_words(self.scores, self.interval)

    def _repr_html_(self) -> str:
        return as_html(f"{self}\n\n{self.table()}")

    def _table_of_labels(self) -> str:
        from sklearn.metrics import precision_recall_fscore_support

        found = precision_recall_fscore_support(self.truth, self.predicted, average=None, zero_division=0)
        rows: Sequence[Sequence[object]] = [
            [name, int(n), float(precision), float(recall), float(f1)]
            for name, precision, recall, f1, n in zip(self.names, *found, strict=True)
        ]
        return format_table(["class", "samples", "precision", "recall", "F1"], rows)


def scores_in_words(scores: Mapping[str, float], interval: tuple[float, float] | None) -> str:
    """ "accuracy 0.800 (0.490 .. 0.943), ...": scores by name, the first with its 95 % interval."""
    (first, value), *others = scores.items()
    span = "" if interval is None else " ({:.3f} .. {:.3f})".format(*interval)
    return ", ".join([f"{first} {value:.3f}{span}", *(f"{name} {value:.3f}" for name, value in others)])


def score_samples(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """What each sample adds to a score, (n_samples,): the score is their mean.

    Of classes 1 where it is right; of several classes a sample their F1, 1 where it has none and none is said; of
    numbers R2, linearised in the mean squares of errors and of deviations, so that it varies as R2 does.

    Args:
        truth: see `Evaluation`.
        predicted: of the same shape.
    """
    problem = find_problem(truth)
    if problem == "classification":
        return (truth == predicted).astype(np.float64)
    if problem == "multilabel":
        both, said = (truth * predicted).sum(axis=1), truth.sum(axis=1) + predicted.sum(axis=1)
        return np.where(said == 0, 1.0, 2 * both / np.maximum(said, 1))
    errors, deviations = np.square(truth - predicted), np.square(truth - truth.mean())
    if not deviations.any():
        raise InputError(f"R2 needs numbers that differ, got {len(truth)} test samples of {truth[0]:g}")
    r2 = 1 - errors.mean() / deviations.mean()
    return r2 - (errors - (1 - r2) * deviations) / deviations.mean()


def label_table(embedding: Embedding, name: str) -> LabelTable:
    """The labels of an embedding with their names.

    Args:
        embedding: or whatever else has features and labels.
        name: what messages call its samples.

    Raises:
        InputError: it has none.
    """
    if embedding.labels is None:
        raise InputError(f"the {name} embedding has no labels; a probe needs the label of every sample")
    names = getattr(embedding, "class_names", None)  # what else has features and labels may have no names
    return LabelTable(np.asarray(embedding.labels), names, f"the {name} samples")


def paired_labels(train: Embedding, test: Embedding) -> tuple[LabelTable, LabelTable, list[str]]:
    """The labels of training samples, those of test samples in the same form, and what there is to say about them.

    Raises:
        InputError: no labels, labels of another form, or test samples of none of the classes that are taught.
    """
    taught = label_table(train, "training")
    tested = label_table(test, "test").aligned_to(taught)
    if find_problem(taught.labels) == "classification" and not np.isin(tested.labels, taught.labels).any():
        raise InputError(
            f"no test sample is of a class that is taught: they are {in_words(np.unique(tested.labels).astype(str))}, "
            f"taught are {in_words(np.unique(taught.labels).astype(str))}"
        )
    return taught, tested, tested.untaught(taught)


def chance(labels: np.ndarray) -> float:
    """The score of always saying the same: one of the classes, each tested alike; the most frequent ones; the mean."""
    problem = find_problem(labels)
    if problem == "classification":
        return 1 / len(np.unique(labels))
    if problem == "regression":
        return 0.0
    frequent = labels.mean(axis=0)
    said = frequent >= min(0.5, frequent.max())
    return float(score_samples(labels, np.broadcast_to(said, labels.shape)).mean())
