"""What a classifier answers: one class, several, or a number; labels in its terms, and logits as answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, log_expit, log_softmax, softmax

from hf_tl.architectures import is_transformers
from hf_tl.errors import InputError
from hf_tl.labels import PROBLEM_TYPES, Problem, find_problem, renumber
from hf_tl.models import Network
from hf_tl.names import closest


EACH: dict[Problem, str] = {
    "classification": "one class a sample",
    "multilabel": "several classes a sample",
    "regression": "a number a sample",
}


@dataclass(frozen=True)
class Target:
    """What is answered.

    Attributes:
        problem: "classification", "multilabel" or "regression".
        class_names: of the logits, in their order; empty for a number.
    """

    problem: Problem
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        names = self.class_names
        if self.problem == "regression":
            if names:
                raise InputError(f"a number has no classes, got class_names {list(names)}")
        elif len(names) < 2 or len(set(names)) != len(names):
            raise InputError(f"class_names should be two or more different names, got {list(names)}")

    @classmethod
    def of_labels(cls, labels: np.ndarray | None, class_names: Sequence[str] | None) -> Target:
        """What training samples teach; classes that do not occur are left out, where a sample has one.

        Raises:
            InputError: no labels.
        """
        if labels is None:
            raise InputError("the training samples have no labels; a classifier learns from labelled samples")
        problem = find_problem(labels)
        if problem == "regression":
            return cls(problem, ())
        if problem == "multilabel":
            return cls(problem, tuple(class_names or map(str, range(labels.shape[1]))))
        return cls(problem, tuple(_names(np.unique(labels), class_names).tolist()))

    @property
    def n_outputs(self) -> int:
        """Number of logits."""
        return len(self.class_names) or 1

    def read(self, labels: np.ndarray | None, class_names: Sequence[str] | None, *, source: str) -> np.ndarray:
        """Labels in these terms: (n,) numbers of the classes, -1 for one that is not known here; or as they are.

        Args:
            labels: see `hf_tl.labels.find_problem`.
            class_names: of them.
            source: what messages call the samples.

        Raises:
            InputError: no labels, labels of another kind, or none of a known class.
        """
        if labels is None:
            raise InputError(f"{source} has no labels; an evaluation needs the label of every sample")
        if find_problem(labels) != self.problem:
            raise InputError(
                f"{source} should have {EACH[self.problem]}, got {labels[0].tolist()!r} for the first; "
                f"load_task(..., label=..., problem=...) says which labels are read, and as what"
            )
        if self.problem == "regression":
            return labels.astype(np.float64)
        if self.problem == "multilabel":
            names = tuple(class_names or map(str, range(labels.shape[1])))
            return renumber(labels, names, self.class_names)
        values = _names(labels, class_names)
        numbers = {name: number for number, name in enumerate(self.class_names)}
        found = np.array([numbers.get(value, -1) for value in values])
        if (found < 0).all():
            raise InputError(
                f"none of the samples is of a class of this classifier, {', '.join(self.class_names[:5])}; "
                f"the first is of class {values[0]!r}; {closest(values[0], self.class_names)}"
            )
        return found

    def unknown(self, labels: np.ndarray, class_names: Sequence[str] | None, truth: np.ndarray) -> list[str]:
        """The names of classes that are not known here, which get numbers behind the known ones in `truth`."""
        if self.problem != "classification":
            return []
        values = _names(labels, class_names)
        names = sorted(set(values[truth < 0].tolist()))
        for number, name in enumerate(names, start=len(self.class_names)):
            truth[values == name] = number
        return names

    def decide(self, logits: np.ndarray) -> np.ndarray:
        """Logits (n, n_outputs) -> numbers of classes (n,), 0 and 1 (n, n_classes), or numbers (n,)."""
        if self.problem == "regression":
            return logits[:, 0].astype(np.float64)
        return (logits > 0).astype(np.int8) if self.problem == "multilabel" else logits.argmax(axis=1)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Logits at their temperature (n, n_classes) -> probabilities: of all together 1, or each by itself.

        Raises:
            InputError: numbers.
        """
        if self.problem == "regression":
            raise InputError("a number has no probability; use predict")
        return expit(logits) if self.problem == "multilabel" else softmax(logits, axis=1)


def cross_entropy(logits: np.ndarray, truth: np.ndarray) -> float:
    """The mean cross entropy in nats of a sample, or, of several classes each, of a sample and class.

    Args:
        logits: (n, n_classes), at their temperature.
        truth: (n,) numbers of the classes; or (n, n_classes) of 0 and 1, or of targets between.
    """
    if truth.ndim == 2:
        return float(-(truth * log_expit(logits) + (1 - truth) * log_expit(-logits)).mean())
    return float(-log_softmax(logits, axis=1)[np.arange(len(truth)), truth].mean())


def problem_of(network: Network) -> Problem:
    """What the head of a trained network answers: what its configuration says, else one class a sample."""
    if not is_transformers(network.model):
        return "classification"
    said = network.model.config.problem_type
    if said is None and network.model.config.num_labels == 1:
        return "regression"
    return next((problem for problem, name in PROBLEM_TYPES.items() if name == said), "classification")


def _names(labels: np.ndarray, class_names: Sequence[str] | None) -> np.ndarray:
    """Labels as the names of their classes, (n,) of str."""
    return np.array(
        [str(label) if class_names is None else class_names[label] for label in labels.tolist()], dtype=object
    )
