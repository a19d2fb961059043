"""The classifiers that can stand on an embedding, by name: scikit-learn's own, most of them in the samples' space."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.svm import SVC
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from hf_tl.errors import InputError
from hf_tl.names import closest
from hf_tl.plugins import find_plugin, plugin_names
from hf_tl.probes.gram import Features, gram, plain_values
from hf_tl.probes.grid_search import SCALE_FREE, Cost, find_grid
from hf_tl.probes.svm import LinearSVM


NEIGHBOURS, TEMPERATURE = 10, 0.07  # as DINOv2 evaluates
HIDDEN = 256  # units of a hidden layer
SAMPLES_PER_FEATURE = 1.0  # below this, a head that is not linear is likely to memorise the samples
NEGLIGIBLE = 1e-12  # eigenvalues this far below the largest are rounding: duplicate samples, constant features


@runtime_checkable
class Head(Protocol):
    """What stands on an embedding: any scikit-learn classifier."""

    def fit(self, X: Features, y: np.ndarray) -> Head:
        """Learns from samples (n_samples, n_features) and their classes (n_samples,)."""

    def predict(self, X: Features) -> np.ndarray:
        """The class of each sample."""

    def score(self, X: Features, y: np.ndarray) -> float:
        """The accuracy."""


class HeadMaker(Protocol):
    """Makes a head; pass one of your own as `head`, or announce it as a plug-in (see `hf_tl.plugins`)."""

    def __call__(self, C: Cost, shape: tuple[int, int]) -> Head:
        """A classifier, not yet fitted, for (n_samples, n_features); C as `make_head` was given it."""


def make_head(
    name: str | HeadMaker,
    shape: tuple[int, int],
    *,
    C: Cost = "auto",
    hidden_layers: int = 1,
    random_state: int = 0,
) -> Head:
    """A classifier, not yet fitted.

    Args:
        name: "svm", "logreg", "ridge", "knn" (cosine, weighted by similarity), "lda", "kernel" (Gaussian) or "mlp";
            the name of a plug-in, "module:name", or a function of (C, shape).
        shape: (n_samples, n_features) that it will be fitted on; a head that is likely to overfit them warns.
        C: weight of the loss, for "svm", "logreg", "kernel" and, as 1 / alpha, "ridge"; "auto" chooses one on splits
            of the training samples ("kernel": 1). Except for "svm", it is for samples of mean squared norm 1. "knn",
            "lda" and "mlp" have none.
        hidden_layers: of "mlp", 1 to 3.
        random_state: of "mlp".

    Raises:
        InputError: an unknown name, a C that the head cannot use, or another number of layers; a plug-in that cannot
            be used.
    """
    if not isinstance(name, str) or name not in HEADS:
        return _foreign_head(name, C, shape)
    if name in ("kernel", "mlp") and shape[0] < SAMPLES_PER_FEATURE * shape[1]:
        warnings.warn(
            f"head {name!r} on {shape[0]:,} samples of {shape[1]:,} features can memorise them; compare it with "
            f"'svm' on samples it has not seen, or read fewer layers",
            UserWarning,
            stacklevel=2,
        )
    return _mlp(hidden_layers, random_state) if name == "mlp" else _MAKERS[name](C, shape)


def _foreign_head(name: str | HeadMaker, C: Cost, shape: tuple[int, int]) -> Head:
    maker = find_plugin("head", name) if isinstance(name, str) else name
    if maker is None:
        known = sorted([*HEADS, *plugin_names("head")])
        raise InputError(f"there is no head {name!r} among {known}; {closest(str(name), known)}")
    made = maker(C, shape)
    if not isinstance(made, Head):
        raise InputError(
            f"head {name!r} should make a classifier with fit, predict and score, got {type(made).__name__}"
        )
    return made


def _svm(C: Cost, shape: tuple[int, int]) -> Head:
    return LinearSVM(C)


def _logreg(C: Cost, shape: tuple[int, int]) -> Head:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    if isinstance(C, float | int):
        return _in_row_space(LogisticRegression(C=C, max_iter=1000))
    grid = {"C": _unit_grid(C).tolist()}
    return _in_row_space(GridSearchCV(LogisticRegression(max_iter=1000), grid, cv=_few_folds(shape)))


def _ridge(C: Cost, shape: tuple[int, int]) -> Head:
    from sklearn.linear_model import RidgeClassifier, RidgeClassifierCV

    if isinstance(C, float | int):
        return _in_row_space(RidgeClassifier(alpha=1 / C))
    return _in_row_space(RidgeClassifierCV(alphas=1 / _unit_grid(C)))


def _knn(C: Cost, shape: tuple[int, int]) -> Head:
    from sklearn.neighbors import KNeighborsClassifier

    neighbours = min(NEIGHBOURS, shape[0])
    return KNeighborsClassifier(neighbours, metric="cosine", algorithm="brute", weights=weight_by_similarity)


def _lda(C: Cost, shape: tuple[int, int]) -> Head:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    return _in_row_space(LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"))


def _kernel(C: Cost, shape: tuple[int, int]) -> Head:
    if not isinstance(C, float | int) and C != "auto":
        raise InputError(f"head 'kernel' takes one C, got {C}; 'svm' and 'logreg' choose among several")
    return KernelSVM(C if isinstance(C, float | int) else 1.0)


def _mlp(hidden_layers: int, random_state: int) -> Head:
    from sklearn.neural_network import MLPClassifier

    if not 1 <= hidden_layers <= 3:
        raise InputError(f"head 'mlp' takes 1 to 3 hidden layers, got {hidden_layers}")
    network = MLPClassifier((HIDDEN,) * hidden_layers, alpha=1e-2, max_iter=300, random_state=random_state)
    return _in_row_space(network)


def weight_by_similarity(distances: np.ndarray) -> np.ndarray:
    """Votes of neighbours, exp(cosine similarity / 0.07): cosine distances -> weights of the same shape."""
    return np.exp((1 - distances) / TEMPERATURE)


def _in_row_space(estimator: object) -> Head:
    from sklearn.pipeline import make_pipeline

    return make_pipeline(RowSpace(unit=True), estimator)


def _unit_grid(C: Cost) -> np.ndarray:
    return np.asarray(SCALE_FREE if C == "auto" else find_grid(C, 1.0))


def _few_folds(shape: tuple[int, int]) -> int:
    return 5 if shape[0] >= 200 else 2


_MAKERS: dict[str, Callable[[Cost, tuple[int, int]], Head]] = {
    "svm": _svm,
    "logreg": _logreg,
    "ridge": _ridge,
    "knn": _knn,
    "lda": _lda,
    "kernel": _kernel,
}
HEADS = (*_MAKERS, "mlp")


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
