"""How sure a measured accuracy is: 95 % intervals of shares, of means of draws, and of paired differences."""

from __future__ import annotations

import numpy as np


Z = 1.959964  # 97.5 % quantile of the normal distribution


def wilson(n_right: float, n_rows: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, JASA 22, 1927), which stays within [0, 1] and is fair for few rows.

    Args:
        n_right: rows that are right.
        n_rows: rows that were judged, 1 or more.
    """
    share, z = n_right / n_rows, Z**2 / n_rows
    middle, half = share + z / 2, Z * np.sqrt(share * (1 - share) / n_rows + z / (4 * n_rows))
    return max(0.0, float((middle - half) / (1 + z))), min(1.0, float((middle + half) / (1 + z)))


def half_width(draws: np.ndarray) -> float:
    """Half the width of Student's 95 % interval of the mean of a few draws: (draws,) -> a number."""
    from scipy.stats import t

    return float(t.ppf(0.975, len(draws) - 1) * draws.std(ddof=1) / np.sqrt(len(draws)))


def paired_gain(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """How much more often `first` is right than `second` on the same rows, with its 95 % interval.

    Rows where both are right or both wrong say nothing, so the interval is narrower than that of two accuracies.

    Args:
        first: (rows,) bool, which rows it got right.
        second: (rows,) bool.

    Returns:
        The difference of the two accuracies, and the interval (normal approximation; Agresti and Min, Statistics in
        Medicine 24, 2005: half a row is added to each of the four cells).
    """
    n = len(first) + 2
    gained, lost = np.count_nonzero(first & ~second) + 0.5, np.count_nonzero(second & ~first) + 0.5
    middle = (gained - lost) / n
    half = Z * np.sqrt(gained + lost - (gained - lost) ** 2 / n) / n
    return float(first.mean() - second.mean()), float(middle - half), float(middle + half)
