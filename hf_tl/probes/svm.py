"""A linear support vector machine that costs what the samples cost, however many features there are."""

from __future__ import annotations

from typing import Literal

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags, column_or_1d
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from hf_tl.embedding.embedding import Embedding
from hf_tl.errors import InputError
from hf_tl.labels import renumber
from hf_tl.probes.active_set import SampleSpace, solve, warn_if_inexact
from hf_tl.probes.gram import (
    BEYOND,
    Features,
    Matrix,
    gram,
    is_lazy,
    plain_values,
    read_rows,
    row_blocks,
    weighted_rows,
)
from hf_tl.probes.grid_search import Cost, Search, find_grid, search, stratified_folds
from hf_tl.probes.one_vs_rest import OneVsRest, decide


GRAM_SAMPLES = 15_000  # a Gram matrix of 1.8 GB
HELD_OUT = 10  # one sample in so many chooses C where there are too many for folds


class LinearSVM(ClassifierMixin, BaseEstimator):
    """One-against-the-rest linear SVM with squared hinge loss: the objective of scikit-learn's `LinearSVC`.

    The solution lies in the span of the samples, so it is found among them: one Gram matrix serves every class, every
    C and every fold (`hf_tl.probes.active_set`), in a second where `LinearSVC` takes a minute; where features differ
    so much in scale that rounding counts, an interior point method takes over (`hf_tl.probes.interior_point`). Beyond
    15,000 samples it is found among the features, with the samples read in blocks, so that they need not fit into
    memory (`hf_tl.probes.primal`). A solution that may be off is reported by a `ConvergenceWarning`.

    As in liblinear, the intercept is penalised like the weight of a feature that is always 1.

    Args:
        C: weight of the loss against the penalty; several values, of which the best is chosen on splits of the
            training samples; or "auto", nine values from 0.1 to 1000 over the mean squared L2 norm of a sample. The
            samples of a discretised embedding have squared norms near 10^4, so C=1, the choice of the full-network
            embedding paper, is practically a hard margin.
        class_weight: None, "balanced", or class -> weight above 0.
        solver: "dual" (Gram matrix), "primal" (blocks of samples), or "auto".
        tol: relative distance of the objective from its minimum at which the solver "primal" stops; "dual" is exact.
        max_iter: passes over the samples after which the solver "primal" stops in any case.
        device: where the solver "primal" multiplies.

    Attributes:
        classes_: (n_classes,).
        coef_: (n_classes, n_features), or (1, n_features) for two classes, float64.
        intercept_: (n_classes,) or (1,).
        C_: the C in use.
        search_: how it was chosen; None where one was given.
        n_iter_: passes over the samples of the solver "primal", else 1.
    """

    def __init__(
        self,
        C: Cost = 1.0,
        *,
        class_weight: dict | str | None = None,
        solver: Literal["auto", "dual", "primal"] = "auto",
        tol: float = 1e-5,
        max_iter: int = 1000,
        device: str = "cpu",
    ):
        self.C = C
        self.class_weight = class_weight
        self.solver = solver
        self.tol = tol
        self.max_iter = max_iter
        self.device = device

    def fit(
        self,
        X: Features,
        y: np.ndarray,
        sample_weight: np.ndarray | None = None,
        groups: np.ndarray | None = None,
    ) -> LinearSVM:
        """Fits on X (n_samples, n_features), real or integer, an embedding, a memory-mapped or a lazy array.

        Args:
            X: the features.
            y: (n_samples,) integers or strings, or (n_samples, n_labels) of 0 and 1 for label sets.
            sample_weight: (n_samples,) factors of the samples' losses, 0 or more.
            groups: (n_samples,) samples of one number, such as copies, are held out together in the search for C.

        Raises:
            ValueError: one class only, NaN, values whose squares overflow, or lengths that differ.
        """
        if self.solver not in ("auto", "dual", "primal"):
            raise ValueError(f"solver should be 'auto', 'dual' or 'primal', got {self.solver!r}")
        self._names = _class_names(X, y)
        X, y = self._checked(X, y)
        columns = OneVsRest.of(y)
        weights = _check_sample_weight(
            sample_weight, np.empty((len(y), 0)), dtype=np.float64, ensure_non_negative=True
        )
        self.classes_, self._kind = columns.classes, columns.kind
        negative, positive = columns.weights(self.class_weight, y)
        if self.solver == "dual" or (self.solver == "auto" and X.shape[0] <= GRAM_SAMPLES):
            self._fit_dual(X, columns, weights, np.stack([negative, positive]), groups)
        else:
            self._fit_primal(X, columns, weights, np.stack([negative, positive]), groups)
        return self

    def decision_function(self, X: Features) -> np.ndarray:
        """Signed distances times the norm of the weights: X -> (n_samples, n_classes), or (n_samples,) for
        two classes."""
        check_is_fitted(self)
        values = self._values(X)
        return values.ravel() if self._kind == "binary" else values

    def predict(self, X: Features) -> np.ndarray:
        """The class of each sample of X, (n_samples,), or its labels, (n_samples, n_labels)."""
        check_is_fitted(self)
        return decide(self._values(X), self.classes_, self._kind)

    def score(self, X: Features, y: np.ndarray, sample_weight: np.ndarray | None = None) -> float:
        """The accuracy.

        Labels of an embedding that numbers its classes in another order than the training samples' did are those
        classes still: `score(test, test.labels)`.

        Raises:
            InputError: such labels of a class that the training samples' table does not have.
        """
        names, taught = _class_names(X, y), vars(self).get("_names")
        if names is not None and taught is not None:
            y = renumber(y, names, taught)
        return super().score(X, y, sample_weight)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    def _fit_dual(
        self, X: Matrix, columns: OneVsRest, weights: np.ndarray, factors: np.ndarray, groups: np.ndarray | None
    ) -> None:
        space = SampleSpace(gram(X) + 1, X)
        grid = find_grid(self.C, _squared_norm(space.gram.diagonal(), weights))
        loss = 2 * weights[:, None] * np.where(columns.signs > 0, factors[1], factors[0])
        if len(grid) == 1:
            self.C_, self.search_ = grid[0], None
            found = solve(space, columns.signs.astype(np.float64), grid[0] * loss)
        else:
            self.search_, found = search(space, columns, lambda C: C * loss, grid, groups=groups)
            self.C_ = self.search_.chosen
        if np.isinf(found.gap).any():  # too many samples for an interior point method
            return self._fit_primal(X, columns, weights, factors, groups)
        warn_if_inexact(found)
        self.coef_, self.intercept_ = weighted_rows(found.alpha, X), found.alpha.sum(axis=0)
        for j, column in found.weights.items():
            *self.coef_[j], self.intercept_[j] = space.in_features(column)
        self.n_iter_ = 1.0

    def _fit_primal(
        self, X: Matrix, columns: OneVsRest, weights: np.ndarray, factors: np.ndarray, groups: np.ndarray | None
    ) -> None:
        grid = find_grid(self.C, _sampled_squared_norm(X, weights))
        self.search_ = None if len(grid) == 1 else self._search_primal(X, columns, weights, factors, grid, groups)
        self.C_ = grid[0] if self.search_ is None else self.search_.chosen
        coef, intercept, self.n_iter_ = self._solve_primal(X, columns, weights, factors, (self.C_,))
        self.coef_, self.intercept_ = coef[0], intercept[0]

    def _search_primal(
        self,
        X: Matrix,
        columns: OneVsRest,
        weights: np.ndarray,
        factors: np.ndarray,
        grid: tuple[float, ...],
        groups: np.ndarray | None,
    ) -> Search:
        """One split, all values of C at once."""
        out = np.flatnonzero(stratified_folds(columns.strata, n_splits=HELD_OUT, groups=groups) == 0)
        kept = weights.copy()
        kept[out] = 0
        coef, intercept, _ = self._solve_primal(X, columns, kept, factors, grid)
        truth = columns.decide(columns.signs[out].astype(np.float64))
        right = np.zeros(len(grid))
        for rows in row_blocks(X):
            mine = (out >= rows.start) & (out < rows.stop)
            block = read_rows(X, rows)[out[mine] - rows.start].astype(np.float64)
            for i in range(len(grid)):
                found = columns.decide(block @ coef[i].T + intercept[i])
                right[i] += (found == truth[mine]).reshape(mine.sum(), -1).mean(axis=1).sum()
        accuracy = right[:, None] / len(out)
        return Search(
            grid,
            accuracy,
            grid[int(np.argmax(accuracy[:, 0]))],
            f"{len(out)} samples held out of the {X.shape[0]} training samples",
        )

    def _solve_primal(
        self, X: Matrix, columns: OneVsRest, weights: np.ndarray, factors: np.ndarray, grid: tuple[float, ...]
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """(values of C, columns, n_features), (values of C, columns), passes."""
        from hf_tl.probes.primal import Columns, solve_primal, warn_if_unsolved

        n_columns = columns.signs.shape[1]
        problems = Columns(
            signs=np.tile(columns.signs, (1, len(grid))),
            negative=np.concatenate([2 * C * factors[0] for C in grid]),
            positive=np.concatenate([2 * C * factors[1] for C in grid]),
            weights=weights,
        )
        found = solve_primal(X, problems, tol=self.tol, max_iter=self.max_iter, device=self.device)
        warn_if_unsolved(found, self.tol)
        shape = (len(grid), n_columns)
        return found.coef.reshape(*shape, -1), found.intercept.reshape(shape), found.passes

    def _checked(self, X: Features, y: np.ndarray) -> tuple[Matrix, np.ndarray]:
        values = plain_values(X)
        if is_lazy(values):
            X = values
            if len(X.shape) != 2 or len(y) != X.shape[0]:
                raise ValueError(f"expected X of {len(y)} samples and y of as many labels, got X of shape {X.shape}")
            if X.dtype.kind == "f" and not all(np.isfinite(read_rows(X, rows)).all() for rows in row_blocks(X)):
                raise ValueError("X holds NaN or infinity; expected finite features")
            self.n_features_in_ = X.shape[1]
            return X, np.asarray(y)
        checked, y = validate_data(self, values, y, dtype=None, ensure_min_samples=2, multi_output=True)
        return checked, column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y

    def _values(self, X: Features) -> np.ndarray:
        matrix = plain_values(X)
        if not is_lazy(matrix):
            matrix = validate_data(self, matrix, dtype=None, reset=False)
        elif matrix.shape[1] != self.n_features_in_:
            raise ValueError(f"X has {matrix.shape[1]} features, but LinearSVM was fitted on {self.n_features_in_}")
        values = np.empty((matrix.shape[0], len(self.coef_)))
        for rows in row_blocks(matrix):
            values[rows] = read_rows(matrix, rows).astype(np.float64) @ self.coef_.T
        return values + self.intercept_


def _class_names(X: Features, y: np.ndarray) -> tuple[str, ...] | None:
    """The names of the classes that labels number, where they are an embedding's own."""
    return X.class_names if isinstance(X, Embedding) and y is X.labels else None


def _squared_norm(squares: np.ndarray, weights: np.ndarray) -> float:
    counted = squares[weights > 0]
    return float(counted.mean()) if len(counted) else 1.0


def _sampled_squared_norm(X: Matrix, weights: np.ndarray) -> float:
    rows = next(iter(row_blocks(X)))
    block = read_rows(X, rows).astype(np.float64)
    squares = np.einsum("nd,nd->n", block, block) + 1
    if not np.isfinite(squares).all():
        raise InputError(BEYOND)
    return _squared_norm(squares, weights[rows])
