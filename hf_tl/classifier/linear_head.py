"""A linear head: a weight for each class and feature, whichever estimator found them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline

from hf_tl.errors import InputError
from hf_tl.probes.gram import weighted_rows
from hf_tl.probes.heads import Head
from hf_tl.probes.row_space import RowSpace
from hf_tl.probes.svm import LinearSVM


LINEAR_HEADS = ("svm", "logreg", "ridge", "lda")


@dataclass(frozen=True)
class LinearHead:
    """Features -> a logit for each class.

    Attributes:
        coef: (n_classes, n_features) float32.
        intercept: (n_classes,) float32.
    """

    coef: np.ndarray
    intercept: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Features (n, n_features) -> logits (n, n_classes), float64."""
        return features.astype(np.float64) @ self.coef.T.astype(np.float64) + self.intercept


def linear_head(fitted: Head) -> LinearHead:
    """The weights of a fitted head; two classes share the one decision value d of theirs as (-d / 2, d / 2).

    Raises:
        InputError: a head that is not linear, which no file of weights can hold.
    """
    coef, intercept = _weights(fitted)
    if len(coef) == 1:
        coef, intercept = np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
    return LinearHead(coef.astype(np.float32), intercept.astype(np.float32))


def _weights(fitted: Head) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(fitted, LinearSVM):
        return fitted.coef_, fitted.intercept_
    if isinstance(fitted, Pipeline) and isinstance(fitted[0], RowSpace):
        space, last = fitted[0], fitted[-1]
        estimator = last.best_estimator_ if isinstance(last, GridSearchCV) else last
        if "coef_" in vars(estimator):
            coef = np.atleast_2d(estimator.coef_)
            return weighted_rows(space.axes_ @ coef.T, space.rows_), np.atleast_1d(estimator.intercept_)
    raise InputError(
        f"a classifier is saved with a linear head, {', '.join(LINEAR_HEADS)}; this one is a {type(fitted).__name__}"
    )
