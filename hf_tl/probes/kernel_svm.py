"""An SVM with a Gaussian kernel, whose distances come from one Gram matrix."""

from __future__ import annotations

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.svm import SVC
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from hf_tl.probes.gram import Features, gram, plain_values


class KernelSVM(ClassifierMixin, BaseEstimator):
    """scikit-learn's `SVC` with exp(-gamma |x - z|^2), where all distances come from one Gram matrix.

    Unlike `LinearSVM` it is one-against-one, with the plain hinge loss and a free intercept, as libsvm is.

    Args:
        C: weight of the loss.
        gamma: the kernel's; None for 1 over the mean squared distance of training samples.

    Attributes:
        classes_: (n_classes,).
        gamma_: the gamma in use.
    """

    def __init__(self, C: float = 1.0, *, gamma: float | None = None):
        self.C = C
        self.gamma = gamma

    def fit(self, X: Features, y: np.ndarray) -> KernelSVM:
        """Fits on X (n_samples, n_features), real or integer, and y (n_samples,)."""
        samples, y = validate_data(self, plain_values(X), y, dtype=None, ensure_min_samples=2)
        check_classification_targets(y)
        among = gram(samples)
        self.rows_, self.squares_ = samples, among.diagonal().copy()
        distances = _squared_distances(among, self.squares_, self.squares_)
        self.gamma_ = self.gamma if self.gamma is not None else 1 / max(float(distances.mean()), 1e-12)
        self.svc_ = SVC(C=self.C, kernel="precomputed").fit(np.exp(-self.gamma_ * distances), y)
        self.classes_ = self.svc_.classes_
        return self

    def decision_function(self, X: Features) -> np.ndarray:
        """Decision values of X (n_samples, n_features): (n_samples, n_classes), or (n_samples,) for two classes."""
        kernel = self._kernel(X)
        return self.svc_.decision_function(kernel)

    def predict(self, X: Features) -> np.ndarray:
        """The class of each row of X (n_samples, n_features): (n_samples,)."""
        kernel = self._kernel(X)
        return self.svc_.predict(kernel)

    def _kernel(self, X: Features) -> np.ndarray:
        check_is_fitted(self)
        samples = validate_data(self, plain_values(X), dtype=None, reset=False)
        squares = np.square(np.asarray(samples, dtype=np.float64)).sum(axis=1)
        return np.exp(-self.gamma_ * _squared_distances(gram(samples, self.rows_), squares, self.squares_))


def _squared_distances(products: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.maximum(first[:, None] + second - 2 * products, 0)
