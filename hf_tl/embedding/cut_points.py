"""Where a float32 number begins to lie above a threshold once it is standardised in float64."""

from __future__ import annotations

import numpy as np


NEAR = 2  # float32 numbers on either side of the rounded threshold in which the cut nearly always lies
_INFINITY = 0x7F800000  # the place of infinity in the order of all float32 numbers, 0 at 0


def find_cut_points(mean: np.ndarray, spread: np.ndarray, threshold: float, *, closed: bool) -> np.ndarray:
    """The smallest float32 number of each feature that lies above a threshold once standardised.

    Comparing raw float32 numbers with the cut is then the same as standardising them in float64 and comparing that
    with the threshold, rounding included: (x - mean) / spread never falls as x rises, rounded or not, so that there
    is exactly one place where the answer changes. It is found by bisection over all float32 numbers.

    Args:
        mean: (n_features,) float64.
        spread: (n_features,) float64, above 0; infinite for a feature that is 0 whatever it is.
        threshold: of the standardised values.
        closed: whether a value equal to the threshold lies above it.

    Returns:
        (n_features,) float32: x lies above if x >= cut. Infinite where no number does, the lowest finite number
        where all do.
    """

    def above(places: np.ndarray, columns: np.ndarray | slice) -> np.ndarray:
        standard = (_numbers(places).astype(np.float64) - mean[columns]) / spread[columns]
        return standard >= threshold if closed else standard > threshold

    with np.errstate(all="ignore"):  # numbers that overflow, and infinity over infinity, which lies nowhere
        guess = mean + threshold * np.where(np.isinf(spread), 0, spread)
        places = _places(guess.astype(np.float32))
        low, high = (np.clip(places + step, -_INFINITY, _INFINITY) for step in (-NEAR, NEAR))
        missed = above(low, slice(None)) | ~above(high, slice(None))
        low[missed], high[missed] = -_INFINITY, _INFINITY
        while (columns := np.flatnonzero(high - low > 1)).size:
            middle = (low[columns] + high[columns]) // 2
            found = above(middle, columns)
            high[columns[found]] = middle[found]
            low[columns[~found]] = middle[~found]
    return _numbers(high)


def _places(numbers: np.ndarray) -> np.ndarray:
    """float32 numbers -> their places among all float32 numbers in ascending order, int64, 0 at 0."""
    bits = numbers.view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def _numbers(places: np.ndarray) -> np.ndarray:
    """The inverse of `_places`."""
    return np.where(places < 0, 2**31 - places, places).astype(np.uint32).view(np.float32)
