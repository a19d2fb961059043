"""The steps of a recipe as scikit-learn transformers that know the layers of an embedding, and what may follow them.

Each takes an `Embedding` and gives one, or takes and gives an array; each learns by `fit`, or by `partial_fit` from
parts; each names its columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, Self

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.decomposition import IncrementalPCA
from sklearn.utils.validation import check_is_fitted

from hf_tl.embedding.embedding import Embedding, LayerColumns, feature_names, moved_together, select_columns
from hf_tl.embedding.recipe import RECIPES, Recipe, Scaler, Statistics
from hf_tl.embedding.taps import TapSelection
from hf_tl.errors import InputError


Features = Embedding | np.ndarray
SAMPLES_AT_ONCE = 256
BINS, WIDEST = 16_384, 16.0  # of the histogram that quantiles are read from: steps of 0.002 standard deviations


class _Step(TransformerMixin, BaseEstimator):
    """What the transformers below share: layers, names, chunks of samples. A fit forgets the fit before it."""

    def fit(self, X: Features, y: object = None) -> Self:
        """Learns from X (n, n_features), an `Embedding` or an array; y is not looked at."""
        for name in [name for name in vars(self) if name.endswith("_")]:
            delattr(self, name)
        return self.partial_fit(X)

    def partial_fit(self, X: Features, y: object = None) -> Self:
        """Learns from further samples X (n, n_features); y is not looked at."""
        first = "layers_" not in vars(self)
        if first:
            self.layers_ = X.layers if isinstance(X, Embedding) else (LayerColumns("x", 0, X.shape[1], 0.0),)
            self.n_features_in_ = X.shape[1]
        self._check(X)
        self._learn(X, first=first)
        return self

    def transform(self, X: Features) -> Features:
        """X (n, n_features) -> what the fit says; an `Embedding` where X is one.

        Raises:
            InputError: another number of features than in the fit.
        """
        check_is_fitted(self, "layers_")
        self._check(X)
        starts = range(0, max(len(X), 1), SAMPLES_AT_ONCE)
        values = np.concatenate([self._change(np.asarray(X[start : start + SAMPLES_AT_ONCE])) for start in starts])
        return replace(X, values=values, layers=self._layers_out()) if isinstance(X, Embedding) else values

    def get_feature_names_out(self, input_features: Sequence[str] | None = None) -> np.ndarray:
        """A name for each column; `input_features` is there for scikit-learn and is not looked at."""
        check_is_fitted(self, "layers_")
        return np.asarray(feature_names(self._layers_out()), dtype=object)

    def _check(self, X: Features) -> None:
        if not isinstance(X, Embedding) and np.ndim(X) != 2:
            raise InputError(f"expected an Embedding or an array (samples, features), got {type(X).__name__}")
        if X.shape[1] != self.n_features_in_:
            raise InputError(f"expected the {self.n_features_in_} features of the fit, got {X.shape[1]}")

    @property
    def _widths(self) -> list[int]:
        return [layer.stop - layer.start for layer in self.layers_]

    def _layers_out(self) -> tuple[LayerColumns, ...]:
        return self.layers_

    def _learn(self, X: Features, *, first: bool) -> None:
        """Most learn nothing but the layers."""

    def _change(self, chunk: np.ndarray) -> np.ndarray:
        raise NotImplementedError


class LayerNormalizer(_Step):
    """Divides each layer's part of a sample by its L2 norm."""

    def _change(self, chunk: np.ndarray) -> np.ndarray:
        return Scaler(RECIPES["l2"], Statistics(self.n_features_in_), self._widths)(chunk)


class Standardizer(_Step):
    """Subtracts each feature's mean over the training samples and divides by its standard deviation.

    Features that are constant over the training samples become 0.

    Args:
        ddof: 0 for the population's standard deviation, 1 for the sample's.

    Attributes:
        statistics_: count, mean and standard deviation of each feature.
    """

    def __init__(self, ddof: int = 0):
        self.ddof = ddof

    def _learn(self, X: Features, *, first: bool) -> None:
        if first:
            self.statistics_ = Statistics(self.n_features_in_)
        for start in range(0, len(X), SAMPLES_AT_ONCE):
            self.statistics_.update(np.asarray(X[start : start + SAMPLES_AT_ONCE]))

    def _change(self, chunk: np.ndarray) -> np.ndarray:
        return Scaler(Recipe(ddof=self.ddof, thresholds=None), self.statistics_, self._widths)(chunk)


