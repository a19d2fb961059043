"""The classifiers that can stand on an embedding, by name: scikit-learn's own, most of them in the rows' space."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from hf_tl.errors import InputError
from hf_tl.names import closest
from hf_tl.plugins import find_plugin, plugin_names
from hf_tl.probes.features import LazyRows


NEIGHBOURS, TEMPERATURE = 10, 0.07  # as DINOv2 evaluates
HIDDEN = 256  # units of a hidden layer
ROWS_PER_FEATURE = 1.0  # below this, a head that is not linear is likely to learn the rows by heart


@runtime_checkable
class Head(Protocol):
    """What stands on an embedding: any scikit-learn classifier."""

    def fit(self, X: LazyRows, y: np.ndarray) -> Head:
        """Learns from rows (n_rows, n_features) and their classes (n_rows,)."""

    def predict(self, X: LazyRows) -> np.ndarray:
        """The class of each row."""

    def score(self, X: LazyRows, y: np.ndarray) -> float:
        """The accuracy."""


class HeadMaker(Protocol):
    """Makes a head; pass one of your own as `head`, or announce it as a plug-in (see `hf_tl.plugins`)."""

    def __call__(self, C: float | Sequence[float] | str, shape: tuple[int, int]) -> Head:
        """A classifier, not yet fitted, for (rows, features); C as `make_head` was given it."""


def make_head(
    name: str | HeadMaker,
    shape: tuple[int, int],
    *,
    C: float | Sequence[float] | Literal["auto"] = "auto",
    hidden_layers: int = 1,
    seed: int = 0,
) -> Head:
    """A classifier, not yet fitted.

    Args:
        name: "svm", "logreg", "ridge", "knn" (cosine, weighted by similarity), "lda", "kernel" (Gaussian) or "mlp";
            the name of a plug-in, "module:name", or a function of (C, shape).
        shape: (rows, features) that it will be fitted on; a head that is likely to overfit them warns.
        C: weight of the loss, for "svm", "logreg", "kernel" and, as 1 / alpha, "ridge"; "auto" chooses one on splits
            of the training rows ("kernel": 1). Except for "svm", it is for rows of mean squared length 1. "knn",
            "lda" and "mlp" have none.
        hidden_layers: of "mlp", 1 to 3.
        seed: of "mlp".

    Raises:
        InputError: an unknown name, a C that the head cannot use, or another number of layers; a plug-in that cannot
            be used.
    """
    if not isinstance(name, str) or name not in HEADS:
        return _foreign_head(name, C, shape)
    if name in ("kernel", "mlp") and shape[0] < ROWS_PER_FEATURE * shape[1]:
        warnings.warn(
            f"head {name!r} on {shape[0]:,} rows of {shape[1]:,} features can learn them by heart; compare it with "
            f"'svm' on rows it has not seen, or read fewer layers",
            UserWarning,
            stacklevel=2,
        )
    if name == "mlp":
        return _mlp(hidden_layers, seed)
    return HEADS[name](C, shape)


def _foreign_head(name: str | HeadMaker, C: float | Sequence[float] | str, shape: tuple[int, int]) -> Head:
    maker = find_plugin("head", name) if isinstance(name, str) else name
    if maker is None:
        known = sorted([*HEADS, *plugin_names("head")])
        raise InputError(f"there is no head {name!r} among {known}; {closest(name, known)}")
    made = maker(C, shape)
    if not isinstance(made, Head):
        raise InputError(
            f"head {name!r} should make a classifier with fit, predict and score, got {type(made).__name__}"
        )
    return made


def _svm(C: float | Sequence[float] | str, shape: tuple[int, int]) -> Head:
    from hf_tl.probes.svm import LinearSVM

    return LinearSVM(C)


def _logreg(C: float | Sequence[float] | str, shape: tuple[int, int]) -> Head:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    if isinstance(C, float | int):
        return _in_row_space(LogisticRegression(C=C, max_iter=1000))
    grid = {"C": _unit_grid(C).tolist()}
    return _in_row_space(GridSearchCV(LogisticRegression(max_iter=1000), grid, cv=_few_folds(shape)))


def _ridge(C: float | Sequence[float] | str, shape: tuple[int, int]) -> Head:
    from sklearn.linear_model import RidgeClassifier, RidgeClassifierCV

    if isinstance(C, float | int):
        return _in_row_space(RidgeClassifier(alpha=1 / C))
    return _in_row_space(RidgeClassifierCV(alphas=1 / _unit_grid(C)))


def _knn(C: float | Sequence[float] | str, shape: tuple[int, int]) -> Head:
    from sklearn.neighbors import KNeighborsClassifier

    neighbours = min(NEIGHBOURS, shape[0])
    return KNeighborsClassifier(neighbours, metric="cosine", algorithm="brute", weights=weight_by_similarity)


def _lda(C: float | Sequence[float] | str, shape: tuple[int, int]) -> Head:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    return _in_row_space(LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"))


def _kernel(C: float | Sequence[float] | str, shape: tuple[int, int]) -> Head:
    from hf_tl.probes.kernel import KernelSVM

    if not isinstance(C, float | int) and C != "auto":
        raise InputError(f"head 'kernel' takes one C, got {C}; 'svm' and 'logreg' choose among several")
    return KernelSVM(1.0 if C == "auto" else C)


def _mlp(hidden_layers: int, seed: int) -> Head:
    from sklearn.neural_network import MLPClassifier

    if not 1 <= hidden_layers <= 3:
        raise InputError(f"head 'mlp' takes 1 to 3 hidden layers, got {hidden_layers}")
    network = MLPClassifier((HIDDEN,) * hidden_layers, alpha=1e-2, max_iter=300, random_state=seed)
    return _in_row_space(network)


def weight_by_similarity(distances: np.ndarray) -> np.ndarray:
    """Votes of neighbours, exp(cosine similarity / 0.07): cosine distances -> weights of the same shape."""
    return np.exp((1 - distances) / TEMPERATURE)


def _in_row_space(estimator: object) -> Head:
    from sklearn.pipeline import make_pipeline

    from hf_tl.probes.row_space import RowSpace

    return make_pipeline(RowSpace(unit=True), estimator)


def _unit_grid(C: Sequence[float] | str) -> np.ndarray:
    from hf_tl.probes.selection import SCALE_FREE, find_grid

    return np.asarray(SCALE_FREE if C == "auto" else find_grid(C, 1.0))


def _few_folds(shape: tuple[int, int]) -> int:
    return 5 if shape[0] >= 200 else 2


HEADS: dict[str, Callable[[float | Sequence[float] | str, tuple[int, int]], Head] | None] = {
    "svm": _svm,
    "logreg": _logreg,
    "ridge": _ridge,
    "knn": _knn,
    "lda": _lda,
    "kernel": _kernel,
    "mlp": None,  # takes layers and a seed instead of C
}
