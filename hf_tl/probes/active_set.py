"""The squared hinge loss among the rows, solved exactly: which rows support which class is found by pivoting.

For one class against the rest, with y in {-1, 1} and the Gram matrix K of rows that end in a 1 (the intercept),
the weights are w = X^T a, where a minimises the dual

    1/2 a^T (K + D) a - y^T a   with  y_i a_i >= 0,  D = diag(1 / curvature),  curvature_i = 2 C weight_i.

Rows with a_i != 0 are the support. Given the support S, a solves (K_SS + D_SS) a_S = y_S; given a, the rows with
y_i a_i < 0 leave S and those with y_i (K a)_i < 1 enter. All exchanged at once, this ends after about six systems,
however large C is (block principal pivoting: Portugal, Judice, Vicente, "A comparison of block pivoting and interior
point algorithms for linear least squares problems with nonnegative variables", Math. Comp. 63, 1994). Where the
number of misplaced rows stops falling, as it does for separable rows with few features, the same systems give the
directions of a projected Newton method, whose dual objective falls at every step (Bertsekas, "Projected Newton
methods for optimization problems with simple constraints", SIAM J. Control Optim. 20, 1982). The solution is exact
up to rounding: there is no tolerance to choose, and the order of the rows does not matter.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from scipy.linalg.lapack import dposv
from sklearn.exceptions import ConvergenceWarning


MARGIN = 1e-9  # a row this close to its margin is on it
PATIENCE = 3  # block exchanges that may fail to help before each step has to lower the dual objective
LIMIT = 500  # steps of the projected Newton method
SUFFICIENT = 1e-4  # share of the decrease that the gradient predicts
COARSE = 2000  # rows above which the support is guessed from every other row first


@dataclass(frozen=True)
class Support:
    """The solution for each of several columns, a column being one class against the rest.

    Attributes:
        alpha: (rows, columns) dual coefficients; the weights are X^T alpha.
        values: (rows, columns) decision values of the rows.
        active: (rows, columns) bool, the rows that support the column.
    """

    alpha: np.ndarray
    values: np.ndarray
    active: np.ndarray


def solve(
    gram: np.ndarray,
    signs: np.ndarray,
    curvature: np.ndarray,
    *,
    features: np.ndarray | None = None,
    start: np.ndarray | None = None,
) -> Support:
    """The SVMs of all columns.

    Args:
        gram: (rows, rows) inner products, with the intercept's 1 added.
        signs: (rows, columns) in {-1, 1}.
        curvature: (rows, columns), 2 C times the weight of a row; rows with 0 do not count.
        features: (rows, n_features) float64 with gram = features @ features.T, where that is narrow: a support
            wider than it is solved for among the features.
        start: (rows, columns) bool, a guess of the support, such as that of a neighbouring C.

    Raises:
        FloatingPointError: a Gram matrix that is not one, or numbers beyond float64.
    """
    if start is None:
        start = _guess(gram, signs, curvature, features)
    alpha, values, active = np.zeros(signs.shape), np.zeros(signs.shape), np.zeros(signs.shape, dtype=bool)
    for j in range(signs.shape[1]):
        alpha[:, j], values[:, j], active[:, j] = _solve_column(
            gram, signs[:, j], curvature[:, j], start[:, j], features
        )
    return Support(alpha, values, active)


def _guess(gram: np.ndarray, signs: np.ndarray, curvature: np.ndarray, features: np.ndarray | None) -> np.ndarray:
    """The support of half the rows, extended to all; for few rows, that of one least squares fit for all columns."""
    if len(gram) > COARSE:
        half = np.random.default_rng(0).permutation(len(gram))[::2]
        narrow = None if features is None else features[half]
        coarse = solve(gram[np.ix_(half, half)], signs[half], curvature[half], features=narrow)
        return signs * (gram[:, half] @ coarse.alpha) < 1
    counted = curvature[curvature > 0]
    ridge = 1 / np.median(counted) if len(counted) else 1.0
    alpha = _positive_solve(gram + ridge * np.eye(len(gram)), signs)
    return signs * alpha > 0


def _solve_column(
    gram: np.ndarray, y: np.ndarray, curvature: np.ndarray, active: np.ndarray, features: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    counts = curvature > 0
    diagonal = np.divide(1, curvature, out=np.zeros_like(curvature), where=counts)
    active = active & counts
    fewest, patience = len(y) + 1, PATIENCE
    while patience > 0:
        alpha, values = _equalities(gram, y, diagonal, active, features)
        misplaced = _misplaced(y, alpha, values, diagonal, active, counts)
        n_misplaced = np.count_nonzero(misplaced)
        if n_misplaced == 0:
            return alpha, values, active
        if n_misplaced < fewest:
            fewest, patience = n_misplaced, PATIENCE
        else:
            patience -= 1
        active = active ^ misplaced
    return _descend(gram, y, diagonal, counts, np.maximum(y * alpha, 0), features)


def _descend(
    gram: np.ndarray,
    y: np.ndarray,
    diagonal: np.ndarray,
    counts: np.ndarray,
    feasible: np.ndarray,
    features: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Projected Newton from dual coefficients y a >= 0."""
    margins = y * _product(gram, y * feasible)
    for step in range(LIMIT):
        gradient = margins + diagonal * feasible - 1
        free = counts & ((feasible > 0) | (gradient < 0))
        alpha, values = _equalities(gram, y, diagonal, free, features)
        loose = MARGIN * (1 + step)  # rounding, in systems that are close to singular, is no reason to go on
        if not _misplaced(y, alpha, values, diagonal, free, counts, loose).any():
            return alpha, values, free
        for direction in (y * alpha - feasible, -gradient * counts / gram.diagonal().max()):
            moved = _backtrack(gram, y, diagonal, feasible, margins, gradient, direction)
            if moved is not None:
                feasible, margins = moved
                break
        else:
            break
    warnings.warn(
        f"a class was not separated exactly after {step + 1} steps; its {len(y)} rows are nearly dependent for this "
        f"C: choose a smaller C",
        ConvergenceWarning,
        stacklevel=2,
    )
    return y * feasible, y * margins, feasible > 0


