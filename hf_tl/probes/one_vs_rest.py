"""Labels -> the columns of a one-against-the-rest problem, and decision values -> labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets, type_of_target


Kind = Literal["binary", "multiclass", "multilabel"]


@dataclass(frozen=True)
class OneVsRest:
    """Columns: one for two classes, one a class for more, one a label for label sets.

    Attributes:
        classes: (n_classes,), or the numbers of the labels.
        signs: (n_samples, n_columns) int8 in {-1, 1}.
        kind: what `y` was.
    """

    classes: np.ndarray
    signs: np.ndarray
    kind: Kind

    @classmethod
    def of(cls, y: np.ndarray) -> OneVsRest:
        """Reads y: (n_samples,) integers or strings, or (n_samples, n_labels) of 0 and 1.

        Raises:
            ValueError: one class only, or values that are not classes.
        """
        check_classification_targets(y)
        if type_of_target(y) == "multilabel-indicator":
            y = np.asarray(y)
            return cls(np.arange(y.shape[1]), np.where(y > 0, 1, -1).astype(np.int8), "multilabel")
        classes, codes = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(f"expected two classes or more, got one class only: {classes.tolist()}")
        if len(classes) == 2:
            return cls(classes, np.where(codes == 1, 1, -1).astype(np.int8)[:, None], "binary")
        signs = np.where(codes[:, None] == np.arange(len(classes)), 1, -1).astype(np.int8)
        return cls(classes, signs, "multiclass")

    def weights(self, class_weight: dict | str | None, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Factors of the loss, two of (n_columns,): of samples with sign -1 and of those with sign 1, as in liblinear.

        For two classes each class has its own; for more, a class's weight counts where it stands against the rest,
        and the rest counts 1.

        Raises:
            ValueError: a weight that is not above 0, or not finite, or weights of label sets.
        """
        n_columns = self.signs.shape[1]
        if class_weight is None:
            return np.ones(n_columns), np.ones(n_columns)
        if self.kind == "multilabel":
            raise ValueError("class_weight is for one class a sample, got label sets; use sample_weight, or None")
        weights = np.asarray(compute_class_weight(class_weight, classes=self.classes, y=y), dtype=np.float64)
        if not ((weights > 0) & (weights < np.inf)).all():
            raise ValueError(
                f"class_weight should be above 0 and finite, got {class_weight}; leave samples out by sample_weight"
            )
        return (weights[:1], weights[1:]) if self.kind == "binary" else (np.ones(n_columns), weights)

    def decide(self, values: np.ndarray) -> np.ndarray:
        """The classes (n_samples,), or label sets (n_samples, n_labels), of decision values (n_samples, n_columns)."""
        return decide(values, self.classes, self.kind)

    @property
    def strata(self) -> np.ndarray:
        """(n_samples,) what folds are balanced by: the class, or for label sets nothing."""
        if self.kind == "multilabel":
            return np.zeros(len(self.signs), dtype=int)
        return self.signs[:, 0] > 0 if self.kind == "binary" else self.signs.argmax(axis=1)


def decide(values: np.ndarray, classes: np.ndarray, kind: Kind) -> np.ndarray:
    """The classes (n_samples,), or label sets (n_samples, n_labels), of decision values (n_samples, n_columns)."""
    if kind == "multilabel":
        return (values > 0).astype(int)
    return classes[(values[:, 0] > 0).astype(int) if kind == "binary" else values.argmax(axis=1)]
