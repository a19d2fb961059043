"""How sure a measured accuracy is: 95 % intervals of shares, of means of draws, and of paired differences."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr, ndtri


Z = 1.959964  # 97.5 % quantile of the normal distribution


def wilson(n_right: int, n_samples: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of a share (Wilson, JASA 22, 1927), which stays within [0, 1] and holds for few samples.

    Args:
        n_right: samples that are right.
        n_samples: samples that were evaluated, 1 or more.
        confidence: how often it holds the share.
    """
    from scipy.stats import binomtest

    low, high = binomtest(n_right, n_samples).proportion_ci(confidence, method="wilson")
    return float(low), float(high)


def mean_interval(outcomes: np.ndarray, *, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of the mean of what samples add to a score: Wilson's where each is 0 or 1, else Student's.

    Args:
        outcomes: (n_samples,).
        confidence: how often it holds the mean of new samples.
    """
    from scipy.stats import t

    if np.isin(outcomes, (0, 1)).all():
        return wilson(int(outcomes.sum()), len(outcomes), confidence=confidence)
    middle, n = float(outcomes.mean()), len(outcomes)
    half = float(t.ppf((1 + confidence) / 2, n - 1) * outcomes.std(ddof=1) / np.sqrt(n))
    return middle - half, middle + half


def half_width(draws: np.ndarray, *, overlap: float = 0.0, own: float = 0.0, shared: float = 0.0) -> float:
    """Half the width of Student's 95 % interval of the mean of a few draws: (draws,) -> a number.

    Args:
        draws: the values.
        overlap: share of its data that a draw has in common with another, which correlates them: they vary less than
            draws from the whole population, and their mean more than that of independent ones (compare Nadeau,
            Bengio, "Inference for the generalization error", Machine Learning 52, 2003). The correlation is taken
            for its square, as that of a quadratic function of means is, such as the accuracy near its optimum. At 1
            they say nothing: the half width is infinite.
        own: variance in each draw that has nothing to do with this data, such as that of test samples of its own.
        shared: variance of what is the same for all draws, such as common test samples.
    """
    from scipy.stats import t

    if overlap >= 1:
        return float("inf")
    k, correlation = len(draws), overlap**2
    estimated = max(draws.var(ddof=1) - own, 0.0) * (1 + (k - 1) * correlation) / (1 - correlation) / k
    variance = estimated + own / k + shared
    # this rule and the square of overlap were chosen by simulation: recipes/benchmarks/check_intervals.py
    freedom = (k - 1) * variance / estimated if estimated > 0 else np.inf
    return float(t.ppf(0.975, freedom) * np.sqrt(variance))


def paired_gain(first: np.ndarray, second: np.ndarray, *, confidence: float = 0.95) -> tuple[float, float, float]:
    """How much more often `first` is right than `second` on the same samples, with its interval.

    Samples where both are right or both wrong say nothing, so the interval is narrower than that of two accuracies.

    Args:
        first: (n_samples,) what each sample adds to its score, 1 where it is right.
        second: (n_samples,) of the other.
        confidence: how often it holds the difference.

    Returns:
        The difference of the two scores, and the interval: of samples that are right or wrong by normal approximation
        (Agresti and Min, Statistics in Medicine 24, 2005: half a sample is added to each of the four cells), else
        Student's of the mean difference.
    """
    if not np.isin([first, second], (0, 1)).all():
        gain = first - second
        return float(gain.mean()), *mean_interval(gain, confidence=confidence)
    first, second = first.astype(bool), second.astype(bool)
    n = len(first) + 2
    gained, lost = np.count_nonzero(first & ~second) + 0.5, np.count_nonzero(second & ~first) + 0.5
    middle = (gained - lost) / n
    half = _quantile(confidence) * np.sqrt(gained + lost - (gained - lost) ** 2 / n) / n
    return float(first.mean() - second.mean()), float(middle - half), float(middle + half)


def simultaneous_confidence(outcomes: np.ndarray, *, n_draws: int = 4000) -> float:
    """The confidence that each of several intervals needs for all to hold at once in 95 % of cases.

    An interval of the best of several, chosen on the same samples, holds as often as those of all at once; the more
    the outcomes agree, the less has to be added (maximum of correlated normal variables, by simulation).

    Args:
        outcomes: (n_intervals, n_samples) what each interval is the mean of.
        n_draws: how many maxima are drawn.
    """
    centred = outcomes - outcomes.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(centred, axis=1)
    varying = lengths > 0
    if not varying.any():
        return 0.95
    units = centred[varying] / lengths[varying, None]
    eigenvalues, vectors = np.linalg.eigh(units @ units.T)
    normal = np.random.default_rng(0).normal(size=(len(units), n_draws))
    highest = np.abs((vectors * np.sqrt(eigenvalues.clip(min=0))) @ normal).max(axis=0)
    return float(1 - 2 * ndtr(-max(np.quantile(highest, 0.95), Z)))


def _quantile(confidence: float) -> float:
    return float(ndtri((1 + confidence) / 2))