class Discretizer(_Step):
    """Standardised features -> int8: 1 above the upper threshold, -1 below the lower, 0 between.

    Args:
        thresholds: "paper" for -0.25 and 0.15 (Garcia-Gasulla et al., ICBK 2018); "quantile" for the values below
            which a third and two thirds of all training values lie, so that -1, 0 and 1 are equally frequent; or
            your own (low, high).

    Attributes:
        histogram_: how often training values fall into each of 16,384 bins from -16 to 16, for "quantile".
    """

    def __init__(self, thresholds: Literal["paper", "quantile"] | tuple[float, float] = "paper"):
        self.thresholds = thresholds

    @property
    def thresholds_(self) -> tuple[float, float]:
        """(low, high) in use."""
        if not isinstance(self.thresholds, str):
            return Recipe(thresholds=self.thresholds).thresholds or self.thresholds
        if self.thresholds == "paper":
            return -0.25, 0.15
        if self.thresholds != "quantile":
            raise InputError(f"thresholds should be 'paper', 'quantile' or (low, high), got {self.thresholds!r}")
        check_is_fitted(self, "histogram_")
        below = np.cumsum(self.histogram_) / self.histogram_.sum()
        edges = np.linspace(-WIDEST, WIDEST, BINS + 1)[1:]
        low, high = (float(edges[np.searchsorted(below, share)]) for share in (1 / 3, 2 / 3))
        return low, high

    def _learn(self, X: Features, *, first: bool) -> None:
        if first:
            self.histogram_ = np.zeros(BINS, np.int64)
        for start in range(0, len(X) if self.thresholds == "quantile" else 0, SAMPLES_AT_ONCE):
            clipped = np.clip(np.asarray(X[start : start + SAMPLES_AT_ONCE]), -WIDEST, np.nextafter(WIDEST, 0))
            self.histogram_ += np.histogram(clipped, BINS, (-WIDEST, WIDEST))[0]

    def _change(self, chunk: np.ndarray) -> np.ndarray:
        recipe = Recipe(scale="none", thresholds=self.thresholds_)
        return Scaler(recipe, Statistics(self.n_features_in_), self._widths)(chunk)


class LayerSelector(_Step):
    """Keeps the columns of some layers.

    Args:
        taps: presets, places such as "-2..", or patterns over layer names; see `hf_tl.embedding.taps.TapSelection`.
        top: the share of those layers to keep, counted from the task side.
    """

    def __init__(self, taps: TapSelection = "auto", *, top: float = 1.0):
        self.taps = taps
        self.top = top

    def _change(self, chunk: np.ndarray) -> np.ndarray:
        kept = select_columns(self.layers_, self.taps, self.top)
        return np.concatenate([chunk[:, layer.start : layer.stop] for layer in kept], axis=1)

    def _layers_out(self) -> tuple[LayerColumns, ...]:
        return moved_together(select_columns(self.layers_, self.taps, self.top))


class StreamedPCA(_Step):
    """The leading principal components of all features together: scikit-learn's `IncrementalPCA`, in chunks.

    Args:
        n_components: number of components.

    Attributes:
        pca_: the fitted `IncrementalPCA`.

    Raises:
        InputError: at a fit, fewer samples than components.
    """

    def __init__(self, n_components: int = 64):
        self.n_components = n_components

    def _learn(self, X: Features, *, first: bool) -> None:
        if len(X) < self.n_components:
            raise InputError(f"{self.n_components} components need as many samples at once or more, got {len(X)}")
        if first:
            self.pca_ = IncrementalPCA(self.n_components)
        step = max(SAMPLES_AT_ONCE, self.n_components)
        n_chunks = max(1, len(X) // step)  # the last one takes the rest, so that none is too small
        for i in range(n_chunks):
            rows = slice(i * step, (i + 1) * step if i + 1 < n_chunks else None)
            self.pca_.partial_fit(np.asarray(X[rows], dtype=np.float64))

    def _change(self, chunk: np.ndarray) -> np.ndarray:
        projected = (chunk.astype(np.float64) - self.pca_.mean_) @ self.pca_.components_.T
        return projected.astype(np.float32)

    def _layers_out(self) -> tuple[LayerColumns, ...]:
        return (LayerColumns("pca", 0, self.n_components, 1.0),)
