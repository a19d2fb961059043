"""How raw activations become an embedding: which side of the activation, the training statistics, the thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hf_tl.errors import InputError
from hf_tl.names import closest


Activation = Literal["after", "before"]
CONSTANT = 2.0**-20  # a std this small beside its mean is float32 rounding, not signal
SAMPLES_AT_ONCE = 16  # of 10,000 features, in float64, they stay in a processor's cache; so do, to be summed, 64


@dataclass(frozen=True)
class Recipe:
    """The steps from raw activations to features.

    Attributes:
        activation: read each layer "after" its norm and activation, or "before" them.
        scale: "standardize" each feature with the training samples' mean and standard deviation, "l2-layer" to
            divide each layer's part of a sample by its L2 norm, or "none".
        ddof: 0 for the population's standard deviation, 1 for the sample's.
        thresholds: (low, high): standardised features above `high` become 1, below `low` -1, the rest 0; None to
            keep them real.
        low_closed: whether a value equal to `low` becomes -1.
    """

    activation: Activation = "after"
    scale: Literal["standardize", "l2-layer", "none"] = "standardize"
    ddof: int = 0
    thresholds: tuple[float, float] | None = (-0.25, 0.15)
    low_closed: bool = False

    def __post_init__(self) -> None:
        if self.activation not in ("after", "before"):
            raise InputError(f"activation should be 'after' or 'before', got {self.activation!r}")
        if self.scale not in ("standardize", "l2-layer", "none"):
            raise InputError(f"scale should be 'standardize', 'l2-layer' or 'none', got {self.scale!r}")
        if self.thresholds is not None and not self.thresholds[0] <= self.thresholds[1]:
            raise InputError(f"thresholds should be (low, high) with low <= high, got {self.thresholds}")

    @property
    def dtype(self) -> np.dtype:
        """int8 where the features are discretised, float32 otherwise."""
        return np.dtype(np.float32 if self.thresholds is None else np.int8)


RECIPES = {
    "paper": Recipe(),
    "fne-package": Recipe(activation="before", ddof=1, low_closed=True),
    "standardize": Recipe(thresholds=None),
    "l2": Recipe(scale="l2-layer", thresholds=None),
    "raw": Recipe(scale="none", thresholds=None),
}
"""Named recipes. "paper": Garcia-Gasulla et al., "An Out-of-the-box Full-Network Embedding for Convolutional Neural
Networks" (ICBK 2018). "fne-package": the conventions of that group's PyTorch package. "standardize": the paper's
without discretising. "l2": each layer's part of a sample at L2 norm 1, the usual baseline. "raw": nothing."""


def find_recipe(recipe: Recipe | str) -> Recipe:
    """A recipe, or the recipe of that name.

    Raises:
        InputError: an unknown name, with the known ones.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if recipe not in RECIPES:
        raise InputError(f"there is no recipe {recipe!r} among {sorted(RECIPES)}; {closest(recipe, sorted(RECIPES))}")
    return RECIPES[recipe]


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
        working = np.empty((min(len(values), 4 * SAMPLES_AT_ONCE), len(self._shift)))
        for start in range(0, len(values), 4 * SAMPLES_AT_ONCE):
            block = values[start : start + 4 * SAMPLES_AT_ONCE]
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


class Scaler:
    """Raw activations -> features, by a recipe with its training statistics.

    A feature that is constant over the training samples is 0 wherever it is standardised. Everything is computed in
    float64: a value is above a threshold t if it is above mean + t std.

    Args:
        recipe: what is done.
        statistics: of the training samples' raw activations.
        widths: number of features of each layer, in column order.
    """

    def __init__(self, recipe: Recipe, statistics: Statistics, widths: Sequence[int]):
        self.recipe = recipe
        self._widths = list(widths)
        self._mean, self._spread = np.zeros(sum(widths)), np.ones(sum(widths))
        if recipe.scale == "standardize":
            self._mean, std = statistics.mean, statistics.std(ddof=recipe.ddof)
            self._spread = np.where(std > CONSTANT * np.abs(self._mean), std, np.inf)  # x / infinity is 0
        if recipe.thresholds is not None:
            low, high = recipe.thresholds
            bounds = self._raw_value(low, of_zero=np.inf if recipe.low_closed else -np.inf), self._raw_value(high)
            # a float32 number is above a float64 one if it is above the float32 number next below that
            rounded = (
                (_round_down(bounds[0]) if recipe.low_closed else -_round_down(-bounds[0])),
                _round_down(bounds[1]),
            )
            self._bounds = {np.dtype(np.float64): bounds, np.dtype(np.float32): rounded}

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """(n, n_features) of any float dtype -> (n, n_features) int8 in {-1, 0, 1}, or float32 without thresholds."""
        out = np.empty(values.shape, self.recipe.dtype)
        for start in range(0, len(values), SAMPLES_AT_ONCE):
            chunk, part = values[start : start + SAMPLES_AT_ONCE], out[start : start + SAMPLES_AT_ONCE]
            if self.recipe.scale == "l2-layer" or chunk.dtype != np.float32 or self.recipe.thresholds is None:
                chunk = chunk.astype(np.float64)
            if self.recipe.scale == "l2-layer":
                normalise_layers(chunk, self._widths)
            if self.recipe.thresholds is None:
                part[...] = (chunk - self._mean) / self._spread
            else:
                low, high = self._bounds[chunk.dtype]
                below = chunk <= low if self.recipe.low_closed else chunk < low
                np.subtract((chunk > high).view(np.int8), below.view(np.int8), out=part)
        return out

    def constants(self) -> dict[str, np.ndarray]:
        """What a program in float32 needs of the training samples, (n_features,) each.

        "low" and "high", between which raw values become 0, where there are thresholds; else "mean" and "rate", of
        which features are `(value - mean) * rate`.
        """
        if self.recipe.thresholds is None:
            return {"mean": self._mean, "rate": 1 / self._spread}
        low, high = self._bounds[np.dtype(np.float32)]
        return {"low": low, "high": high}

    def _raw_value(self, threshold: float, *, of_zero: float = np.inf) -> np.ndarray:
        """(n_features,) the raw value that is `threshold` once standardised; for a constant feature an infinity."""
        constant = np.isinf(self._spread)
        infinity = np.inf * threshold if threshold else of_zero
        return np.where(constant, infinity, self._mean + threshold * np.where(constant, 0, self._spread))


def normalise_layers(values: np.ndarray, widths: Sequence[int]) -> None:
    """Divides each layer's part of each row by its L2 norm, in place: values (n, n_features) float64."""
    stop = 0
    for width in widths:
        part = values[:, stop : (stop := stop + width)]
        norm = np.linalg.norm(part, axis=1, keepdims=True)
        np.divide(part, norm, out=part, where=norm > 0)


def _round_down(values: np.ndarray) -> np.ndarray:
    """The largest float32 numbers that are not above some float64 ones."""
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float32)
    return np.where(rounded > values, np.nextafter(rounded, np.float32(-np.inf)), rounded)
