"""What may follow an embedding: scikit-learn transformers that know its layers and learn from rows seen in parts.

Each takes an `Embedding` and gives one, or takes and gives an array; each learns by `fit`, or by `partial_fit` from
parts and by `merge` from other machines; each names its columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal, TypeVar

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.decomposition import IncrementalPCA
from sklearn.utils.validation import check_is_fitted

from hf_tl.embedding.embedding import Embedding, LayerColumns, feature_names
from hf_tl.embedding.recipe import RECIPES, Recipe, normalise_layers
from hf_tl.embedding.statistics import Statistics
from hf_tl.embedding.tap import Selection
from hf_tl.embedding.taps import select_names
from hf_tl.errors import InputError


Features = Embedding | np.ndarray
ROWS_AT_ONCE = 256
BINS, WIDEST = 16_384, 16.0  # of the histogram that quantiles are read from: steps of 0.002 standard deviations
Self = TypeVar("Self", bound="_Step")


class _Step(TransformerMixin, BaseEstimator):
    """What the transformers below share: layers, names, blocks of rows."""

    def fit(self: Self, X: Features, y: object = None) -> Self:
        """Learns from X (rows, n_features), an `Embedding` or an array; y is not looked at."""
        return self._fresh().partial_fit(X)

    def partial_fit(self: Self, X: Features, y: object = None) -> Self:
        """Learns from further rows X (rows, n_features); y is not looked at."""
        self._see(X)
        for block in _blocks(X):
            self._learn(block)
        return self

    def transform(self, X: Features) -> Features:
        """X (rows, n_features) -> what the fit says; an `Embedding` where X is one.

        Raises:
            InputError: another number of features than in the fit.
        """
        check_is_fitted(self, "layers_")
        self._check(X)
        values = [self._change(block) for block in _blocks(X)]
        changed = np.concatenate(values) if values else self._change(np.empty((0, self.n_features_in_)))
        return replace(X, values=changed, layers=self._layers_out()) if isinstance(X, Embedding) else changed

    def merge(self: Self, other: Self) -> Self:
        """A transformer fitted on the rows of both.

        Raises:
            InputError: the two know other layers.
        """
        check_is_fitted(self, "layers_")
        if other.layers_ != self.layers_:
            raise InputError(f"expected two {type(self).__name__} of the same layers; they were fitted on other ones")
        merged = type(self)(**self.get_params())._fresh()
        merged.layers_, merged.n_features_in_ = self.layers_, self.n_features_in_
        merged._join(self, other)
        return merged

    def get_feature_names_out(self, input_features: Sequence[str] | None = None) -> np.ndarray:
        """A name for each column; `input_features` is there for scikit-learn and is not looked at."""
        check_is_fitted(self, "layers_")
        return np.asarray(feature_names(self._layers_out()), dtype=object)

    def _see(self, X: Features) -> None:
        layers = X.layers if isinstance(X, Embedding) else (LayerColumns("x", 0, X.shape[1], 0.0),)
        if not self._is_fresh():
            self._check(X)
        else:
            self.layers_, self.n_features_in_ = layers, X.shape[1]

    def _check(self, X: Features) -> None:
        if X.shape[1] != self.n_features_in_:
            raise InputError(f"expected the {self.n_features_in_} features of the fit, got {X.shape[1]}")

    def _is_fresh(self) -> bool:
        return "layers_" not in vars(self)

    def _fresh(self: Self) -> Self:
        for name in [name for name in vars(self) if name.endswith("_")]:
            delattr(self, name)
        return self

    def _layers_out(self) -> tuple[LayerColumns, ...]:
        return self.layers_

    def _learn(self, block: np.ndarray) -> None:
        """Most learn nothing but the layers."""

    def _join(self, first: _Step, second: _Step) -> None:
        """Takes over what two others learnt."""

    def _change(self, block: np.ndarray) -> np.ndarray:
        raise NotImplementedError


class LayerNormalizer(_Step):
    """Gives each layer's part of a row Euclidean length 1."""

    def _change(self, block: np.ndarray) -> np.ndarray:
        block = block.astype(np.float64)
        normalise_layers(block, [layer.stop - layer.start for layer in self.layers_])
        return block.astype(np.float32)


