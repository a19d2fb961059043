"""Which C: a grid that does not depend on the features' scale, evaluated on splits of the training samples."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from hf_tl.errors import InputError
from hf_tl.probes.active_set import SampleSpace, Support, solve, warn_if_inexact
from hf_tl.probes.one_vs_rest import OneVsRest


SCALE_FREE = tuple(10.0 ** (k / 2) for k in range(-2, 7))  # times 1 / (mean squared L2 norm of a sample)
N_SPLITS = 5
Cost = float | Sequence[float] | Literal["auto"]
Curvature = Callable[[float], np.ndarray]


@dataclass(frozen=True)
class Search:
    """How C was chosen.

    Attributes:
        grid: the values, ascending.
        accuracy: (values, splits) accuracy on the held-out part of each split; no splits where there were too few
            samples for any.
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


def find_grid(C: Cost, squared_norm: float) -> tuple[float, ...]:
    """The values of C to try, ascending.

    Args:
        C: a number; several; or "auto" for `SCALE_FREE` divided by the mean squared L2 norm.
        squared_norm: mean over the samples of |x|^2 + 1.

    Raises:
        ValueError: a value that is not above 0, or another word.
    """
    if isinstance(C, str):
        if C != "auto":
            raise ValueError(f"C should be a number, several numbers or 'auto', got {C!r}")
        return tuple(value / squared_norm for value in SCALE_FREE)
    values = sorted({float(value) for value in np.atleast_1d(C)})
    if not values or not all(0 < value < np.inf for value in values):
        raise ValueError(f"C should be above 0 and finite, got {C}")
    return tuple(values)


def stratified_folds(
    strata: np.ndarray, *, n_splits: int = N_SPLITS, groups: np.ndarray | None = None, random_state: int = 0
) -> np.ndarray:
    """The fold of each sample, (n_samples,): every class is spread over the folds as evenly as it can be.

    A class of one sample is in one fold; nothing can be learnt of it there.

    Args:
        strata: (n_samples,) classes.
        n_splits: folds.
        groups: (n_samples,) samples of one number stay in one fold, such as copies (`find_twins(...).groups`).
        random_state: decides the folds.

    Raises:
        InputError: groups of other samples, or fewer of them than folds.
    """
    groups = check_groups(groups, len(strata))
    if groups is not None and len(np.unique(groups)) < n_splits:
        raise InputError(
            f"{len(np.unique(groups))} different samples, the others being copies of them, make no {n_splits} folds; "
            f"give more, or leave groups out"
        )
    fold = np.empty(len(strata), dtype=int)
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    splitter = kind(n_splits, shuffle=True, random_state=random_state)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        for k, (_, held_out) in enumerate(splitter.split(np.zeros(len(strata)), strata, groups)):
            fold[held_out] = k
    return fold


def check_groups(groups: np.ndarray | None, n_samples: int) -> np.ndarray | None:
    """Groups as an array; None where each sample is one of its own.

    Raises:
        InputError: groups of other samples.
    """
    if groups is None:
        return None
    found = np.asarray(groups)
    if found.shape != (n_samples,):
        raise InputError(f"groups should be one number a sample, ({n_samples},), got shape {found.shape}")
    return found if len(np.unique(found)) < n_samples else None


def usable_folds(strata: np.ndarray, *, groups: np.ndarray | None = None, n_splits: int = N_SPLITS) -> int:
    """How many folds the classes allow: at most `n_splits` and the size of the median class, 0 for fewer than 2.

    Samples of one group count as one.
    """
    if groups is not None:
        strata = np.unique(np.stack([np.unique(strata, return_inverse=True)[1], groups]), axis=1)[0]
    usable = min(n_splits, int(np.median(np.unique(strata, return_counts=True)[1])))
    return usable if usable >= 2 else 0


def search(
    space: SampleSpace,
    columns: OneVsRest,
    curvature: Curvature,
    grid: Sequence[float],
    *,
    n_splits: int = N_SPLITS,
    groups: np.ndarray | None = None,
) -> tuple[Search, Support]:
    """Chooses C by cross-validation and solves for it; every fit starts from the support of its neighbour.

    Args:
        space: the samples.
        columns: the problems.
        curvature: C -> (n_samples, n_columns).
        grid: values of C, ascending.
        n_splits: folds, at most so many.
        groups: see `stratified_folds`.
    """
    signs = columns.signs.astype(np.float64)
    n_folds = usable_folds(columns.strata, groups=groups, n_splits=n_splits) if len(grid) > 1 else 0
    if n_folds == 0:
        chosen = grid[len(grid) // 2]
        found = solve(space, signs, curvature(chosen))
        return Search(tuple(grid), np.zeros((len(grid), 0)), chosen, "too few samples to hold some out"), found
    fold = stratified_folds(columns.strata, n_splits=n_folds, groups=groups)
    truth = columns.decide(signs)
    accuracy, path, start = np.zeros((len(grid), n_folds)), [], None
    for i, C in enumerate(grid):
        whole = solve(space, signs, curvature(C), start=start)
        start = whole.active
        path.append(whole)
        for k in range(n_folds):
            out = fold == k
            part = solve(space, signs, curvature(C) * ~out[:, None], start=start)
            warn_if_inexact(part)
            accuracy[i, k] = (columns.decide(part.values[out]) == truth[out]).mean()
    best = int(np.argmax(accuracy.mean(axis=1).round(12)))
    held_out = f"{n_folds} folds of the {len(signs)} training samples"
    return Search(tuple(grid), accuracy, grid[best], held_out), path[best]
