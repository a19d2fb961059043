"""From how many samples on one strategy is ahead of another, with an interval, or the sentence that it is not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


REPEATS = 1000


@dataclass(frozen=True)
class Crossover:
    """Where the curves of two strategies cross.

    Attributes:
        first: the strategy that is ahead with few samples.
        second: the one that is ahead with many.
        at: samples per class from which `second` is ahead; 0 where it is throughout, infinite where it never is.
        low: lower end of the 95 % interval, 0 for below the range.
        high: upper end, infinite for beyond it.
        smallest: samples per class where the range begins.
        largest: where it ends.
    """

    first: str
    second: str
    at: float
    low: float
    high: float
    smallest: int
    largest: int

    @property
    def is_seen(self) -> bool:
        """Whether the curves cross within the range, for all that the interval tells."""
        return self.low > 0 and self.high < np.inf

    def __str__(self) -> str:
        span = f"{self.smallest} to {self.largest} samples per class"
        if self.is_seen:
            return (
                f"{self.second} overtakes {self.first} at {self.at:.3g} samples per class (95 %: {self.low:.3g} to "
                f"{self.high:.3g})"
            )
        if self.low == 0 and self.high == 0:
            return f"no crossover in this range: {self.second} is ahead of {self.first} at {span}"
        if np.isinf(self.low):
            return f"no crossover in this range: {self.first} is ahead of {self.second} at {span}"
        low = f"below {self.smallest}" if self.low == 0 else f"{self.low:.3g}"
        high = f"beyond {self.largest}" if np.isinf(self.high) else f"{self.high:.3g}"
        return (
            f"no crossover can be told in this range, {span}: {self.second} may be ahead of {self.first} "
            f"from {low} on, or only {high}"
        )


def find_crossover(
    first: np.ndarray,
    second: np.ndarray,
    *,
    names: tuple[str, str],
    shots: Sequence[int],
    labels: np.ndarray,
    seed: int = 0,
) -> Crossover:
    """Where the second strategy begins to be ahead, by the mean over classes, in between by the logarithm of samples.

    The interval is a bootstrap's, of draws and of test samples within their classes at once.

    Args:
        first: (shots, draws, n_test) bool, which test samples it got right.
        second: the same draws and samples.
        names: of the two.
        shots: samples per class, ascending.
        labels: (n_test,) classes of the test samples.
        seed: of the bootstrap.
    """
    gain = second.astype(np.int8) - first.astype(np.int8)
    rng, classes = np.random.default_rng(seed), np.unique(labels)
    members = [np.flatnonzero(labels == value) for value in classes]
    weights = np.zeros((REPEATS, len(labels)))
    for one in members:
        counts = rng.multinomial(len(one), np.full(len(one), 1 / len(one)), size=REPEATS)
        weights[:, one] = counts / len(one) / len(classes)
    draws = rng.multinomial(gain.shape[1], np.full(gain.shape[1], 1 / gain.shape[1]), size=REPEATS) / gain.shape[1]
    repeated = np.einsum("sdt,rt,rd->rs", gain, weights, draws, optimize=True)
    whole = np.stack([gain[:, :, one].mean(axis=(1, 2)) for one in members]).mean(axis=0)
    points = np.array([_crossing(row, shots) for row in repeated])
    low, high = np.quantile(points, [0.025, 0.975], method="closest_observation")
    return Crossover(*names, _crossing(whole, shots), float(low), float(high), shots[0], shots[-1])


def _crossing(gain: np.ndarray, shots: Sequence[int]) -> float:
    """The number of samples from which on the gain stays above 0; 0 for the whole range, infinite for none of it."""
    behind = np.flatnonzero(gain <= 0)
    if not len(behind):
        return 0.0
    last = int(behind[-1])
    if last == len(gain) - 1:
        return float("inf")
    share = -gain[last] / (gain[last + 1] - gain[last])
    return float(np.exp(np.log(shots[last]) + share * np.log(shots[last + 1] / shots[last])))
