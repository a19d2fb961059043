"""LinearSVM on seeded problems of any scale: is the objective within 1e-3 of the best known, or is there a warning?

python recipes/benchmarks/check_svm.py [--problems 500]

Scales from 1e-4 to 1e4 (of all features, of each, and of an offset), C from 1e-6 to 1e6, more samples than features
and the reverse, duplicate samples, constant and duplicate features, classes of unequal size. The best known objective
is the lowest of liblinear's two solvers and of a least distance problem by non-negative least squares in float64
(Lawson, Hanson, "Solving Least Squares Problems", 1974, chapter 23).
"""

import argparse
import warnings
from dataclasses import dataclass

import numpy as np
from machine import keep
from scipy.optimize import nnls
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC

from hf_tl import LinearSVM
from hf_tl.table import format_table


SHAPES = {"samples >> features": (120, 8), "features >> samples": (24, 160), "as many": (40, 40)}
NEAR = 1e-3  # of the best known objective


@dataclass
class Problem:
    shape: str
    X: np.ndarray
    y: np.ndarray
    C: float

    def objective(self, weights: np.ndarray) -> float:
        """What LinearSVC minimises, for weights with the intercept last."""
        margins = np.where(self.y == 1, 1, -1) * (self.X @ weights[:-1] + weights[-1])
        return float(weights @ weights / 2 + self.C * np.square(np.maximum(0, 1 - margins)).sum())


def make_problem(seed: int) -> Problem:
    rng = np.random.default_rng(seed)
    shape = list(SHAPES)[seed % 3]
    n, d = SHAPES[shape]
    y = (rng.random(n) < rng.choice([0.1, 0.5])).astype(int)
    y[:2] = 0, 1
    X = rng.normal(size=(n, d)) + rng.choice([0.0, 0.5, 3.0]) * y[:, None] * (rng.random(d) < 0.3)
    if rng.random() < 0.3:
        X = X * 10 ** rng.uniform(-4, 4, d)
    if rng.random() < 0.3:
        X = X + 10 ** rng.uniform(-4, 4)
    if rng.random() < 0.3:
        X[:, rng.random(d) < 0.3] = rng.choice([0.0, 1.0, 100.0])
    if rng.random() < 0.3:
        X[:, d // 2 :] = X[:, : d - d // 2]
    X = X * 10 ** rng.uniform(-4, 4)
    if rng.random() < 0.3:
        X[n // 2 :], y[n // 2 :] = X[: n - n // 2], y[: n - n // 2]
    return Problem(shape, X, y, 10 ** rng.uniform(-6, 6))


def best_known(problem: Problem) -> float:
    """The lowest objective that three other solvers find."""
    found = [problem.C * len(problem.y)]  # of weights 0
    for dual in (False, True):
        svc = LinearSVC(C=problem.C, dual=dual, tol=1e-10, max_iter=3000, random_state=0).fit(problem.X, problem.y)
        found.append(problem.objective(np.append(svc.coef_[0], svc.intercept_)))
    signs = np.where(problem.y == 1, 1.0, -1.0)
    n = len(signs)
    A = signs[:, None] * np.column_stack([problem.X, np.ones(n)])
    system = np.concatenate([A.T, np.eye(n) / np.sqrt(2 * problem.C), np.ones((1, n))])
    try:
        multipliers, _ = nnls(system, np.eye(len(system))[-1])
    except RuntimeError:  # too many iterations
        return min(found)
    residual = system @ multipliers - np.eye(len(system))[-1]
    if residual[-1]:
        found.append(problem.objective(-residual[: A.shape[1]] / residual[-1]))
    return min(value for value in found if np.isfinite(value))


def excess(problem: Problem, solver: str, best: float) -> tuple[float, bool]:
    """How far LinearSVM's objective is above the best known, relative to it; whether it warns."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        svm = LinearSVM(problem.C, solver=solver).fit(problem.X, problem.y)
    warned = any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    return problem.objective(np.append(svm.coef_[0], svm.intercept_)) / best - 1, warned


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=500)
    n_problems = parser.parse_args().problems
    found = []
    for seed in range(n_problems):
        problem = make_problem(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            best = best_known(problem)
        found += [(seed, problem.shape, solver, *excess(problem, solver, best)) for solver in ("dual", "primal")]
    lines, silent = [], []
    for solver in ("dual", "primal"):
        for shape in SHAPES:
            mine = [row for row in found if row[1:3] == (shape, solver)]
            worse = [row for row in mine if not row[3] <= NEAR]
            silent += [row for row in worse if not row[4]]
            lines.append([solver, shape, len(mine), len(mine) - len(worse), sum(row[3] < -NEAR for row in mine),
                          sum(row[4] for row in mine), sum(not row[4] for row in worse)])  # fmt: skip
    header = ["solver", "shape", "problems", "within 1e-3", "better by 1e-3", "with a warning", "farther, no warning"]
    print(format_table(header, lines))
    for row in silent:
        print("farther without a warning:", row)
    keep("check_svm", {"problems": n_problems, "header": header, "rows": lines})


if __name__ == "__main__":
    main()
