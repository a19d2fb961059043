"""The full-network embedding: every layer of a network as features, scaled with training statistics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.exceptions import NotFittedError

from hf_tl.data import Rows, as_rows
from hf_tl.embedding.embedding import Embedding, LayerColumns
from hf_tl.embedding.extraction import Block, OnBadRows, extract, load_batch, move, to_device
from hf_tl.embedding.recipe import Recipe, find_recipe
from hf_tl.embedding.statistics import Statistics
from hf_tl.embedding.taps import Selection, Tap, find_taps, select_names
from hf_tl.errors import InputError
from hf_tl.models import Network, load_network
from hf_tl.trace import Batch


class FullNetworkEmbedding(TransformerMixin, BaseEstimator):
    """Reads a pre-trained network at many layers at once (Garcia-Gasulla et al., ICBK 2018).

    Every convolution and fully connected layer is read, convolutions averaged over space; the parts are
    concatenated, each feature is standardised with the statistics of the training rows and, in the paper's recipe,
    discretised to {-1, 0, 1}.

    Rows are given as a `datasets.Dataset`, as `hf_tl.data.Rows`, as a sequence of raw inputs, or as the raw
    `Embedding` that `activations` returned, so that one pass serves many recipes and layer subsets.

    Args:
        network: from `hf_tl.load_network`, or `Network(model, prepare)` around any module of yours; None where
            all rows are given as raw embeddings.
        recipe: a name in `hf_tl.embedding.recipe.RECIPES`, or a `Recipe`.
        taps: "auto" for every layer, "last" for what the classifier reads, or glob patterns over layer names.
        top: the share of the chosen layers to keep, counted from the task side.
        batch_size: rows a forward pass.
        device: where the network runs.
        on_bad_rows: "raise" or "skip" rows that cannot be read or give NaN.
        progress: whether progress bars are drawn.

    Attributes:
        layer_names_: names of the layers in use, in column order.
        n_features_: number of columns.
        statistics_: count, mean and deviation of each raw feature over the training rows.
    """

    def __init__(
        self,
        network: Network | None = None,
        *,
        recipe: Recipe | str = "paper",
        taps: Selection = "auto",
        top: float = 1.0,
        batch_size: int = 32,
        device: str = "cpu",
        on_bad_rows: OnBadRows = "raise",
        progress: bool = True,
    ):
        self.network = network
        self.recipe = recipe
        self.taps = taps
        self.top = top
        self.batch_size = batch_size
        self.device = device
        self.on_bad_rows = on_bad_rows
        self.progress = progress

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        image_size: int | None = None,
        revision: str | None = None,
        recipe: Recipe | str = "paper",
        taps: Selection = "auto",
        top: float = 1.0,
    ) -> FullNetworkEmbedding:
        """An embedding, still to be fitted, of a network that `hf_tl.load_network` loads.

        Raises:
            InputError: no such model.
        """
        find_recipe(recipe)
        return cls(load_network(name, image_size=image_size, revision=revision), recipe=recipe, taps=taps, top=top)

    def activations(self, rows: Rows | Embedding | Sequence) -> Embedding:
        """The raw activations of the chosen layers: one pass, nothing fitted, nothing scaled."""
        if isinstance(rows, Embedding):
            return self._chosen(rows)
        rows = self._as_rows(rows)
        taps, blocks = self._pass(rows)
        values = np.empty((len(rows), sum(tap.n_features for tap in taps)), np.float32)
        return self._collect(rows, taps, blocks, values)

    def fit(self, rows: Rows | Embedding | Sequence, y: object = None) -> FullNetworkEmbedding:
        """Learns mean and deviation of each feature from the training rows, in one pass that keeps no activations.

        Raises:
            InputError: fewer than two rows; rows that cannot be read.
        """
        if isinstance(rows, Embedding):
            raw = self._chosen(rows)
            return self._fit(raw.layers, [Block(raw.rows, raw.values)])
        taps, blocks = self._pass(self._as_rows(rows))
        return self._fit(_columns(taps), blocks)

    def fit_transform(self, rows: Rows | Embedding | Sequence, y: object = None) -> Embedding:
        """`fit`, then the features of the same rows, with one pass through the network for both."""
        raw = self.activations(rows)
        self._fit(raw.layers, [Block(raw.rows, raw.values)])
        return self._scaled(raw)

    def transform(self, rows: Rows | Embedding | Sequence) -> Embedding:
        """The features of further rows, scaled with the training statistics.

        Raises:
            NotFittedError: `fit` comes first.
            InputError: rows that cannot be read, or an embedding of other layers.
        """
        if not self.__sklearn_is_fitted__():
            raise NotFittedError(
                "features of new rows are scaled with training statistics, and there are none yet: "
                "call fit or fit_transform on the training rows first"
            )
        if isinstance(rows, Embedding):
            return self._scaled(self._chosen(rows))
        rows = self._as_rows(rows)
        taps, blocks = self._pass(rows)
        self._check_layers([tap.name for tap in taps])
        recipe, widths = find_recipe(self.recipe), [tap.n_features for tap in taps]
        features = (Block(b.rows, recipe.apply(b.values, self.statistics_, widths)) for b in blocks)
        return self._collect(rows, taps, features, np.empty((len(rows), self.n_features_), recipe.dtype))

    def __sklearn_is_fitted__(self) -> bool:
        return "statistics_" in vars(self)

    def __sklearn_clone__(self) -> FullNetworkEmbedding:
        return type(self)(**self.get_params(deep=False))  # the network is shared, never copied

    def _pass(self, rows: Rows) -> tuple[list[Tap], Iterator[Block]]:
        example = _example(self.network, rows, on_bad_rows=self.on_bad_rows)
        move(self.network.model, self.device)
        taps, _ = find_taps(
            self.network, to_device(example, self.device), activation=find_recipe(self.recipe).activation
        )
        names = set(select_names([tap.name for tap in taps], self.taps, self.top))
        taps = [tap for tap in taps if tap.name in names]
        blocks = extract(
            self.network,
            rows,
            taps,
            batch_size=self.batch_size,
            device=self.device,
            on_bad_rows=self.on_bad_rows,
            progress=self.progress,
        )
        return taps, blocks

    def _collect(self, rows: Rows, taps: Sequence[Tap], blocks: Iterator[Block], values: np.ndarray) -> Embedding:
        """Fills `values` from the top with the rows of `blocks`, and cuts what skipped rows left over."""
        kept = np.empty(len(rows), np.int64)
        n = 0
        for block in blocks:
            values[n : n + len(block.rows)] = block.values
            kept[n : n + len(block.rows)] = block.rows
            n += len(block.rows)
        if n == 0:
            raise InputError(f"none of the {len(rows)} rows of {rows.name} can be used; all were skipped")
        return Embedding(
            values=values[:n],
            layers=_columns(taps),
            rows=kept[:n],
            labels=None if rows.labels is None else rows.labels[kept[:n]],
            class_names=rows.class_names,
            activation=find_recipe(self.recipe).activation,
            network=self.network.name,
        )

    def _fit(self, layers: Sequence[LayerColumns], blocks: Iterator[Block] | list[Block]) -> FullNetworkEmbedding:
        statistics = Statistics(layers[-1].stop)
        for block in blocks:
            statistics.update(block.values)
        if statistics.n < 2:
            raise InputError(f"training statistics need two rows or more, got {statistics.n}")
        self.layer_names_ = [layer.name for layer in layers]
        self.n_features_ = layers[-1].stop
        self.statistics_ = statistics
        return self

    def _chosen(self, raw: Embedding) -> Embedding:
        wanted = find_recipe(self.recipe).activation
        if raw.activation != wanted:
            raise InputError(
                f"recipe {self.recipe!r} reads layers {wanted} their activation, but these were read {raw.activation} "
                f"it; read them again with this recipe"
            )
        if raw.values.dtype.kind != "f":
            raise InputError(f"expected raw activations, got {raw.values.dtype}; use what activations() returns")
        return raw.select(self.taps, top=self.top)

    def _scaled(self, raw: Embedding) -> Embedding:
        self._check_layers([layer.name for layer in raw.layers])
        return replace(raw, values=find_recipe(self.recipe).apply(raw.values, self.statistics_, raw.widths))

    def _check_layers(self, names: Sequence[str]) -> None:
        if list(names) != self.layer_names_:
            raise InputError(
                f"expected the {len(self.layer_names_)} layers of training, {_span(self.layer_names_)}, got "
                f"{len(names)}, {_span(names)}; use the same network and layers for both"
            )

    def _as_rows(self, rows: Rows | Sequence) -> Rows:
        if self.network is None:
            raise InputError(f"without a network only raw embeddings can be used, got {type(rows).__name__}")
        if isinstance(rows, Rows):
            return rows
        from datasets import Dataset

        if isinstance(rows, Dataset):
            return as_rows(rows, modality=self.network.modality)
        return Rows([{"input": value} for value in rows], "input")


def _span(names: Sequence[str]) -> str:
    return f"{names[0]!r} to {names[-1]!r}"


def _columns(taps: Sequence[Tap]) -> tuple[LayerColumns, ...]:
    stops = np.cumsum([tap.n_features for tap in taps]).tolist()
    return tuple(
        LayerColumns(tap.name, stop - tap.n_features, stop, tap.depth) for tap, stop in zip(taps, stops, strict=True)
    )


def _example(network: Network, rows: Rows, *, on_bad_rows: OnBadRows) -> Batch:
    """A batch of the first two usable rows; of the same row twice where there is only one."""
    found: list[int] = []
    for index in range(len(rows)):
        kept, _ = load_batch(network, rows, [index], on_bad_rows=on_bad_rows)
        found += kept
        if len(found) == 2:
            break
    if not found:
        raise InputError(f"none of the {len(rows)} rows of {rows.name} can be used")
    return network.prepare([rows[index] for index in (found * 2)[:2]])
