"""The heads that can stand on an embedding, by name: scikit-learn's own, most of them in the samples' space."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from hf_tl.errors import InputError
from hf_tl.labels import Problem
from hf_tl.names import closest
from hf_tl.plugins import find_plugin, plugin_names
from hf_tl.probes.gram import Features
from hf_tl.probes.grid_search import SCALE_FREE, Cost, check_groups, find_grid, stratified_folds, usable_folds
from hf_tl.probes.kernel_svm import KernelSVM
from hf_tl.probes.row_space import RowSpace
from hf_tl.probes.svm import LinearSVM


NEIGHBOURS, TEMPERATURE = 10, 0.07  # as DINOv2 evaluates
HIDDEN = 256  # units of a hidden layer
SAMPLES_PER_FEATURE = 1.0  # below this, a head that is not linear is likely to memorise the samples


@runtime_checkable
class Head(Protocol):
    """What stands on an embedding: any scikit-learn classifier or regressor."""

    def fit(self, X: Features, y: np.ndarray) -> Head:
        """Learns from samples (n_samples, n_features) and their labels, see `hf_tl.labels.find_problem`."""

    def predict(self, X: Features) -> np.ndarray:
        """The labels of each sample."""

    def score(self, X: Features, y: np.ndarray) -> float:
        """scikit-learn's: the accuracy of classes, R^2 of numbers."""


class HeadMaker(Protocol):
    """Makes a head; pass one of your own as `head`, or announce it as a plug-in (see `hf_tl.plugins`)."""

    def __call__(self, C: Cost, shape: tuple[int, int]) -> Head:
        """A head, not yet fitted, for (n_samples, n_features); C as `make_head` was given it."""


def make_head(
    name: str | HeadMaker,
    shape: tuple[int, int],
    *,
    C: Cost = "auto",
    problem: Problem = "classification",
    hidden_layers: int = 1,
    random_state: int = 0,
) -> Head:
    """A classifier or regressor, not yet fitted.

    Args:
        name: "svm", "logreg", "ridge", "knn" (cosine, weighted by similarity), "lda", "kernel" (Gaussian) or "mlp";
            the name of a plug-in, "module:name", or a function of (C, shape).
        shape: (n_samples, n_features) that it will be fitted on; a head that is likely to overfit them warns.
        C: weight of the loss, for "svm", "logreg", "kernel" and, as 1 / alpha, "ridge"; "auto" chooses one on splits
            of the training samples ("kernel": 1). Except for "svm", it is for samples of mean squared norm 1. "knn",
            "lda" and "mlp" have none.
        problem: "classification"; "multilabel", which "lda" and "kernel" do not solve; or "regression", which "ridge"
            and "knn" do.
        hidden_layers: of "mlp", 1 to 3.
        random_state: of "mlp".

    Raises:
        InputError: an unknown name, another problem than the head solves, a C that it cannot use, or another number
            of layers; a plug-in that cannot be used.
    """
    if not isinstance(name, str) or name not in HEADS:
        return _foreign_head(name, C, shape)
    solving = [head for head, problems in HEADS.items() if problem in problems]
    if name not in solving:
        raise InputError(f"head {name!r} does not solve a {problem} problem; choose one of {', '.join(solving)}")
    if name in ("kernel", "mlp") and shape[0] < SAMPLES_PER_FEATURE * shape[1]:
        warnings.warn(
            f"head {name!r} on {shape[0]:,} samples of {shape[1]:,} features can memorise them; compare it with "
            f"'svm' on samples it has not seen, or read fewer layers",
            UserWarning,
            stacklevel=2,
        )
    return _MAKERS[name](_Options(C, shape, problem, hidden_layers, random_state))