class Standardizer(_Step):
    """Subtracts each feature's mean over the training rows and divides by its deviation; constant features become 0.

    Args:
        ddof: 0 for the population's standard deviation, 1 for the sample's.

    Attributes:
        statistics_: count, mean and deviation of each feature.
    """

    def __init__(self, ddof: int = 0):
        self.ddof = ddof

    def _learn(self, block: np.ndarray) -> None:
        if "statistics_" not in vars(self):
            self.statistics_ = Statistics(self.n_features_in_)
        self.statistics_.update(block)

    def _join(self, first: Standardizer, second: Standardizer) -> None:
        self.statistics_ = first.statistics_.merge(second.statistics_)

    def _change(self, block: np.ndarray) -> np.ndarray:
        widths = [layer.stop - layer.start for layer in self.layers_]
        recipe = Recipe(ddof=self.ddof, thresholds=None)
        return recipe.apply(block, self.statistics_, widths)


class Discretizer(_Step):
    """Standardised features -> int8: 1 above the upper threshold, -1 below the lower, 0 between.

    Args:
        thresholds: "paper" for -0.25 and 0.15 (Garcia-Gasulla et al., ICBK 2018); "quantile" for the values below
            which a third and two thirds of all training values lie, so that -1, 0 and 1 are equally frequent; or
            your own (low, high).

    Attributes:
        thresholds_: (low, high) in use.
        histogram_: how often training values fall into each of 16,384 bins from -16 to 16, for "quantile".
    """

    def __init__(self, thresholds: Literal["paper", "quantile"] | tuple[float, float] = "paper"):
        self.thresholds = thresholds

    @property
    def thresholds_(self) -> tuple[float, float]:
        """(low, high) in use."""
        if isinstance(self.thresholds, str):
            if self.thresholds == "paper":
                return RECIPES["paper"].thresholds
            if self.thresholds != "quantile":
                raise InputError(f"thresholds should be 'paper', 'quantile' or (low, high), got {self.thresholds!r}")
            check_is_fitted(self, "histogram_")
            below = np.cumsum(self.histogram_) / self.histogram_.sum()
            edges = np.linspace(-WIDEST, WIDEST, BINS + 1)[1:]
            low, high = (float(edges[np.searchsorted(below, share)]) for share in (1 / 3, 2 / 3))
            return low, high
        low, high = self.thresholds
        if not low <= high:
            raise InputError(f"thresholds should be (low, high) with low <= high, got {self.thresholds}")
        return low, high

    def _learn(self, block: np.ndarray) -> None:
        if "histogram_" not in vars(self):
            self.histogram_ = np.zeros(BINS, np.int64)
        if self.thresholds == "quantile":
            clipped = np.clip(block, -WIDEST, np.nextafter(WIDEST, 0))
            self.histogram_ += np.histogram(clipped, BINS, (-WIDEST, WIDEST))[0]

    def _join(self, first: Discretizer, second: Discretizer) -> None:
        self.histogram_ = first.histogram_ + second.histogram_

    def _change(self, block: np.ndarray) -> np.ndarray:
        low, high = self.thresholds_
        return (block > high).astype(np.int8) - (block < low).astype(np.int8)


class LayerSelector(_Step):
    """Keeps the columns of some layers.

    Args:
        taps: presets, places such as "-2..", or patterns over layer names; see `hf_tl.embedding.tap.Selection`.
        top: the share of those layers to keep, counted from the task side.
    """

    def __init__(self, taps: Selection = "auto", *, top: float = 1.0):
        self.taps = taps
        self.top = top

    def _kept(self) -> list[LayerColumns]:
        names = [layer.name for layer in self.layers_]
        kinds, places = [layer.kind for layer in self.layers_], [layer.place for layer in self.layers_]
        chosen = select_names(names, self.taps, self.top, kinds=kinds, places=places)
        return [layer for layer in self.layers_ if layer.name in chosen]

    def _change(self, block: np.ndarray) -> np.ndarray:
        return np.concatenate([block[:, layer.start : layer.stop] for layer in self._kept()], axis=1)

    def _layers_out(self) -> tuple[LayerColumns, ...]:
        stop, layers = 0, []
        for layer in self._kept():
            start, stop = stop, stop + layer.stop - layer.start
            layers.append(replace(layer, start=start, stop=stop))
        return tuple(layers)


