"""How raw activations become an embedding: which side of the activation, which scaling, which thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hf_tl.embedding.cut_points import find_cut_points
from hf_tl.embedding.statistics import Statistics
from hf_tl.errors import InputError
from hf_tl.names import closest


CONSTANT = 2.0**-20  # a std this small beside its mean is float32 rounding, not signal
ROWS_AT_ONCE = 16  # of 10,000 features, in float64, they stay in a processor's cache


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
        """Raw activations -> features; `scaler` gives the same as a function, for many blocks of rows.

        Args:
            values: (rows, n_features) raw activations.
            statistics: of the training rows' raw activations.
            widths: number of features of each layer, in column order.

        Returns:
            (rows, n_features) int8 in {-1, 0, 1}, or float32 without thresholds. A feature that is constant over
            the training rows is 0 wherever it is standardised.
        """
        return self.scaler(statistics, widths)(values)

    def scaler(self, statistics: Statistics, widths: Sequence[int]) -> Scaler:
        """What `apply` does with these statistics, as a function of the values alone."""
        return Scaler(self, statistics, widths)


class Scaler:
    """Raw activations -> features, by a recipe with its training statistics.

    Every feature is standardised and compared in float64. Where float32 activations are discretised, each is
    compared with the float32 number at which the outcome of that arithmetic changes, which gives the same.

    Args:
        recipe: what is done.
        statistics: of the training rows' raw activations.
        widths: number of features of each layer, in column order.
    """

    def __init__(self, recipe: Recipe, statistics: Statistics, widths: Sequence[int]):
        self.recipe = recipe
        self._widths = list(widths)
        self._mean, self._spread = np.zeros(sum(widths)), np.ones(sum(widths))
        if recipe.scale == "standardize":
            self._mean, std = statistics.mean, statistics.std(ddof=recipe.ddof)
            self._spread = np.where(std > CONSTANT * np.abs(self._mean), std, np.inf)  # x / infinity is 0
        self._cuts: tuple[np.ndarray, np.ndarray] | None = None
        if recipe.thresholds is not None and recipe.scale != "l2-layer":
            low, high = recipe.thresholds
            self._cuts = (
                find_cut_points(self._mean, self._spread, low, closed=not recipe.low_closed),
                find_cut_points(self._mean, self._spread, high, closed=False),
            )

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """(rows, n_features) -> (rows, n_features) of the recipe's dtype; the values are left as they are."""
        out = np.empty(values.shape, self.recipe.dtype)
        for start in range(0, len(values), ROWS_AT_ONCE):
            block, part = values[start : start + ROWS_AT_ONCE], out[start : start + ROWS_AT_ONCE]
            if self._cuts is not None and block.dtype == np.float32:
                low, high = self._cuts
                np.subtract((block >= high).view(np.int8), (block < low).view(np.int8), out=part)
            else:
                part[...] = self._compute(block)
        return out

    def _compute(self, block: np.ndarray) -> np.ndarray:
        block = block.astype(np.float64)
        if self.recipe.scale == "l2-layer":
            normalise_layers(block, self._widths)
        block -= self._mean
        block /= self._spread
        if self.recipe.thresholds is None:
            return block
        low, high = self.recipe.thresholds
        below = block <= low if self.recipe.low_closed else block < low
        return (block > high).view(np.int8) - below.view(np.int8)


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
