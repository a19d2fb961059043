"""The power law of a learning curve, and what it leaves open about more samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


EXPONENTS = np.geomspace(0.05, 3, 60)
LEAST_ERROR = 2e-3  # of a mean accuracy: draws that agree by chance are not that sure
CHI_SQUARE = 3.841  # 95 % quantile, one degree of freedom
MISFIT = 0.075  # no curve is a power law: see `PowerLaw.misfit_at`; recipes/benchmarks/check_power_law.py


@dataclass(frozen=True)
class PowerLaw:
    """Accuracy a - b n^-c after n samples per class.

    Attributes:
        a: where it leads.
        b: what is missing at n = 1.
        c: how fast it is made up for.
        plausible: (laws, 3) every (a, b, c) whose fit is not worse at the 5 % level: what the range is made of.
        errors: (laws, 2, 2) covariances of their (a, b).
        last: the largest number of samples that it was fitted to; beyond, it extrapolates.
    """

    a: float
    b: float
    c: float
    plausible: np.ndarray
    errors: np.ndarray
    last: float

    def at(self, n: float | np.ndarray) -> float | np.ndarray:
        """The accuracy with n samples per class, 1 at most."""
        return np.minimum(self.a - self.b * np.asarray(n, dtype=np.float64) ** -self.c, 1.0)[()]

    def range_at(self, n: float) -> tuple[float, float]:
        """The lowest and highest accuracy that the plausible laws give, each with its own 95 % error, in [0, 1].

        Beyond the samples that were fitted, it is no narrower than what laws have been wrong by (`misfit_at`).
        """
        low, high = self._fitted_range(n)
        expected, floor = float(self.at(n)), self.misfit_at(n)
        return max(min(low, expected - floor), 0.0), min(max(high, expected + floor), 1.0)

    def misfit_at(self, n: float) -> float:
        """What an extrapolated law is wrong by in 19 of 20 cases, however exact the points that it was fitted to are.

        `MISFIT` standard deviations of one sample's outcome for each doubling beyond the samples that were fitted: so
        many that the range holds 93 to 97 % of the curves of LCDB 1.1 at 2, 4 and 8 times the samples.
        """
        p = float(np.clip(self.at(n), 0, 1))
        return MISFIT * float(np.sqrt(p * (1 - p)) * np.log2(max(n / self.last, 1.0)))

    def __str__(self) -> str:
        low, high = self._fitted_range(1e9)
        return f"{self.a:.2f} - {self.b:.2f} n^-{self.c:.2f}, leading to {low:.2f} .. {high:.2f}"

    def _fitted_range(self, n: float) -> tuple[float, float]:
        a, b, c = self.plausible.T
        with_n = np.stack([np.ones_like(c), -(n**-c)], axis=1)
        middle = a - b * n**-c
        half = 1.96 * np.sqrt(np.einsum("li,lij,lj->l", with_n, self.errors, with_n))
        return float(np.clip((middle - half).min(), 0, 1)), float(np.clip((middle + half).max(), 0, 1))


def fit_power_law(shots: Sequence[int], accuracy: np.ndarray, errors: np.ndarray) -> PowerLaw:
    """Weighted least squares, the exponent by profile likelihood.

    For each exponent, a and b are a linear fit; the exponents whose fit is not significantly worse than the best
    stay in the range. Where the points scatter more than their errors allow, all errors are widened to match. Errors
    of different shots are taken as independent, which nested samples are not quite.

    Args:
        shots: samples per class, four numbers or more.
        accuracy: (shots,) means.
        errors: (shots,) their standard errors; infinite for a mean that does not count.
    """
    n, means, error = np.asarray(shots, dtype=np.float64), accuracy, np.maximum(errors, LEAST_ERROR)
    laws, misfits, covariances = [], [], []
    for c in EXPONENTS:
        design = np.stack([np.ones_like(n), -(n**-c)], axis=1) / error[:, None]
        covariance = np.linalg.pinv(design.T @ design)
        a, b = covariance @ (design.T @ (means / error))
        if b < 0:
            a, b = np.average(means, weights=error**-2.0), 0.0
        if a > 1:  # no accuracy leads beyond 1: the best b for a = 1
            a, missing = 1.0, design[:, 1]
            b = missing @ ((means - 1) / error) / (missing @ missing)
        laws.append((a, b, c))
        misfits.append(float((((a - b * n**-c - means) / error) ** 2).sum()))
        covariances.append(covariance)
    best = int(np.argmin(misfits))
    widened = max(1.0, misfits[best] / max(np.isfinite(error).sum() - 3, 1))
    kept = np.asarray(misfits) <= misfits[best] + CHI_SQUARE * widened
    a, b, c = laws[best]
    plausible = np.asarray(laws)[kept], np.asarray(covariances)[kept] * widened
    return PowerLaw(float(a), float(b), float(c), *plausible, last=float(n[np.isfinite(error)].max(initial=n[0])))
