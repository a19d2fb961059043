"""The full-network embedding: every layer of a network as features, scaled with training statistics."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.exceptions import NotFittedError
from torch import nn

from hf_tl.data import Samples, as_samples
from hf_tl.embedding.anatomy import find_taps
from hf_tl.embedding.autotune import Choice
from hf_tl.embedding.batches import Auto, Execution, OnBadSamples, Processes, find_processes, to_device
from hf_tl.embedding.embedding import Embedding, LayerColumns, feature_names
from hf_tl.embedding.fingerprint import fingerprint_json
from hf_tl.embedding.isolation import find_padding_leak
from hf_tl.embedding.passes import Chunk, Pass
from hf_tl.embedding.pooling import Pooling
from hf_tl.embedding.pretrained import find_fitted, push_embedding, read_fitted, save_fitted
from hf_tl.embedding.recipe import Recipe, Scaler, Statistics, find_recipe
from hf_tl.embedding.store import STATISTICS, Store, writing
from hf_tl.embedding.stored_array import Codec
from hf_tl.embedding.taps import Tap, TapSelection, describe_taps, with_pooling
from hf_tl.errors import InputError
from hf_tl.example import dummy_batch, dummy_inputs
from hf_tl.models import Network, load_network
from hf_tl.trace import Batch


Data = Samples | Embedding | Sequence


@dataclass(repr=False, eq=False)
class FullNetworkEmbedding(TransformerMixin, BaseEstimator, Execution):
    """Reads a pre-trained network at many layers at once (Garcia-Gasulla et al., ICBK 2018).

    Every convolution and fully connected layer is read, convolutions averaged over space; the parts are
    concatenated, each feature is standardised with the statistics of the training samples and, in the paper's
    recipe, discretised to {-1, 0, 1}.

    Samples are given as a `datasets.Dataset`, as `hf_tl.Samples`, as a sequence of raw inputs, or as the raw
    `Embedding` that `activations` returned, so that one pass serves many recipes and layer subsets.

    With `out=FOLDER` samples go to disk as they are read: memory does not grow with their number, a pass that was
    stopped resumes where it was, and the processes that `accelerate launch` starts share the work.

    Args:
        network: from `hf_tl.load_network`, or `Network(model, prepare)` around any module of yours; None where
            all samples are given as raw embeddings.
        recipe: a name in `hf_tl.embedding.recipe.RECIPES`, or a `Recipe`.
        taps: "auto", "blocks", "linear", "conv", "last", glob patterns over layer names, or a function of a
            module's name and the module; see `hf_tl.embedding.taps.TapSelection`.
        top: the share of the chosen layers to keep, counted from the task side.
        pool: how a layer's positions become one number per channel: "mean", "max", "gem", "cls", "patch-mean",
            "last-token", a `Pooling` of your own, or one of these for each kind of tap, {"conv": "max"}.
        codec: how discretised features are stored with `out`: "2bit" or "int8".
        batch_size: samples a forward pass, "auto" for what the first samples show to be fastest; this and the rest as
            in `hf_tl.embedding.batches.Execution`: `device`, `on_bad_samples`, `progress`, `dtype`, `channels_last`,
            `torch_compile`, `num_workers`. `dtype` may be "auto" too: bfloat16 where the first samples show that it is
            clearly faster on this machine; what was found is kept by the fit, and by a pass that resumes.

    Attributes:
        taps_: what is read of the network, found when it is fitted; absent where only raw embeddings were seen.
        layers_: the columns of each layer in use.
        layer_names_: their names, in column order.
        n_features_: number of columns.
        dtype_: the precision of the network: `dtype`, or what was found with "auto".
        statistics_: count, mean and standard deviation of each raw feature over the training samples.
    """

    network: Network | None = None
    _: KW_ONLY
    recipe: Recipe | str = "paper"
    taps: TapSelection = "auto"
    top: float = 1.0
    pool: str | Pooling | Mapping[str, str | Pooling] = "auto"
    codec: Literal["2bit", "int8"] = "2bit"

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        network: Network | None = None,
        image_size: int | None = None,
        max_length: int | None = None,
        revision: str | None = None,
        recipe: Recipe | str = "paper",
        taps: TapSelection = "auto",
        top: float = 1.0,
        pool: str | Pooling | Mapping[str, str | Pooling] = "auto",
        codec: Literal["2bit", "int8"] = "2bit",
        batch_size: int | Auto = "auto",
        device: str = "cpu",
        on_bad_samples: OnBadSamples = "raise",
        progress: bool = True,
        dtype: torch.dtype | str | None = None,
        channels_last: bool | Auto = "auto",
        torch_compile: bool = False,
        num_workers: int | Auto = "auto",
    ) -> FullNetworkEmbedding:
        """The embedding of a pre-trained network, still to be fitted; or one that `save_pretrained` wrote, fitted.

        Args:
            name: a network that `hf_tl.load_network` loads, or a folder or Hub id of a fitted embedding.
            network: of a fitted embedding: the network to read, where it is not one that can be loaded by name.
            image_size: side of the images in pixels.
            max_length: tokens of a text that are read.
            revision: branch, tag or commit on the Hub.
            recipe: of an embedding still to be fitted.
            taps: likewise.
            top: likewise.
            pool: likewise; and of a fitted embedding whose pooling is a plug-in, whose name in a file is not enough
                to import it.
            codec: this and the rest as for the class.
            dtype: None or "auto" for that of a fitted embedding; of another None is float32.

        Raises:
            InputError: no such model; a fitted embedding whose network has changed.
        """
        folder = find_fitted(name, revision)
        if folder is not None:
            given = {"image_size": image_size is not None, "recipe": recipe != "paper", "taps": taps != "auto"}
            idle = [option for option, said in (given | {"top": top != 1.0}).items() if said]
            if idle:
                raise InputError(f"{name!r} is a fitted embedding, whose files say {', '.join(idle)}; leave that out")
            settings, layers, statistics = read_fitted(folder, network=network, pool=pool)
            made = cls(**settings).fit_with(layers, statistics)
        else:
            find_recipe(recipe)
            loaded = network or load_network(name, image_size=image_size, max_length=max_length, revision=revision)
            made = cls(loaded, recipe=recipe, taps=taps, top=top, pool=pool)
        made.codec, made.batch_size, made.device, made.on_bad_samples = codec, batch_size, device, on_bad_samples
        made.progress, made.channels_last = progress, channels_last
        made.torch_compile, made.num_workers = torch_compile, num_workers
        if dtype is not None and not (dtype == "auto" and folder is not None):
            made.dtype = dtype
        return made

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes the fitted embedding: layers as JSON, statistics as safetensors, a model card; not the network.

        Raises:
            NotFittedError: `fit` comes first.
            InputError: a pooling of your own, which no file can hold.
        """
        return save_fitted(self, folder)

    push_to_hub = push_embedding

    def describe(self, samples: Data | None = None) -> str:
        """A table of what is read: each tap, what it is, how it is pooled, and its columns; and what is not, and why.

        Args:
            samples: two or more to try the network on; not needed for networks that read images or text.
        """
        if samples is None and self.network is not None:
            return describe_taps(*self._find_taps(dummy_batch(self.network.model)))
        if isinstance(samples, Embedding):
            raise InputError("a table of taps is made of a network's inputs, got an Embedding; see its layers")
        planned = self._plan([] if samples is None else samples, taps=())
        taps, left_out = self._find_taps(to_device(planned.example, planned.execution.device))
        leak = self._find_leak(planned, taps)
        return describe_taps(taps, left_out) + (f"\n{leak}" if leak else "")

    def activations(self, samples: Data, *, out: str | Path | None = None) -> Embedding:
        """The raw activations of the chosen layers: one pass, nothing fitted, nothing scaled.

        Args:
            samples: what is read.
            out: a folder that receives them as they are read, and in which a stopped pass resumes.
        """
        if isinstance(samples, Embedding):
            return _kept(self._chosen(samples), out)
        planned = self._plan(samples, out=out)
        if out is None:
            return planned.into_memory()
        with _writing(out, planned.processes):
            return Embedding.load(planned.into_store(out).folder, values="raw")

    def fit(self, samples: Data, y: object = None) -> FullNetworkEmbedding:
        """Learns mean and standard deviation of each feature, in one pass that keeps no activations.

        Args:
            samples: the training samples: what `load_task` gives, a list of the network's inputs, or an `Embedding`
                of raw activations.
            y: ignored, as scikit-learn wants it.

        Raises:
            InputError: fewer than two samples; samples that cannot be read.
        """
        self.__dict__.pop("dtype_", None)
        return self.fit_with(*self._statistics(samples, at_least=2))

    def partial_fit(self, samples: Data, y: object = None) -> FullNetworkEmbedding:
        """Adds training samples to those of earlier calls, as in `fit`; y is ignored.

        Raises:
            InputError: samples of other layers.
        """
        layers, statistics = self._statistics(samples, at_least=1)
        if self.__sklearn_is_fitted__():
            self._check_layers(layers)
            statistics = self.statistics_.merge(statistics)
        return self.fit_with(layers, statistics)

    def merge(self, other: FullNetworkEmbedding) -> FullNetworkEmbedding:
        """An embedding fitted on the training samples of both, without reading any again.

        Raises:
            NotFittedError: one of the two is not fitted.
            InputError: they read other layers, or in another precision.
        """
        self.check_fitted()
        other.check_fitted()
        self._check_layers(other.layers_)
        if other.dtype_name != self.dtype_name:
            raise InputError(f"one of the two read in {self.dtype_name}, the other in {other.dtype_name}; give dtype")
        merged = type(self)(**{**self.get_params(deep=False), "dtype": self.dtype_name})
        return merged.fit_with(self.layers_, self.statistics_.merge(other.statistics_))

    def fit_with(self, layers: Sequence[LayerColumns], statistics: Statistics) -> FullNetworkEmbedding:
        """Takes layers and their training statistics from a file or from other machines: fitted, without a pass.

        Args:
            layers: the columns of each.
            statistics: of the training samples' raw activations.
        """
        self.layers_ = tuple(layers)
        self.layer_names_ = [layer.name for layer in layers]
        self.n_features_ = layers[-1].stop
        self.statistics_ = statistics
        return self

    def fit_transform(
        self, samples: Data, y: object = None, *, out: str | Path | None = None, keep_raw: bool = True
    ) -> Embedding:
        """`fit`, then the features of the same samples, with one pass through the network for both.

        Args:
            samples: the training samples.
            y: ignored, as scikit-learn wants it.
            out: a folder that receives the samples as they are read, and in which a stopped pass resumes.
            keep_raw: whether the folder keeps the raw activations too, for other recipes.
        """
        if isinstance(samples, Embedding):
            raw = self._chosen(samples)
            return _kept(self._scaled(raw, fit=True), out)
        self.__dict__.pop("dtype_", None)
        planned = self._plan(samples, anew=True, out=out)
        if out is None:
            return self._scaled(planned.into_memory(), fit=True)
        with _writing(out, planned.processes):
            store = planned.into_store(out)
            self.fit_with(planned.columns, _statistics_of_store(store, planned.processes))
            return self._features(planned, store, keep_raw)

    def transform(self, samples: Data, *, out: str | Path | None = None, keep_raw: bool = True) -> Embedding:
        """The features of further samples, scaled with the training statistics.

        Args:
            samples: what is read.
            out: a folder that receives the samples as they are read, and in which a stopped pass resumes.
            keep_raw: whether the folder keeps the raw activations too, for other recipes.

        Raises:
            NotFittedError: `fit` comes first.
            InputError: samples that cannot be read, or an embedding of other layers.
        """
        self.check_fitted()
        if isinstance(samples, Embedding):
            return _kept(self._scaled(self._chosen(samples)), out)
        planned = self._plan(samples, out=out)
        self._check_layers(planned.columns)
        if out is None:
            scaler = self.scaler()
            return planned.into_memory(scaler, dtype=scaler.recipe.dtype)
        with _writing(out, planned.processes):
            return self._features(planned, planned.into_store(out), keep_raw)

    def stream(self, samples: Samples | Sequence) -> Iterator[Chunk]:
        """The features of further samples, batch by batch: nothing is kept, however many they are.

        Raises:
            NotFittedError: `fit` comes first.
            InputError: samples that cannot be read, or other layers than those of the fit.
        """
        self.check_fitted()
        planned = self._plan(samples)
        self._check_layers(planned.columns)
        scaler = self.scaler()
        for chunk in planned.chunks():
            yield replace(chunk, values=scaler(chunk.values))

    def __call__(self, inputs: list) -> dict[str, np.ndarray]:
        """The features of a batch of raw inputs, for `dataset.map(fne, batched=True, input_columns="image")`."""
        if not isinstance(inputs, list):
            raise InputError(
                f"expected a list of raw inputs, got {type(inputs).__name__}; "
                f'name the column: dataset.map(fne, batched=True, input_columns="image")'
            )
        self.check_fitted()
        planned = self._plan(inputs, progress=False, on_bad_samples="raise")
        self._check_layers(planned.columns)
        scaler = self.scaler()
        return {"embedding": np.asarray(planned.into_memory(scaler, dtype=scaler.recipe.dtype))}

    def find_fitted_taps(self) -> tuple[Tap, ...]:
        """Where in the network the layers of the fit are read, found with dummy inputs where no samples were seen.

        Raises:
            InputError: the network has other layers than those of the fit.
        """
        self.check_fitted()
        if "taps_" not in vars(self):
            network = self.require_network()
            if network.modality == "array":
                example = dummy_batch(network.model)
            else:  # with the mask of a padded batch, which the network alone does not tell
                example = network.prepare(dummy_inputs(network.modality))
            self.taps_ = tuple(self._find_taps(example)[0])
        layers = [(tap.name, tap.n_features) for tap in self.taps_]
        if layers != [(layer.name, layer.stop - layer.start) for layer in self.layers_]:
            raise InputError(
                f"expected the {len(self.layers_)} layers of training, {_span(self.layers_)}, but the network has "
                f"{len(layers)}; use the network of the fit"
            )
        return self.taps_

    def get_feature_names_out(self, input_features: object = None) -> np.ndarray:
        """A name for each column: the layer's, and the number of its channel."""
        self.check_fitted()
        return np.asarray(feature_names(self.layers_), dtype=object)

    def check_fitted(self) -> None:
        """Raises a NotFittedError before `fit`."""
        if not self.__sklearn_is_fitted__():
            raise NotFittedError(
                "features of new samples are scaled with training statistics, and there are none yet: "
                "call fit or fit_transform on the training samples first"
            )

    def require_network(self) -> Network:
        """Its network; raises an InputError where only raw embeddings can be used."""
        if self.network is None:
            raise InputError("without a network only raw embeddings can be used; give FullNetworkEmbedding(network)")
        return self.network

    def __sklearn_is_fitted__(self) -> bool:
        return "statistics_" in vars(self)

    def __sklearn_clone__(self) -> FullNetworkEmbedding:
        return type(self)(**self.get_params(deep=False))  # the network is shared, never copied

    def _plan(
        self,
        samples: Samples | Sequence,
        *,
        anew: bool = False,
        taps: Sequence[Tap] | None = None,
        out: str | Path | None = None,
        **settings: object,
    ) -> Pass:
        """A pass over some samples with the taps that were found before; else, or `anew`, with those found on them."""
        processes, device = find_processes(self.device)
        own = {field.name: vars(self)[field.name] for field in fields(Execution)}
        measure = self.dtype == "auto" and taps is None and "dtype_" not in vars(self)
        own["dtype"] = "float32" if measure else self.dtype_name
        shown = {"device": device, "progress": self.progress and processes.main}
        planned = Pass(
            *self._as_samples(samples),
            activation=find_recipe(self.recipe).activation,
            execution=Execution(**{**own, **shown, **settings}),
            processes=processes,
        )
        made_for = [self.taps, self.top, self.pool, planned.activation, _signature(planned.network.model)]
        if taps is None and (anew or vars(self).get("_taps_made_for") != made_for):
            example = to_device(planned.example, device)
            self.taps_ = tuple(self._find_taps(example)[0])
            leak = self._find_leak(planned, self.taps_)
            if leak is not None:
                warnings.warn(leak, stacklevel=3)
            self._taps_made_for, self._choice = made_for, Choice()
        if measure:
            self.dtype_ = planned.find_dtype(out)
        planned.taps = self.taps_ if taps is None else taps
        planned.choice = self.__dict__.setdefault("_choice", Choice())
        return planned

    @property
    def dtype_name(self) -> str:
        """ "float32" or "bfloat16"; with "auto" what was found, and float32 before anything was read."""
        return vars(self).get("dtype_", "float32") if self.dtype == "auto" else super().dtype_name

    def _find_taps(self, example: Batch) -> tuple[list[Tap], dict[str, str]]:
        activation = find_recipe(self.recipe).activation
        network = self.require_network()
        padded = self.batch_size != 1
        chosen = find_taps(network, example, activation=activation, selection=self.taps, top=self.top, padded=padded)
        taps, left_out = chosen
        return with_pooling(taps, self.pool, network), left_out

    def _find_leak(self, planned: Pass, taps: Sequence[Tap]) -> str | None:
        if len(planned.alone) < 2 or self.batch_size == 1:
            return None
        device = planned.execution.device
        alone = [to_device(batch, device) for batch in planned.alone.values()]
        return find_padding_leak(planned.network, taps, to_device(planned.together, device), alone)

    def _statistics(self, samples: Data, *, at_least: int) -> tuple[Sequence[LayerColumns], Statistics]:
        if isinstance(samples, Embedding):
            raw = self._chosen(samples)
            return raw.layers, _fit_statistics(raw.chunks(), raw.shape[1], Processes(), at_least=at_least)
        planned = self._plan(samples, anew=True)
        columns, chunks = planned.columns, (chunk.values for chunk in planned.chunks())
        return columns, _fit_statistics(chunks, columns[-1].stop, planned.processes, at_least=at_least)

    def scaler(self) -> Scaler:
        """Raw activations -> features, with the training statistics; `fit` comes first."""
        widths = [layer.stop - layer.start for layer in self.layers_]
        return Scaler(find_recipe(self.recipe), self.statistics_, widths)

    def _scaled(self, raw: Embedding, *, fit: bool = False) -> Embedding:
        if fit:
            self.fit_with(raw.layers, _fit_statistics(raw.chunks(), raw.shape[1], Processes()))
        self._check_layers(raw.layers)
        scaler = self.scaler()
        values = np.empty(raw.shape, scaler.recipe.dtype)
        n = 0
        for chunk in raw.chunks():
            values[n : (n := n + len(chunk))] = scaler(chunk)
        return replace(raw, values=values)

    def _features(self, planned: Pass, store: Store, keep_raw: bool) -> Embedding:
        """The features of a store, made where they are not there yet; when it returns, all processes have."""
        processes, scaler = planned.processes, self.scaler()
        state = {name: values.tolist() for name, values in self.statistics_.state().items()}
        thresholds = scaler.recipe.thresholds
        recipe = asdict(scaler.recipe) | {"thresholds": None if thresholds is None else list(thresholds)}
        about = processes.gather({"recipe": recipe, "statistics": fingerprint_json(state)})[0]
        codec = Codec("float32" if thresholds is None else self.codec, store.width)
        dropped = not store.has_raw
        store.make_features(scaler, about, codec=codec, processes=processes)
        if processes.main and dropped:
            planned.check_features(store, scaler)
        if processes.main and not keep_raw:
            store.drop_raw()
        processes.wait()
        return Embedding.load(store.folder, values="features")

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

    def _check_layers(self, layers: Sequence[LayerColumns]) -> None:
        if [(layer.name, layer.stop) for layer in layers] != [(layer.name, layer.stop) for layer in self.layers_]:
            raise InputError(
                f"expected the {len(self.layers_)} layers of training, {_span(self.layers_)}, got "
                f"{len(layers)}, {_span(layers)}; use the same network and layers for both"
            )

    def _as_samples(self, samples: Samples | Sequence) -> tuple[Network, Samples]:
        network = self.require_network()
        return network, as_samples(samples, modality=network.modality)


