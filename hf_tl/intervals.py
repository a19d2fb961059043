"""How sure a measured accuracy is: 95 % intervals of shares, of means of draws, and of paired differences."""

from __future__ import annotations

import numpy as np


Z = 1.959964  # 97.5 % quantile of the normal distribution


def wilson(n_right: int, n_samples: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, JASA 22, 1927), which stays within [0, 1] and holds for few samples.

    Args:
        n_right: samples that are right.
        n_samples: samples that were evaluated, 1 or more.
    """
    from scipy.stats import binomtest

    low, high = binomtest(n_right, n_samples).proportion_ci(0.95, method="wilson")
    return float(low), float(high)


def half_width(draws: np.ndarray) -> float:
    """Half the width of Student's 95 % interval of the mean of a few draws: (draws,) -> a number."""
    from scipy.stats import t

    return float(t.ppf(0.975, len(draws) - 1) * draws.std(ddof=1) / np.sqrt(len(draws)))


def paired_gain(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """How much more often `first` is right than `second` on the same samples, with its 95 % interval.

    Samples where both are right or both wrong say nothing, so the interval is narrower than that of two accuracies.

    Args:
        first: (n_samples,) bool, which samples it got right.
        second: (n_samples,) bool.

    Returns:
        The difference of the two accuracies, and the interval (normal approximation; Agresti and Min, Statistics in
        Medicine 24, 2005: half a sample is added to each of the four cells).
    """
    n = len(first) + 2
    gained, lost = np.count_nonzero(first & ~second) + 0.5, np.count_nonzero(second & ~first) + 0.5
    middle = (gained - lost) / n
    half = Z * np.sqrt(gained + lost - (gained - lost) ** 2 / n) / n
    return float(first.mean() - second.mean()), float(middle - half), float(middle + half)
