"""The squared hinge loss among the samples, solved exactly: which samples support which class is found by pivoting.

For one class against the rest, with y in {-1, 1} and the Gram matrix K of samples that end in a 1 (the intercept),
the weights are w = X^T a, where a minimises the dual

    1/2 a^T (K + D) a - y^T a   with  y_i a_i >= 0,  D = diag(1 / curvature),  curvature_i = 2 C weight_i.

Samples with a_i != 0 are the support. Given the support S, a solves (K_SS + D_SS) a_S = y_S; given a, the samples with
y_i a_i < 0 leave S and those with y_i (K a)_i < 1 enter. All exchanged at once, this ends after about six systems,
however large C is (block principal pivoting: Portugal, Judice, Vicente, "A comparison of block pivoting and interior
point algorithms for linear least squares problems with nonnegative variables", Math. Comp. 63, 1994). Where it does
not end, or where its result is not one because rounding counts, the column goes to `interior_point`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy.linalg import qr
from scipy.linalg.lapack import dposv
from sklearn.exceptions import ConvergenceWarning

from hf_tl.probes.gram import Matrix
from hf_tl.probes.interior_point import solve_by_interior_point


MARGIN = 1e-9  # a sample this close to its margin is on it
NEGATIVE = 1e-7  # of the largest coefficient: a negative one this small is 0
ROUNDING = 1e-6  # of the objective, beyond which a solution does not count as exact
TOLERATED = 1e-4  # relative duality gap that needs no warning
PATIENCE = 3  # block exchanges that may fail to help
COARSE = 2000  # samples above which the support is guessed from every other one first
AFFORDABLE = 1e10  # multiplications of a QR decomposition of interior_point's


class SampleSpace:
    """The samples by their inner products, and by coordinates that have them.

    Args:
        gram: (n_samples, n_samples) inner products, with the intercept's 1 added.
        X: (n_samples, n_features) the samples, without which there are no coordinates more exact than the Gram matrix.
    """

    def __init__(self, gram: np.ndarray, X: Matrix | None = None):
        self.gram, self.X = gram, X

    @cached_property
    def narrow(self) -> np.ndarray | None:
        """(n_samples, n_features + 1) float64, the last column 1, where features are fewer than samples."""
        return self._with_ones if self.X is not None and self.X.shape[1] < self.X.shape[0] else None

    @cached_property
    def coordinates(self) -> np.ndarray:
        """(n_samples, rank) float64 with the inner products of the samples."""
        if self.narrow is not None:
            return self.narrow
        if self.X is not None:
            return self._triangular[1].T
        eigenvalues, vectors = np.linalg.eigh(self.gram)
        kept = eigenvalues > 0
        return vectors[:, kept] * np.sqrt(eigenvalues[kept])

    @property
    def is_affordable(self) -> bool:
        """Whether an interior point method on the coordinates ends within minutes."""
        n = len(self.gram)
        rank = n if self.X is None else min(n, self.X.shape[1] + 1)
        return (n + rank) * rank**2 <= AFFORDABLE

    def in_features(self, weights: np.ndarray) -> np.ndarray:
        """Weights (rank,) of coordinates -> weights (n_features + 1,) of features, the intercept last."""
        return weights if self.narrow is not None else self._triangular[0] @ weights

    def take(self, samples: np.ndarray) -> SampleSpace:
        """Some of the samples."""
        X = self.narrow[samples, :-1] if self.narrow is not None else None
        return SampleSpace(self.gram[np.ix_(samples, samples)], X)

    @cached_property
    def _triangular(self) -> tuple[np.ndarray, np.ndarray]:
        return qr(self._with_ones.T, mode="economic", check_finite=False)

    @property
    def _with_ones(self) -> np.ndarray:
        return np.column_stack([np.asarray(self.X, dtype=np.float64), np.ones(len(self.gram))])


@dataclass(frozen=True)
class Support:
    """The solution for each of several columns, a column being one class against the rest.

    Attributes:
        alpha: (n_samples, n_columns) dual coefficients; the weights are X^T alpha.
        values: (n_samples, n_columns) decision values of the samples.
        active: (n_samples, n_columns) bool, the samples that support the column.
        weights: column -> (rank,) weights of the space's coordinates, where they were found as such.
        gap: (n_columns,) how far each objective is from its minimum at most, relative to it; 0 where it is exact.
    """

    alpha: np.ndarray
    values: np.ndarray
    active: np.ndarray
    weights: dict[int, np.ndarray] = field(default_factory=dict)
    gap: np.ndarray = field(default_factory=lambda: np.zeros(1))


def solve(space: SampleSpace, signs: np.ndarray, curvature: np.ndarray, *, start: np.ndarray | None = None) -> Support:
    """The SVMs of all columns.

    Args:
        space: the samples.
        signs: (n_samples, n_columns) in {-1, 1}.
        curvature: (n_samples, n_columns), 2 C times the weight of a sample; samples with 0 do not count.
        start: (n_samples, n_columns) bool, a guess of the support, such as that of a neighbouring C.
    """
    if start is None:
        start = _guess(space, signs, curvature)
    shape = signs.shape
    found = Support(np.zeros(shape), np.zeros(shape), np.zeros(shape, bool), {}, np.zeros(shape[1]))
    for j in range(shape[1]):
        column = _Column(space, signs[:, j], curvature[:, j])
        exact = column.pivot(start[:, j])
        if exact is None and space.is_affordable:
            optimum = solve_by_interior_point(space.coordinates, column.y, column.curvature)
            values = space.coordinates @ optimum.weights
            exact = column.pivot(column.y * values < 1 - MARGIN, exchanges=2)
            if exact is None:
                exact = optimum.alpha, values, column.counts & (column.y * values < 1)
                found.weights[j], found.gap[j] = optimum.weights, optimum.gap
        if exact is None:
            exact, found.gap[j] = column.last, np.inf
        found.alpha[:, j], found.values[:, j], found.active[:, j] = exact
    return found


def warn_if_inexact(found: Support) -> None:
    """Warns where an objective may be farther from its minimum than `TOLERATED`."""
    if not found.gap.max() <= TOLERATED:
        warnings.warn(
            f"the SVMs of {np.count_nonzero(~(found.gap <= TOLERATED))} of {len(found.gap)} classes are not solved "
            f"exactly: the objective may be {found.gap.max():.2g} of itself above its minimum, because the features "
            f"differ too much in scale for this C; standardise them, or choose a smaller C",
            ConvergenceWarning,
            stacklevel=3,
        )


def _guess(space: SampleSpace, signs: np.ndarray, curvature: np.ndarray) -> np.ndarray:
    """The support of half the samples, extended to all; for few, that of one least squares fit for all columns."""
    if len(signs) > COARSE:
        half = np.random.default_rng(0).permutation(len(signs))[::2]
        coarse = solve(space.take(half), signs[half], curvature[half])
        return signs * (space.gram[:, half] @ coarse.alpha) < 1
    counted = curvature[curvature > 0]
    ridge = 1 / np.median(counted) if len(counted) else 1.0
    alpha = _positive_solve(space.gram + ridge * np.eye(len(signs)), signs)
    return np.ones(signs.shape, bool) if alpha is None else signs * alpha > 0


Solution = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Dual coefficients, decision values, support: each (n_samples,)."""


