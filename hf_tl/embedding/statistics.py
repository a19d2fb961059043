"""Mean and variance of each feature in one pass, exact to merge."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


ROWS_AT_ONCE = 64  # their float64 copy stays in a processor's cache


class Statistics:
    """Count, mean and sum of squared deviations of each column, from blocks of rows seen once.

    The sums are taken in float64 of values shifted by the first row ("shifted data", Chan, Golub, LeVeque 1983),
    so a mean far from zero costs no digits and a constant column has variance 0 exactly. Two halves are merged
    by the same authors' pairwise formula.

    Attributes:
        n: rows seen.
    """

    def __init__(self, n_features: int):
        self.n = 0
        self._shift = np.zeros(n_features)
        self._sum = np.zeros(n_features)  # of x - shift
        self._square = np.zeros(n_features)  # of (x - shift)^2

    def update(self, values: np.ndarray) -> Statistics:
        """Adds rows: (rows, n_features), any real dtype; returns itself.

        Raises:
            ValueError: another number of features.
        """
        values = np.asarray(values)
        if values.ndim != 2 or values.shape[1] != len(self._shift):
            raise ValueError(f"expected rows of {len(self._shift)} features, got shape {values.shape}")
        if self.n == 0 and len(values):
            self._shift = values[0].astype(np.float64)
        working = np.empty((min(len(values), ROWS_AT_ONCE), len(self._shift)))
        for start in range(0, len(values), ROWS_AT_ONCE):
            block = values[start : start + ROWS_AT_ONCE]
            shifted = working[: len(block)]
            shifted[...] = block
            shifted -= self._shift
            self._sum += shifted.sum(axis=0)
            self._square += np.einsum("ij,ij->j", shifted, shifted)
        self.n += len(values)
        return self

    @property
    def mean(self) -> np.ndarray:
        """(n_features,) float64."""
        return self._shift + self._sum / max(self.n, 1)

    @property
    def squared_deviations(self) -> np.ndarray:
        """Sum over rows of (x - mean)^2: (n_features,) float64, never negative."""
        return np.maximum(self._square - self._sum**2 / max(self.n, 1), 0.0)

    def std(self, *, ddof: int = 0) -> np.ndarray:
        """Standard deviation, (n_features,) float64; ddof 0 for the population's, 1 for the sample's."""
        return np.sqrt(self.squared_deviations / max(self.n - ddof, 1))

    def state(self) -> dict[str, np.ndarray]:
        """Everything there is to keep: n (1,) int64; shift, sum and square (n_features,) float64."""
        return {"n": np.array([self.n]), "shift": self._shift, "sum": self._sum, "square": self._square}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> Statistics:
        """The statistics that `state` kept.

        Raises:
            ValueError: arrays that do not fit together, or are not finite.
        """
        n, *parts = (np.asarray(state[key]) for key in ("n", "shift", "sum", "square"))
        width = parts[0].shape
        if n.shape != (1,) or n[0] < 0 or len(width) != 1 or any(part.shape != width for part in parts):
            raise ValueError("statistics should be n (1,) and shift, sum, square of one length")
        if not all(np.isfinite(part).all() for part in parts):
            raise ValueError("statistics should be finite")
        made = cls(width[0])
        made.n = int(n[0])
        made._shift, made._sum, made._square = (part.astype(np.float64) for part in parts)
        return made

    def merge(self, other: Statistics) -> Statistics:
        """The statistics of both sets of rows together, as a new object.

        Raises:
            ValueError: another number of features.
        """
        if len(other._shift) != len(self._shift):
            raise ValueError(f"expected statistics of {len(self._shift)} features, got {len(other._shift)}")
        first, second = (self, other) if self.n else (other, self)
        merged = Statistics(len(self._shift))
        merged.n = first.n + second.n
        merged._shift = first._shift.copy()
        gap = second._shift - first._shift  # x - first.shift = (x - second.shift) + gap
        merged._sum = first._sum + second._sum + second.n * gap
        merged._square = first._square + second._square + 2 * gap * second._sum + second.n * gap**2
        return merged
