"""The squared hinge loss by an interior point method: slower than `active_set`, exact for features of any scale.

For one class against the rest, with A the samples times their sign and D = diag(1 / curvature), the dual

    minimise 1/2 a^T (A A^T + D) a - sum(a)   with  a >= 0

and its slacks s = A w + D a - 1 >= 0 with w = A^T a are brought to a s = 0 by Newton's method (Mehrotra, "On the
implementation of a primal-dual interior point method", SIAM J. Optim. 2, 1992). Each step is the least squares problem
[sqrt(H) A; I] dw = ..., with H = 1 / (D + s / a). It is solved by a QR decomposition with column pivoting, rows in
descending order, which is accurate for rows and columns of any scale (Cox, Higham, "Stability of Householder QR
factorization for weighted least squares problems", 1998); inner products would square its condition number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve, qr, solve_triangular


TOLERANCE = 1e-7  # relative duality gap
LIMIT = 200  # steps
WELL_CONDITIONED = 1e8  # condition number up to which a Cholesky decomposition, which is faster, is as good


@dataclass(frozen=True)
class Optimum:
    """The solution of one column.

    Attributes:
        weights: (n_features,) primal, the best found.
        alpha: (n_samples,) dual, signed: the best found; weights = X^T alpha at the optimum.
        gap: how far the objective at `weights` is from its minimum at most, relative to it.
    """

    weights: np.ndarray
    alpha: np.ndarray
    gap: float


def solve_by_interior_point(X: np.ndarray, y: np.ndarray, curvature: np.ndarray) -> Optimum:
    """The SVM of one column.

    Args:
        X: (n_samples, n_features) float64 with the intercept's column.
        y: (n_samples,) in {-1, 1}.
        curvature: (n_samples,), 2 C times the weight of a sample; samples with 0 do not count.
    """
    counts = np.flatnonzero(curvature > 0)
    weights, alpha = np.zeros(X.shape[1]), np.zeros(len(X))
    if len(counts) == 0:
        return Optimum(weights, alpha, 0.0)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        problem = _Problem(y[counts, None] * X[counts], curvature[counts])
        while problem.gap > TOLERANCE and problem.steps < LIMIT and problem.step():
            pass
    alpha[counts] = y[counts] * problem.best_dual
    return Optimum(problem.best_weights, alpha, problem.gap)


_Solver = Callable[[np.ndarray, np.ndarray], np.ndarray]


class _Problem:
    """The point reached, and one step from it."""

    def __init__(self, A: np.ndarray, curvature: np.ndarray):
        self.A, self.curvature, self.D = A, curvature, 1 / curvature
        total = A.sum(axis=0)
        self.a = np.full(len(A), len(A) / (total @ total + self.D.sum()))  # the best of all equal
        self.w = A.T @ self.a
        self.s = np.maximum(A @ self.w + self.D * self.a - 1, 0.1)
        self.well_conditioned = np.square(A).sum() * curvature.max() < WELL_CONDITIONED
        self.best_weights, self.best_dual = np.zeros(A.shape[1]), np.zeros(len(A))
        self.upper, self.lower, self.steps = curvature.sum() / 2, 0.0, 0
        self._bound()

    @property
    def gap(self) -> float:
        return (self.upper - self.lower) / self.upper

    def step(self) -> bool:
        """Moves by a predictor and a corrector; False where rounding allows no step."""
        self.steps += 1
        mean = self.a @ self.s / len(self.a)
        solve = self._factorise(1 / (self.D + self.s / self.a))
        _, da, ds = self._direction(solve, self.a * self.s)
        after = (self.a + _longest(self.a, da) * da) @ (self.s + _longest(self.s, ds) * ds) / len(self.a)
        dw, da, ds = self._direction(solve, self.a * self.s + da * ds - (after / mean) ** 3 * mean)
        length = min(_longest(self.a, da), _longest(self.s, ds))
        if not np.isfinite(dw).all() or not length > 1e-10:
            return False
        self.w, self.a, self.s = self.w + length * dw, self.a + length * da, self.s + length * ds
        self._bound()
        return True

    def _bound(self) -> None:
        """The objective of the weights, and the highest dual objective along two directions."""
        slack = np.maximum(0, 1 - self.A @ self.w)
        objective = (self.w @ self.w + self.curvature @ slack**2) / 2
        if objective < self.upper:
            self.upper, self.best_weights = objective, self.w
        for dual in (self.a, self.curvature * slack):
            weights, total = self.A.T @ dual, dual.sum()
            square = weights @ weights + self.D @ dual**2
            if square > 0 and total**2 / square / 2 > self.lower:
                self.lower, self.best_dual = total**2 / square / 2, dual * (total / square)

    def _factorise(self, H: np.ndarray) -> _Solver:
        """(n_samples,), (n_features,) -> the dw that minimises |sqrt(H) (A dw - first)|^2 + |dw - second|^2."""
        if self.well_conditioned:
            factor = cho_factor(self.A.T @ (H[:, None] * self.A) + np.eye(self.A.shape[1]))
            return lambda first, second: cho_solve(factor, self.A.T @ (H * first) + second)
        root = np.sqrt(H)
        rows = np.concatenate([root[:, None] * self.A, np.eye(self.A.shape[1])])
        order = np.argsort(-np.abs(rows).max(axis=1))
        Q, R, columns = qr(rows[order], mode="economic", pivoting=True, overwrite_a=True, check_finite=False)

        def solve(first: np.ndarray, second: np.ndarray) -> np.ndarray:
            found = np.empty(len(columns))
            right = Q.T @ np.concatenate([root * first, second])[order]
            found[columns] = solve_triangular(R, right, check_finite=False)
            return found

        return solve

    def _direction(self, solve: _Solver, product: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Steps of w, a and s towards feasibility, and towards a s less by `product`."""
        lacking = 1 + self.s - self.A @ self.w - self.D * self.a - product / self.a
        dw = solve(lacking, self.A.T @ self.a - self.w)
        da = (lacking - self.A @ dw) / (self.D + self.s / self.a)
        return dw, da, -(product + self.s * da) / self.a


def _longest(values: np.ndarray, change: np.ndarray) -> float:
    """The longest step, 1 at most, that keeps the values above 0."""
    falling = change < 0
    return min(1.0, 0.995 * float((-values[falling] / change[falling]).min(initial=np.inf)))
