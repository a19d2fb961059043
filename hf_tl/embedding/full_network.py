"""The full-network embedding: every layer of a network as features, scaled with training statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.exceptions import NotFittedError

from hf_tl.data import Samples, as_samples
from hf_tl.embedding.embedding import Embedding, LayerColumns, feature_names
from hf_tl.embedding.execution import Execution, OnBadRows
from hf_tl.embedding.features import fit_statistics, fit_store, write_features
from hf_tl.embedding.passes import Pass, plan_pass
from hf_tl.embedding.pooling import Pooling
from hf_tl.embedding.pretrained import Fitted, find_fitted, load_fitted, push_embedding, save_fitted
from hf_tl.embedding.processes import Processes, find_processes
from hf_tl.embedding.recipe import Recipe, find_recipe
from hf_tl.embedding.statistics import Statistics
from hf_tl.embedding.store import Store
from hf_tl.embedding.tap import Selection
from hf_tl.embedding.taps import describe_taps, find_taps, with_pooling
from hf_tl.errors import InputError
from hf_tl.example import dummy_batch
from hf_tl.hub import PushResult
from hf_tl.models import Network, load_network


class FullNetworkEmbedding(TransformerMixin, BaseEstimator):
    """Reads a pre-trained network at many layers at once (Garcia-Gasulla et al., ICBK 2018).

    Every convolution and fully connected layer is read, convolutions averaged over space; the parts are
    concatenated, each feature is standardised with the statistics of the training rows and, in the paper's recipe,
    discretised to {-1, 0, 1}.

    Rows are given as a `datasets.Dataset`, as `hf_tl.Samples`, as a sequence of raw inputs, or as the raw
    `Embedding` that `activations` returned, so that one pass serves many recipes and layer subsets.

    With `out=FOLDER` rows go to disk as they are read: memory does not grow with their number, a pass that was
    stopped goes on where it was, and the processes that `accelerate launch` starts share the work.

    Args:
        network: from `hf_tl.load_network`, or `Network(model, prepare)` around any module of yours; None where
            all rows are given as raw embeddings.
        recipe: a name in `hf_tl.embedding.recipe.RECIPES`, or a `Recipe`.
        taps: "auto", "blocks", "linear", "conv", "last", glob patterns over layer names, or a function of a
            module's name and the module; see `hf_tl.embedding.taps.Selection`.
        top: the share of the chosen layers to keep, counted from the task side.
        pool: how a layer's positions become one number per channel: "mean", "max", "gem", "cls", "patch-mean",
            "last-token", a `Pooling` of your own, or one of these for each kind of tap, {"conv": "max"}.
        batch_size: rows a forward pass.
        device: where the network runs; "cuda" is each process's own GPU.
        on_bad_rows: "raise" or "skip" rows that cannot be read or give NaN.
        progress: whether progress bars are drawn.
        dtype: "bfloat16" runs a copy of the network in that precision: faster, other in the third digit.
        channels_last: whether convolutions run with channels last: faster, equal but for rounding.
        compiled: whether the network runs through `torch.compile`.
        workers: processes that read and prepare the next batches.
        codec: how discretised features are stored with `out`: "2bit" or "int8".

    Attributes:
        layers_: the columns of each layer in use.
        layer_names_: their names, in column order.
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
        pool: str | Pooling | Mapping[str, str | Pooling] = "auto",
        batch_size: int = 32,
        device: str = "cpu",
        on_bad_rows: OnBadRows = "raise",
        progress: bool = True,
        dtype: Literal["float32", "bfloat16"] = "float32",
        channels_last: bool = False,
        compiled: bool = False,
        workers: int = 0,
        codec: Literal["2bit", "int8"] = "2bit",
    ):
        self.network = network
        self.recipe = recipe
        self.taps = taps
        self.top = top
        self.pool = pool
        self.batch_size = batch_size
        self.device = device
        self.on_bad_rows = on_bad_rows
        self.progress = progress
        self.dtype = dtype
        self.channels_last = channels_last
        self.compiled = compiled
        self.workers = workers
        self.codec = codec

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        network: Network | None = None,
        image_size: int | None = None,
        revision: str | None = None,
        recipe: Recipe | str = "paper",
        taps: Selection = "auto",
        top: float = 1.0,
        pool: str | Pooling | Mapping[str, str | Pooling] = "auto",
    ) -> FullNetworkEmbedding:
        """The embedding of a pre-trained network, still to be fitted; or one that `save_pretrained` wrote, fitted.

        Args:
            name: a network that `hf_tl.load_network` loads, or a folder or Hub id of a fitted embedding.
            network: of a fitted embedding: the network to read, where it is not one that can be loaded by name.
            image_size: side of the images in pixels.
            revision: branch, tag or commit on the Hub.
            recipe: of an embedding still to be fitted.
            taps: likewise.
            top: likewise.
            pool: likewise; and of a fitted embedding whose pooling is a plug-in, whose name in a file is not enough
                to import it.

        Raises:
            InputError: no such model; a fitted embedding whose network has changed.
        """
        folder = find_fitted(name, revision)
        if folder is not None:
            fitted = load_fitted(folder, network=network, pool=pool)
            made = cls(
                fitted.network,
                recipe=fitted.recipe,
                taps=fitted.taps,
                top=fitted.top,
                pool=fitted.pool,
                dtype=fitted.dtype,
            )
            return made._fitted(fitted.layers, fitted.statistics)
        find_recipe(recipe)
        loaded = network or load_network(name, image_size=image_size, revision=revision)
        return cls(loaded, recipe=recipe, taps=taps, top=top, pool=pool)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes the fitted embedding: layers as JSON, statistics as safetensors, a model card; not the network.

        Raises:
            NotFittedError: `fit` comes first.
            InputError: a pooling of your own, which no file can hold.
        """
        return save_fitted(self.as_fitted(), folder)

    def push_to_hub(self, repo_id: str, **options: object) -> PushResult:
        """Puts the fitted embedding on the Hub; the options are those of `hf_tl.push_embedding`, which this is."""
        return push_embedding(self, repo_id, **options)

    def describe(self, rows: Samples | Sequence | None = None) -> str:
        """A table of what is read: each tap, what it is, how it is pooled, and its columns.

        Args:
            rows: two rows or more to try the network on; not needed for networks that read images or text.
        """
        if rows is None and self.network is not None:
            example = dummy_batch(self.network.model)
            taps, _ = find_taps(
                self.network,
                example,
                activation=find_recipe(self.recipe).activation,
                selection=self.taps,
                top=self.top,
            )
            taps = with_pooling(taps, self.pool, self.network)
        else:
            taps = self._plan(self._as_samples(rows)).taps
        return describe_taps(taps)

    def activations(self, rows: Samples | Embedding | Sequence, *, out: str | Path | None = None) -> Embedding:
        """The raw activations of the chosen layers: one pass, nothing fitted, nothing scaled.

        Args:
            rows: what is read.
            out: a folder that receives the rows as they are read, and from which a stopped pass goes on.
        """
        if isinstance(rows, Embedding):
            return self._kept(self._chosen(rows), out)
        reading = self._plan(self._as_samples(rows))
        if out is None:
            return reading.into_memory()
        return Embedding.load(reading.into_store(out).folder, values="raw")

    def fit(self, rows: Samples | Embedding | Sequence, y: object = None) -> FullNetworkEmbedding:
        """Learns mean and deviation of each feature from the training rows, in one pass that keeps no activations.

        Args:
            rows: what `load_task` gives, a list of the network's inputs, or an `Embedding` of raw activations.
            y: not looked at.

        Raises:
            InputError: fewer than two rows; rows that cannot be read.
        """
        return self._fitted(*self._statistics(rows))

    def partial_fit(self, rows: Samples | Embedding | Sequence, y: object = None) -> FullNetworkEmbedding:
        """Adds training rows to those of earlier calls, as in `fit`; y is not looked at.

        Raises:
            InputError: rows of other layers.
        """
        layers, statistics = self._statistics(rows, at_least=1)
        if self.__sklearn_is_fitted__():
            self._check_layers([layer.name for layer in layers])
            statistics = self.statistics_.merge(statistics)
        return self._fitted(layers, statistics)

    def merge(self, other: FullNetworkEmbedding) -> FullNetworkEmbedding:
        """An embedding fitted on the training rows of both, without reading any again.

        Raises:
            NotFittedError: one of the two is not fitted.
            InputError: they read other layers.
        """
        self._check_fitted()
        other._check_fitted()
        self._check_layers(other.layer_names_)
        merged = type(self)(**self.get_params(deep=False))
        return merged._fitted(self.layers_, self.statistics_.merge(other.statistics_))

    def fit_transform(
        self,
        rows: Samples | Embedding | Sequence,
        y: object = None,
        *,
        out: str | Path | None = None,
        keep_raw: bool = True,
    ) -> Embedding:
        """`fit`, then the features of the same rows, with one pass through the network for both.

        Args:
            rows: the training rows.
            y: ignored, as scikit-learn wants it.
            out: a folder that receives the rows as they are read, and from which a stopped pass goes on.
            keep_raw: whether the folder keeps the raw activations too, for other recipes.
        """
        if out is None or isinstance(rows, Embedding):
            raw = self.activations(rows)
            statistics = fit_statistics(raw.blocks, raw.shape[1], Processes())
            self._fitted(raw.layers, statistics)
            return self._kept(self._scaled(raw), out)
        reading = self._plan(self._as_samples(rows))
        store = reading.into_store(out)
        self._fitted(reading.columns, fit_store(store, reading.processes))
        return self._features(store, reading, keep_raw)

    def transform(
        self, rows: Samples | Embedding | Sequence, *, out: str | Path | None = None, keep_raw: bool = True
    ) -> Embedding:
        """The features of further rows, scaled with the training statistics.

        Args:
            rows: what is read.
            out: a folder that receives the rows as they are read, and from which a stopped pass goes on.
            keep_raw: whether the folder keeps the raw activations too, for other recipes.

        Raises:
            NotFittedError: `fit` comes first.
            InputError: rows that cannot be read, or an embedding of other layers.
        """
        self._check_fitted()
        if isinstance(rows, Embedding):
            return self._kept(self._scaled(self._chosen(rows)), out)
        reading = self._plan(self._as_samples(rows))
        self._check_layers([tap.name for tap in reading.taps])
        if out is not None:
            return self._features(reading.into_store(out), reading, keep_raw)
        recipe = find_recipe(self.recipe)
        scale = recipe.scaler(self.statistics_, [tap.n_features for tap in reading.taps])
        return reading.into_memory(scale, dtype=recipe.dtype)

    def __call__(self, inputs: list) -> dict[str, np.ndarray]:
        """The features of a batch of raw inputs, for `dataset.map(fne, batched=True, input_columns="image")`."""
        if not isinstance(inputs, list):
            raise InputError(
                f"expected a list of raw inputs, got {type(inputs).__name__}; "
                f'name the column: dataset.map(fne, batched=True, input_columns="image")'
            )
        quiet = type(self)(**{**self.get_params(deep=False), "progress": False, "on_bad_rows": "raise"})
        return {"embedding": np.asarray(quiet._fitted(self.layers_, self.statistics_).transform(inputs))}

    def get_feature_names_out(self, input_features: object = None) -> np.ndarray:
        """A name for each column: the layer's, and the number of its channel."""
        self._check_fitted()
        return np.asarray(feature_names(self.layers_), dtype=object)

    def __sklearn_is_fitted__(self) -> bool:
        return "statistics_" in vars(self)

    def __sklearn_clone__(self) -> FullNetworkEmbedding:
        return type(self)(**self.get_params(deep=False))  # the network is shared, never copied

    def _check_fitted(self) -> None:
        if not self.__sklearn_is_fitted__():
            raise NotFittedError(
                "features of new rows are scaled with training statistics, and there are none yet: "
                "call fit or fit_transform on the training rows first"
            )

    def as_fitted(self) -> Fitted:
        """What its files hold: everything but its speed.

        Raises:
            NotFittedError: `fit` comes first.
        """
        self._check_fitted()
        chosen = callable(self.taps)  # a function is not kept, but what it chose
        return Fitted(
            self.network,
            find_recipe(self.recipe),
            self.layer_names_ if chosen else self.taps,
            1.0 if chosen else self.top,
            self.pool,
            self.dtype,
            self.layers_,
            self.statistics_,
        )

    def _plan(self, rows: Samples) -> Pass:
        processes, device = find_processes(self.device)
        execution = Execution(
            batch_size=self.batch_size,
            device=device,
            on_bad_rows=self.on_bad_rows,
            progress=self.progress and processes.main,
            dtype=self.dtype,
            channels_last=self.channels_last,
            compiled=self.compiled,
            workers=self.workers,
        )
        return plan_pass(
            self.network,
            rows,
            selection=self.taps,
            top=self.top,
            activation=find_recipe(self.recipe).activation,
            pool=self.pool,
            execution=execution,
            processes=processes,
        )

    def _statistics(
        self, rows: Samples | Embedding | Sequence, *, at_least: int = 2
    ) -> tuple[tuple[LayerColumns, ...], Statistics]:
        if isinstance(rows, Embedding):
            raw = self._chosen(rows)
            return raw.layers, fit_statistics(raw.blocks, raw.shape[1], Processes(), at_least=at_least)
        reading = self._plan(self._as_samples(rows))
        blocks = (block.values for block in reading.blocks())
        statistics = fit_statistics(blocks, reading.columns[-1].stop, reading.processes, at_least=at_least)
        return reading.columns, statistics

    def _fitted(self, layers: Sequence[LayerColumns], statistics: Statistics) -> FullNetworkEmbedding:
        self.layers_ = tuple(layers)
        self.layer_names_ = [layer.name for layer in layers]
        self.n_features_ = layers[-1].stop
        self.statistics_ = statistics
        return self

    def _features(self, store: Store, reading: Pass, keep_raw: bool) -> Embedding:
        recipe = find_recipe(self.recipe)
        write_features(
            store, recipe, self.statistics_, codec=self.codec, keep_raw=keep_raw, processes=reading.processes
        )
        return Embedding.load(store.folder, values="features")

    def _kept(self, embedding: Embedding, out: str | Path | None) -> Embedding:
        return embedding if out is None else Embedding.load(embedding.save(out))

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

    def _as_samples(self, rows: Samples | Sequence) -> Samples:
        if self.network is None:
            raise InputError(f"without a network only raw embeddings can be used, got {type(rows).__name__}")
        if isinstance(rows, Samples):
            return rows
        from datasets import Dataset

        if isinstance(rows, Dataset):
            return as_samples(rows, modality=self.network.modality)
        return Samples([{"input": value} for value in rows], "input")


def _span(names: Sequence[str]) -> str:
    return f"{names[0]!r} to {names[-1]!r}"
