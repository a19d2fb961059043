"""Which C: a grid that does not depend on the features' scale, judged on splits of the training rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hf_tl.probes.active_set import Support, solve
from hf_tl.probes.targets import Targets, decide


SCALE_FREE = tuple(10.0 ** (k / 2) for k in range(-2, 7))  # times 1 / (mean squared length of a row)
FOLDS = 5
Curvature = Callable[[float], np.ndarray]


@dataclass(frozen=True)
class Search:
    """How C was chosen.

    Attributes:
        grid: the values, ascending.
        accuracy: (values, splits) accuracy on the held-out part of each split; no splits where there were too few
            rows for any.
        chosen: the value with the highest mean, the smallest of several.
        held_out: what was held out, in words.
    """

    grid: tuple[float, ...]
    accuracy: np.ndarray
    chosen: float
    held_out: str

    def __str__(self) -> str:
        span = f"{len(self.grid)} values from {self.grid[0]:.2g} to {self.grid[-1]:.2g}"
        if self.accuracy.size == 0:
            return f"C={self.chosen:.2g}, the middle of {span}: {self.held_out}"
        best = self.accuracy[self.grid.index(self.chosen)].mean()
        return f"C={self.chosen:.2g} of {span}: {best:.3f} on {self.held_out}"


def find_grid(C: float | str | Sequence[float], squared_length: float) -> tuple[float, ...]:
    """The values of C to judge, ascending.

    Args:
        C: a number; several; or "auto" for `SCALE_FREE` divided by the mean squared length.
        squared_length: mean over the rows of |x|^2 + 1.

    Raises:
        ValueError: a value that is not above 0, or another word.
    """
    if isinstance(C, str):
        if C != "auto":
            raise ValueError(f"C should be a number, several numbers or 'auto', got {C!r}")
        return tuple(value / squared_length for value in SCALE_FREE)
    values = sorted({float(value) for value in np.atleast_1d(C)})
    if not values or not all(0 < value < np.inf for value in values):
        raise ValueError(f"C should be above 0 and finite, got {C}")
    return tuple(values)


def stratified_folds(strata: np.ndarray, *, folds: int = FOLDS, seed: int = 0) -> np.ndarray:
    """The fold of each row, (rows,): every class is spread over the folds as evenly as it can be.

    A class of one row is in one fold; nothing can be learnt of it there.
    """
    generator = np.random.default_rng(seed)
    fold = np.empty(len(strata), dtype=int)
    dealt = 0
    for value in np.unique(strata):
        rows = generator.permutation(np.flatnonzero(strata == value))
        fold[rows] = (dealt + np.arange(len(rows))) % folds
        dealt += len(rows)
    return fold


def usable_folds(strata: np.ndarray, *, folds: int = FOLDS) -> int:
    """How many folds the classes allow: as many as the median class has rows, `folds` at most, 0 for fewer than 2."""
    usable = min(folds, int(np.median(np.unique(strata, return_counts=True)[1])))
    return usable if usable >= 2 else 0


def search(
    gram: np.ndarray,
    targets: Targets,
    curvature: Curvature,
    grid: Sequence[float],
    *,
    strata: np.ndarray,
    features: np.ndarray | None = None,
    folds: int = FOLDS,
) -> tuple[Search, Support]:
    """Chooses C by cross-validation and solves for it; every fit starts from the support of its neighbour.

    Args:
        gram: (rows, rows), with the intercept's 1 added.
        targets: the columns.
        curvature: C -> (rows, columns).
        grid: values of C, ascending.
        strata: (rows,) what the folds are balanced by.
        features: see `active_set.solve`.
        folds: at most so many.
    """
    signs = targets.signs.astype(np.float64)
    n_folds = usable_folds(strata, folds=folds) if len(grid) > 1 else 0
    if n_folds == 0:
        chosen = grid[len(grid) // 2]
        found = solve(gram, signs, curvature(chosen), features=features)
        return Search(tuple(grid), np.zeros((len(grid), 0)), chosen, "too few rows to hold some out"), found
    fold = stratified_folds(strata, folds=n_folds)
    truth = decide(signs, targets.classes, targets.kind)
    accuracy, path, start = np.zeros((len(grid), n_folds)), [], None
    for i, C in enumerate(grid):
        whole = solve(gram, signs, curvature(C), features=features, start=start)
        start = whole.active
        path.append(whole)
        for k in range(n_folds):
            out = fold == k
            part = solve(gram, signs, curvature(C) * ~out[:, None], features=features, start=start)
            accuracy[i, k] = (decide(part.values[out], targets.classes, targets.kind) == truth[out]).mean()
    best = int(np.argmax(accuracy.mean(axis=1).round(12)))
    held_out = f"{n_folds} folds of the {len(gram)} training rows"
    return Search(tuple(grid), accuracy, grid[best], held_out), path[best]