class StreamedPCA(_Step):
    """The leading principal components of all features together: scikit-learn's `IncrementalPCA`, a block at a time.

    Merging two joins their components as one more step of the same algorithm (Ross et al., IJCV 2008): exact while
    no component was cut off, as good as the increments otherwise.

    Args:
        n_components: number of components; blocks of fewer rows are joined first.

    Attributes:
        pca_: the fitted `IncrementalPCA`.
    """

    def __init__(self, n_components: int = 64):
        self.n_components = n_components

    def partial_fit(self, X: Features, y: object = None) -> StreamedPCA:
        """Learns from further rows X (rows, n_features), `n_components` of them or more; y is not looked at.

        Raises:
            InputError: fewer rows than components.
        """
        if len(X) < self.n_components:
            raise InputError(f"{self.n_components} components need as many rows at once or more, got {len(X)}")
        self._see(X)
        if "pca_" not in vars(self):
            self.pca_ = IncrementalPCA(self.n_components)
        step = max(ROWS_AT_ONCE, self.n_components)
        n_blocks = max(1, len(X) // step)  # the last one takes the rest, so that none is too small
        for i in range(n_blocks):
            rows = slice(i * step, (i + 1) * step if i + 1 < n_blocks else None)
            self.pca_.partial_fit(np.asarray(X[rows], dtype=np.float64))
        return self

    def _join(self, first: StreamedPCA, second: StreamedPCA) -> None:
        a, b = first.pca_, second.pca_
        n = a.n_samples_seen_ + b.n_samples_seen_
        gap = np.sqrt(a.n_samples_seen_ * b.n_samples_seen_ / n) * (a.mean_ - b.mean_)
        stacked = np.concatenate(
            [a.singular_values_[:, None] * a.components_, b.singular_values_[:, None] * b.components_, gap[None]]
        )
        _, values, vectors = np.linalg.svd(stacked, full_matrices=False)
        joined = IncrementalPCA(self.n_components)
        weights = np.array([a.n_samples_seen_, b.n_samples_seen_]) / n
        joined.mean_ = weights @ np.stack([a.mean_, b.mean_])
        joined.var_ = weights @ np.stack([p.var_ + (p.mean_ - joined.mean_) ** 2 for p in (a, b)])
        joined.components_, joined.singular_values_ = vectors[: self.n_components], values[: self.n_components]
        joined.explained_variance_ = joined.singular_values_**2 / (n - 1)
        joined.explained_variance_ratio_ = joined.singular_values_**2 / np.sum(joined.var_ * n)
        joined.n_samples_seen_, joined.n_components_, joined.batch_size_ = n, self.n_components, None
        joined.noise_variance_ = 0.0
        self.pca_ = joined

    def _change(self, block: np.ndarray) -> np.ndarray:
        projected = (block.astype(np.float64) - self.pca_.mean_) @ self.pca_.components_.T
        return projected.astype(np.float32)

    def _layers_out(self) -> tuple[LayerColumns, ...]:
        return (LayerColumns("pca", 0, self.n_components, 1.0),)


def _blocks(X: Features) -> Iterator[np.ndarray]:
    """The rows, 256 at a time."""
    if X.ndim != 2 if isinstance(X, np.ndarray) else not isinstance(X, Embedding):
        raise InputError(f"expected an Embedding or an array (rows, features), got {type(X).__name__}")
    return (np.asarray(X[start : start + ROWS_AT_ONCE]) for start in range(0, len(X), ROWS_AT_ONCE))
