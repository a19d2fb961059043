"""The exact reduction: coordinates in the space that the training rows span, as many as there are rows at most."""

from __future__ import annotations

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from hf_tl.probes.features import LazyRows, gram, plain_values


NEGLIGIBLE = 1e-12  # eigenvalues this far below the largest are rounding: duplicate rows, constant features


class RowSpace(TransformerMixin, BaseEstimator):
    """Rows X (n_rows, n_features) -> Z (n_rows, rank) with Z Z^T = X X^T, rank <= n_rows.

    An L2-penalised linear model does not see the rotation between X and Z, nor does the order of cosine distances:
    `make_pipeline(RowSpace(), LogisticRegression())` has the decision values of `LogisticRegression()` on X, in a
    fraction of its time where features are many. What a new row has outside the space is left out; no linear model
    that was fitted on the training rows can see it.

    Args:
        unit: divide all coordinates by one number, so that the training rows have mean squared length 1 and C means
            the same for every embedding.

    Attributes:
        rows_: (n_rows, n_features) the training rows.
        axes_: (n_rows, rank): Z = X X_train^T axes_.
    """

    def __init__(self, *, unit: bool = False):
        self.unit = unit

    def fit(self, X: LazyRows, y: object = None) -> RowSpace:
        """Finds the space of the rows X (n_rows, n_features), real or integer; y is not looked at."""
        self.fit_transform(X)
        return self

    def fit_transform(self, X: LazyRows, y: object = None) -> np.ndarray:
        """`fit`, and the coordinates of the same rows X: (n_rows, rank) float64; y is not looked at."""
        X = validate_data(self, plain_values(X), dtype=None)
        eigenvalues, vectors = np.linalg.eigh(gram(X))
        kept = eigenvalues > NEGLIGIBLE * max(eigenvalues[-1], NEGLIGIBLE)
        if not kept.any():  # every feature of every row is 0
            kept[-1], eigenvalues[-1] = True, 1.0
        scale = np.sqrt(eigenvalues[kept])
        length = np.sqrt(eigenvalues[kept].mean() * kept.sum() / len(X)) if self.unit else 1.0
        self.rows_ = X
        self.axes_ = vectors[:, kept] / (scale * length)
        return vectors[:, kept] * (scale / length)

    def transform(self, X: LazyRows) -> np.ndarray:
        """The coordinates of further rows X (n_rows, n_features): (n_rows, rank) float64."""
        check_is_fitted(self)
        X = validate_data(self, plain_values(X), dtype=None, reset=False)
        return gram(X, self.rows_) @ self.axes_
