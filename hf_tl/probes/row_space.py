"""The space that samples span: few coordinates, in which linear models have the solution that features give them."""

from __future__ import annotations

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from hf_tl.probes.gram import Features, gram, plain_values, weighted_rows


NEGLIGIBLE = 1e-12  # eigenvalues this far below the largest are rounding: duplicate samples, constant features


class RowSpace(TransformerMixin, BaseEstimator):
    """Samples X (n_samples, n_features) -> Z (n_samples, rank) with Z Z^T = X X^T, rank <= n_samples.

    An L2-penalised linear model does not see the rotation between X and Z, nor does the order of cosine distances:
    `make_pipeline(RowSpace(), LogisticRegression())` has the decision values of `LogisticRegression()` on X, in a
    fraction of its time where features are many. What a new sample has outside the space is left out; no linear model
    that was fitted on the training samples can see it.

    Args:
        unit: divide all coordinates by one number, so that the training samples have mean squared norm 1 and C means
            the same for every embedding.

    Attributes:
        rows_: (n_samples, n_features) the training samples.
        axes_: (n_samples, rank): Z = X X_train^T axes_.
    """

    def __init__(self, *, unit: bool = False):
        self.unit = unit

    def fit(self, X: Features, y: object = None) -> RowSpace:
        """Finds the space of the samples X (n_samples, n_features), real or integer; y is not looked at."""
        self.fit_transform(X)
        return self

    def fit_transform(self, X: Features, y: object = None) -> np.ndarray:
        """`fit`, and the coordinates of the same samples X: (n_samples, rank) float64; y is not looked at."""
        samples = validate_data(self, plain_values(X), dtype=None)
        eigenvalues, vectors = np.linalg.eigh(gram(samples))
        kept = eigenvalues > NEGLIGIBLE * max(eigenvalues[-1], NEGLIGIBLE)
        if not kept.any():  # every feature of every sample is 0
            kept[-1], eigenvalues[-1] = True, 1.0
        scale = np.sqrt(eigenvalues[kept])
        length = np.sqrt(eigenvalues[kept].mean() * kept.sum() / len(samples)) if self.unit else 1.0
        self.rows_ = samples
        self.axes_ = vectors[:, kept] / (scale * length)
        return vectors[:, kept] * (scale / length)

    def transform(self, X: Features) -> np.ndarray:
        """The coordinates of further samples X (n_samples, n_features): (n_samples, rank) float64."""
        check_is_fitted(self)
        samples = validate_data(self, plain_values(X), dtype=None, reset=False)
        return gram(samples, self.rows_) @ self.axes_

    def in_features(self, weights: np.ndarray) -> np.ndarray:
        """Weights of coordinates, (n_outputs, rank), as weights of features, (n_outputs, n_features) float64."""
        check_is_fitted(self)
        return weighted_rows(self.axes_ @ weights.T, self.rows_)