def fit_head(head: Head, X: Features, y: np.ndarray, *, groups: np.ndarray | None = None) -> Head:
    """The head, fitted; where it chooses among several C, samples of one group are held out together.

    Args:
        head: from `make_head`; one of another make holds out what it likes.
        X: (n_samples, n_features).
        y: labels.
        groups: (n_samples,) samples of one number, such as copies.

    Raises:
        InputError: groups of other samples.
    """
    from sklearn.linear_model import RidgeClassifierCV, RidgeCV
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import Pipeline

    groups = check_groups(groups, len(y))
    if groups is None:
        return head.fit(X, y)
    if isinstance(head, LinearSVM):
        return head.fit(X, y, groups=groups)
    search = head[-1] if isinstance(head, Pipeline) else None
    if isinstance(search, (GridSearchCV, RidgeCV, RidgeClassifierCV)):
        strata = y if y.ndim == 1 and y.dtype.kind != "f" else np.zeros(len(y))
        n_folds = usable_folds(strata, groups=groups)
        if n_folds:
            fold = stratified_folds(strata, n_splits=n_folds, groups=groups)
            search.set_params(cv=[(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in np.unique(fold)])
    return head.fit(X, y)


def default_head(problem: Problem) -> str:
    """The name of the head that is usually enough: "ridge" for numbers, "svm" for classes."""
    return "ridge" if problem == "regression" else "svm"


def linear_weights(head: Head) -> tuple[np.ndarray, np.ndarray]:
    """What a fitted linear head computes, X @ weights.T + bias: decision values of classes, or the numbers themselves.

    Args:
        head: from `make_head`: "svm", "logreg", "ridge" or "lda", fitted; or another linear one in a `RowSpace`.

    Returns:
        Weights (n_outputs, n_features) and bias (n_outputs,), float64; one output for two classes, or for numbers.

    Raises:
        InputError: a head that is not linear.
    """
    from sklearn.model_selection import GridSearchCV
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import Pipeline

    if isinstance(head, LinearSVM):
        return head.coef_, head.intercept_
    space, estimator = (head[0], head[1]) if isinstance(head, Pipeline) and len(head) == 2 else (None, head)
    if isinstance(estimator, GridSearchCV):
        estimator = estimator.best_estimator_
    parts: list[Any] = estimator.estimators_ if isinstance(estimator, OneVsRestClassifier) else [estimator]
    if not isinstance(space, RowSpace) or not all("coef_" in vars(part) for part in parts):
        raise InputError(
            f"{type(estimator).__name__} has no weights of features; 'svm', 'ridge', 'logreg', 'lda' have"
        )
    weights = np.concatenate([np.atleast_2d(part.coef_) for part in parts])
    return space.in_features(weights), np.concatenate([np.atleast_1d(part.intercept_) for part in parts])


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


@dataclass(frozen=True)
class _Options:
    C: Cost
    shape: tuple[int, int]
    problem: Problem
    hidden_layers: int
    random_state: int

    @property
    def grid(self) -> np.ndarray:
        """Values of C for samples of mean squared norm 1."""
        return np.asarray(SCALE_FREE if self.C == "auto" else find_grid(self.C, 1.0))


def _svm(options: _Options) -> Head:
    return LinearSVM(options.C)


def _logreg(options: _Options) -> Head:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, KFold
    from sklearn.multiclass import OneVsRestClassifier

    C, n_folds = options.C, 5 if options.shape[0] >= 200 else 2
    if options.problem == "multilabel":
        several = OneVsRestClassifier(LogisticRegression(max_iter=1000))
        if isinstance(C, float | int):
            return _in_row_space(several.set_params(estimator__C=C))
        folds = KFold(n_folds, shuffle=True, random_state=0)
        return _in_row_space(GridSearchCV(several, {"estimator__C": options.grid}, scoring="f1_micro", cv=folds))
    if isinstance(C, float | int):
        return _in_row_space(LogisticRegression(C=C, max_iter=1000))
    return _in_row_space(GridSearchCV(LogisticRegression(max_iter=1000), {"C": options.grid.tolist()}, cv=n_folds))


def _ridge(options: _Options) -> Head:
    from sklearn.linear_model import Ridge, RidgeClassifier, RidgeClassifierCV, RidgeCV

    regression = options.problem == "regression"
    if isinstance(options.C, float | int):
        return _in_row_space((Ridge if regression else RidgeClassifier)(alpha=1 / options.C))
    return _in_row_space((RidgeCV if regression else RidgeClassifierCV)(alphas=1 / options.grid))


def _knn(options: _Options) -> Head:
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

    kind = KNeighborsRegressor if options.problem == "regression" else KNeighborsClassifier
    neighbours = min(NEIGHBOURS, options.shape[0])
    return kind(neighbours, metric="cosine", algorithm="brute", weights=weight_by_similarity)


def _lda(options: _Options) -> Head:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    return _in_row_space(LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"))


def _kernel(options: _Options) -> Head:
    C = options.C
    if not isinstance(C, float | int) and C != "auto":
        raise InputError(f"head 'kernel' takes one C, got {C}; 'svm' and 'logreg' choose among several")
    return KernelSVM(C if isinstance(C, float | int) else 1.0)


def _mlp(options: _Options) -> Head:
    from sklearn.neural_network import MLPClassifier

    if not 1 <= options.hidden_layers <= 3:
        raise InputError(f"head 'mlp' takes 1 to 3 hidden layers, got {options.hidden_layers}")
    hidden = (HIDDEN,) * options.hidden_layers
    return _in_row_space(MLPClassifier(hidden, alpha=1e-2, max_iter=300, random_state=options.random_state))


def weight_by_similarity(distances: np.ndarray) -> np.ndarray:
    """Votes of neighbours, exp(cosine similarity / 0.07): cosine distances -> weights of the same shape."""
    return np.exp((1 - distances) / TEMPERATURE)


def _in_row_space(estimator: object) -> Head:
    from sklearn.pipeline import make_pipeline

    return make_pipeline(RowSpace(unit=True), estimator)


_MAKERS: dict[str, Callable[[_Options], Head]] = {
    "svm": _svm,
    "logreg": _logreg,
    "ridge": _ridge,
    "knn": _knn,
    "lda": _lda,
    "kernel": _kernel,
    "mlp": _mlp,
}
HEADS: dict[str, tuple[Problem, ...]] = {
    "svm": ("classification", "multilabel"),
    "logreg": ("classification", "multilabel"),
    "ridge": ("classification", "multilabel", "regression"),
    "knn": ("classification", "multilabel", "regression"),
    "lda": ("classification",),
    "kernel": ("classification",),
    "mlp": ("classification", "multilabel"),
}