def _fit_statistics(
    chunks: Iterable[np.ndarray], width: int, processes: Processes, *, at_least: int = 2
) -> Statistics:
    """Statistics of the samples of all processes, from each one's own chunks (n, width); only sums travel."""
    own = Statistics(width)
    for chunk in chunks:
        own.update(chunk)
    merged = Statistics(width)
    for state in processes.gather(own.state()):
        merged = merged.merge(Statistics.from_state(state))
    if merged.n < at_least:
        raise InputError(f"training statistics need two samples or more, got {merged.n}")
    return merged


def _statistics_of_store(store: Store, processes: Processes) -> Statistics:
    """Statistics of a store's raw activations; where those were dropped, the statistics that were kept."""
    if not store.has_raw:
        return Statistics.from_state(store.read_tensors(STATISTICS))
    chunks = (values for _, values in store.raw_chunks(processes.share(store.positions)))
    statistics = _fit_statistics(chunks, store.width, processes)
    if processes.main:
        store.write_tensors(STATISTICS, statistics.state())
    return statistics


@contextmanager
def _writing(folder: str | Path, processes: Processes) -> Iterator[None]:
    if not processes.main:
        yield
        return
    with writing(folder):
        yield


def _kept(embedding: Embedding, out: str | Path | None) -> Embedding:
    return embedding if out is None else Embedding.load(embedding.save(out))


def _signature(model: nn.Module) -> list:
    """What tells a network from a changed one: its modules' names and classes, and which tensors they hold."""
    return [
        (name, type(module), [id(value) for value in (*module._parameters.values(), *module._buffers.values())])
        for name, module in model.named_modules()
    ]


def _span(layers: Sequence[LayerColumns]) -> str:
    return f"{layers[0].name!r} to {layers[-1].name!r}"