class _Column:
    """One class against the rest."""

    def __init__(self, space: SampleSpace, y: np.ndarray, curvature: np.ndarray):
        self.space, self.y, self.curvature, self.counts = space, y, curvature, curvature > 0
        self.diagonal = np.divide(1, curvature, out=np.zeros_like(curvature), where=self.counts)
        self.last: Solution = np.zeros(len(y)), np.zeros(len(y)), np.zeros(len(y), dtype=bool)

    def pivot(self, active: np.ndarray, *, exchanges: int = 100) -> Solution | None:
        """The solution, or None where block exchanges do not end in one or where it is not exact."""
        active, fewest, patience = active & self.counts, len(self.y) + 1, PATIENCE
        for _ in range(exchanges):
            solved = self._equalities(active)
            if solved is None:
                return None
            alpha, values = solved
            self.last = alpha, values, active
            misplaced = self._misplaced(alpha, values, active)
            n_misplaced = int(misplaced.sum())
            if n_misplaced == 0:
                return self.last if self._is_exact(alpha, values, active) else None
            if n_misplaced < fewest:
                fewest, patience = n_misplaced, PATIENCE
            else:
                patience -= 1
                if patience == 0:
                    return None
            active = active ^ misplaced
        return None

    def _misplaced(self, alpha: np.ndarray, values: np.ndarray, active: np.ndarray) -> np.ndarray:
        """Samples that support with the wrong sign, and samples within the margin that do not support."""
        leave = active & (self.y * alpha < -NEGATIVE * np.abs(alpha).max())
        enter = self.counts & ~active & (1 - self.y * values > MARGIN)
        return leave | enter

    def _is_exact(self, alpha: np.ndarray, values: np.ndarray, active: np.ndarray) -> bool:
        """Whether the system is solved, and the inner products are exact enough for these coefficients."""
        rows = np.flatnonzero(active)
        asked = np.where(active, self.y - self.diagonal * alpha, values)
        error = MARGIN + np.abs(alpha[rows] @ self.space.gram[rows] - asked)[self.counts].max(initial=0)
        total = np.abs(alpha).sum()  # twice the objective
        error += np.finfo(np.float64).eps * self.space.gram.diagonal().max() * total
        return bool(error <= ROUNDING and self.curvature.sum() * error**2 <= ROUNDING * total)

    def _equalities(self, active: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Dual coefficients and decision values of all samples, where the active ones are the support."""
        rows = np.flatnonzero(active)
        alpha, diagonal, narrow = np.zeros(len(self.y)), self.diagonal[active], self.space.narrow
        if len(rows) == 0:
            return alpha, np.zeros(len(self.y))
        if narrow is not None and narrow.shape[1] < len(rows):
            chosen = narrow[rows]
            weighted = chosen / diagonal[:, None]
            weights = _positive_solve(chosen.T @ weighted + np.eye(narrow.shape[1]), weighted.T @ self.y[rows])
            if weights is None:
                return None
            values = narrow @ weights
            alpha[rows] = (self.y[rows] - values[rows]) / diagonal
            return alpha, values
        among = self.space.gram[rows]
        system = among[:, rows]
        system.flat[:: len(rows) + 1] += diagonal
        solved = _positive_solve(system, self.y[rows])
        if solved is None:
            return None
        alpha[rows] = solved
        return alpha, solved @ among


def _positive_solve(matrix: np.ndarray, right: np.ndarray) -> np.ndarray | None:
    """None where the matrix is not positive definite in float64."""
    _, solution, trouble = dposv(matrix, right, lower=1)
    return None if trouble or not np.isfinite(solution).all() else solution
