"""How raw activations become an embedding: which side of the activation, which scaling, which thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hf_tl.embedding.statistics import Statistics
from hf_tl.errors import InputError
from hf_tl.layers import closest


CONSTANT = 2.0**-20  # a std this small beside its mean is float32 rounding, not signal
ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Recipe:
    """The steps from raw activations to features.

    Attributes:
        activation: read each layer "after" its norm and activation, or "before" them.
        scale: "standardize" each feature with the training rows' mean and standard deviation, "l2-layer" to give
            each layer's part of a row Euclidean length 1, or "none".
        ddof: 0 for the population's standard deviation, 1 for the sample's.
        thresholds: (low, high): standardised features above `high` become 1, below `low` -1, the rest 0; None to
            keep them real.
        low_closed: whether a value equal to `low` becomes -1.
    """

    activation: Literal["after", "before"] = "after"
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

    def apply(self, values: np.ndarray, statistics: Statistics, widths: Sequence[int]) -> np.ndarray:
        """Raw activations -> features.

        Args:
            values: (rows, n_features) raw activations.
            statistics: of the training rows' raw activations.
            widths: number of features of each layer, in column order.

        Returns:
            (rows, n_features) int8 in {-1, 0, 1}, or float32 without thresholds. A feature that is constant over
            the training rows is 0 wherever it is standardised.
        """
        out = np.empty(values.shape, self.dtype)
        mean, spread = self._standard(statistics, values.shape[1])
        for start in range(0, len(values), ROWS_AT_ONCE):
            block = values[start : start + ROWS_AT_ONCE].astype(np.float64)
            if self.scale == "l2-layer":
                normalise_layers(block, widths)
            block -= mean
            block /= spread  # infinite for a constant feature, which gives 0
            if self.thresholds is not None:
                low, high = self.thresholds
                below = block <= low if self.low_closed else block < low
                block = (block > high).astype(np.int8) - below.astype(np.int8)
            out[start : start + ROWS_AT_ONCE] = block
        return out

    def _standard(self, statistics: Statistics, n_features: int) -> tuple[np.ndarray, np.ndarray]:
        if self.scale != "standardize":
            return np.zeros(n_features), np.ones(n_features)
        mean, std = statistics.mean, statistics.std(ddof=self.ddof)
        return mean, np.where(std > CONSTANT * np.abs(mean), std, np.inf)


RECIPES = {
    "paper": Recipe(),
    "fne-package": Recipe(activation="before", ddof=1, low_closed=True),
    "standardize": Recipe(thresholds=None),
    "l2": Recipe(scale="l2-layer", thresholds=None),
    "raw": Recipe(scale="none", thresholds=None),
}
"""Named recipes. "paper": Garcia-Gasulla et al., "An Out-of-the-box Full-Network Embedding for Convolutional Neural
Networks" (ICBK 2018). "fne-package": the conventions of that group's PyTorch package. "standardize": the paper's
without discretising. "l2": each layer's part of a row at length 1, the usual baseline. "raw": nothing."""


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


def normalise_layers(block: np.ndarray, widths: Sequence[int]) -> None:
    """Gives each layer's part of each row length 1, in place: block (rows, n_features) float64."""
    stop = 0
    for width in widths:
        part = block[:, stop : (stop := stop + width)]
        length = np.linalg.norm(part, axis=1, keepdims=True)
        np.divide(part, length, out=part, where=length > 0)