def _backtrack(
    gram: np.ndarray,
    y: np.ndarray,
    diagonal: np.ndarray,
    feasible: np.ndarray,
    margins: np.ndarray,
    gradient: np.ndarray,
    direction: np.ndarray,
) -> tuple[np.ndarray, np.ndarray] | None:
    """The longest of the steps 1, 1/2, 1/4, ... along a direction, bent at 0, that lowers the dual objective."""
    objective = feasible @ (margins + diagonal * feasible - 2)
    for halvings in range(40):
        moved = np.maximum(feasible + direction * 0.5**halvings, 0)
        seen = y * _product(gram, y * moved)
        if moved @ (seen + diagonal * moved - 2) < objective + 2 * SUFFICIENT * (gradient @ (moved - feasible)):
            return moved, seen
    return None


def _misplaced(
    y: np.ndarray,
    alpha: np.ndarray,
    values: np.ndarray,
    diagonal: np.ndarray,
    active: np.ndarray,
    counts: np.ndarray,
    margin: float = MARGIN,
) -> np.ndarray:
    """Rows that support with the wrong sign, and rows within the margin that do not support."""
    leave = active & (y * alpha * diagonal < -margin)
    enter = counts & ~active & (1 - y * values > margin)
    return leave | enter


def _product(gram: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    rows = np.flatnonzero(alpha)
    return alpha[rows] @ gram[rows]


def _equalities(
    gram: np.ndarray, y: np.ndarray, diagonal: np.ndarray, active: np.ndarray, features: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Dual coefficients and decision values of all rows, where the active rows are the support."""
    rows = np.flatnonzero(active)
    alpha = np.zeros(len(y))
    if len(rows) == 0:
        return alpha, np.zeros(len(y))
    if features is not None and features.shape[1] < len(rows):
        chosen = features[rows]
        weighted = chosen / diagonal[rows, None]
        weights = _positive_solve(chosen.T @ weighted + np.eye(features.shape[1]), weighted.T @ y[rows])
        values = features @ weights
        alpha[rows] = (y[rows] - values[rows]) / diagonal[rows]
        return alpha, values
    among = gram[rows]
    system = among[:, rows]
    system.flat[:: len(rows) + 1] += diagonal[rows]
    alpha[rows] = _positive_solve(system, y[rows])
    return alpha, alpha[rows] @ among


def _positive_solve(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    _, solution, trouble = dposv(matrix, right, lower=1)
    if trouble or not np.isfinite(solution).all():
        raise FloatingPointError(
            f"a system of {len(matrix)} rows is not positive definite in float64: the features are too large, or C "
            f"too large for them; scale the features to lengths near 1, or choose a smaller C"
        )
    return solution
