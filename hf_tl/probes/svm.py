"""A linear support vector machine that costs what the rows cost, however many features there are."""

from __future__ import annotations

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.svm import LinearSVC
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data


FEATURES_AT_ONCE = 4096
NEGLIGIBLE = 1e-12  # eigenvalues this far below the largest are rounding: duplicate rows, constant features


class LinearSVM(ClassifierMixin, BaseEstimator):
    """One-against-the-rest linear SVM with squared hinge loss: scikit-learn's `LinearSVC`, solved among the rows.

    With fewer rows than features, the solution lies in the span of the rows, so `LinearSVC` is fitted on an
    (n_rows, n_rows) factor Z of the Gram matrix, X X^T = Z Z^T, and its coefficients are mapped back. An L2 penalty
    does not see the rotation between X and Z: the solution is the same, in seconds where `LinearSVC` on X takes
    a minute. With more rows than features, X is used as it is.

    As in liblinear, the intercept is penalised like a weight of a feature that is always 1.

    Args:
        C: weight of the loss against the penalty. The rows of a discretised embedding have squared lengths near
            10^4, so C=1, the choice of the full-network embedding paper, is practically a hard margin.
        class_weight: None, "balanced", or class -> weight.
        tol: `LinearSVC`'s stopping tolerance.
        max_iter: `LinearSVC`'s limit on iterations.
        random_state: seed of the order in which `LinearSVC` visits the rows.

    Attributes:
        classes_: (n_classes,).
        coef_: (n_classes, n_features), or (1, n_features) for two classes, float64.
        intercept_: (n_classes,) or (1,).
        n_iter_: iterations of `LinearSVC`.
    """

    def __init__(
        self,
        C: float = 1.0,
        *,
        class_weight: dict | str | None = None,
        tol: float = 1e-4,
        max_iter: int = 20_000,
        random_state: int | None = 0,
    ):
        self.C = C
        self.class_weight = class_weight
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X: np.ndarray, y: np.ndarray) -> LinearSVM:
        """Fits on X (n_rows, n_features), real or integer, and y (n_rows,), integers or strings.

        Raises:
            ValueError: one class only, NaN, or lengths that differ.
        """
        X, y = validate_data(self, X, y, dtype=None, ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_ = np.unique(y)
        if len(self.classes_) < 2:
            raise ValueError(f"expected two classes or more, got one class only: {self.classes_.tolist()}")
        svc = LinearSVC(
            C=self.C,
            class_weight=self.class_weight,
            tol=self.tol,
            max_iter=self.max_iter,
            random_state=self.random_state,
            dual=len(X) <= X.shape[1],
        )
        if len(X) < X.shape[1]:
            factor, vectors, scale = gram_factor(X)
            svc.fit(factor, y)
            self.coef_ = _blockwise(((svc.coef_ / scale) @ vectors.T), X)
        else:
            self.coef_ = svc.fit(X.astype(np.float64), y).coef_
        self.intercept_ = np.atleast_1d(svc.intercept_)
        self.n_iter_ = svc.n_iter_
        return self

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        """Signed distances times the norm of the weights: (n_rows, n_classes), or (n_rows,) for two classes."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=None, reset=False)
        scores = self.intercept_ + sum(
            X[:, part].astype(np.float64) @ self.coef_[:, part].T for part in _parts(X.shape[1])
        )
        return scores.ravel() if len(self.classes_) == 2 else scores

    def predict(self, X: np.ndarray) -> np.ndarray:
        """The class of each row: (n_rows,)."""
        scores = self.decision_function(X)
        chosen = (scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)
        return self.classes_[chosen]


def gram_factor(X: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Z with Z Z^T = X X^T, from the eigenvectors of the Gram matrix.

    Args:
        X: (n_rows, n_features).

    Returns:
        Z (n_rows, rank), the eigenvectors V (n_rows, rank) and the square roots s of their eigenvalues (rank,):
        Z = V s, and the rows' coordinates are X = Z (V / s)^T X.
    """
    gram = np.zeros((len(X), len(X)))
    for part in _parts(X.shape[1]):
        block = X[:, part].astype(np.float64)
        gram += block @ block.T
    eigenvalues, vectors = np.linalg.eigh(gram)
    if eigenvalues[-1] <= 0:  # every feature of every row is 0
        return np.zeros((len(X), 1)), vectors[:, -1:], np.ones(1)
    kept = eigenvalues > NEGLIGIBLE * eigenvalues[-1]
    scale, vectors = np.sqrt(eigenvalues[kept]), vectors[:, kept]
    return vectors * scale, vectors, scale


def _blockwise(weights: np.ndarray, X: np.ndarray) -> np.ndarray:
    """weights @ X in float64, without a float64 copy of X."""
    out = np.empty((len(weights), X.shape[1]))
    for part in _parts(X.shape[1]):
        out[:, part] = weights @ X[:, part].astype(np.float64)
    return out


def _parts(n_features: int) -> list[slice]:
    return [slice(start, start + FEATURES_AT_ONCE) for start in range(0, n_features, FEATURES_AT_ONCE)]
