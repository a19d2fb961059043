"""A classifier: photos, texts or recordings -> classes, and how sure they are; one folder, however it was trained."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from torch import nn

from hf_tl.architectures import is_transformers, unwrapped
from hf_tl.checkpoint import name_outputs
from hf_tl.classifier.calibration import Calibration, calibrate, cross_entropy
from hf_tl.classifier.export import export_classifier
from hf_tl.classifier.predictions import Prediction, batches_in_order
from hf_tl.classifier.raw_samples import RawSamples, read_raw
from hf_tl.classifier.saved_classifier import push_classifier, read_classifier, save_classifier
from hf_tl.classifier.scorer import EmbeddingScorer, LinearHead, NetworkScorer, Scorer
from hf_tl.classifier.training_record import TrainingRecord, record_training
from hf_tl.data import Samples, Task, load_task
from hf_tl.embedding.batches import Execution
from hf_tl.embedding.embedding import Embedding
from hf_tl.embedding.fingerprint import fingerprint_bytes, fingerprint_json, fingerprint_weights
from hf_tl.embedding.full_network import FullNetworkEmbedding
from hf_tl.embedding.recipe import find_recipe
from hf_tl.errors import InputError
from hf_tl.labels import find_problem
from hf_tl.lora.adapted import RECORD
from hf_tl.lora.merge import delete_adapter, merge_adapter
from hf_tl.models import Network
from hf_tl.names import closest
from hf_tl.preparation import MODALITIES, preparation_with
from hf_tl.probes.evaluation import Evaluation
from hf_tl.probes.grid_search import check_groups, stratified_folds, usable_folds
from hf_tl.probes.heads import HeadMaker, fit_head, make_head
from hf_tl.probes.svm import LinearSVM
from hf_tl.table import as_html
from hf_tl.training import DataCollator


if TYPE_CHECKING:
    from transformers import Trainer

    from hf_tl.probes.grid_search import Cost


@dataclass(frozen=True, eq=False)
class Classifier:
    """Says which class a photo, text or recording is of, and how sure it is.

    `fit` puts a linear head on the full-network embedding of a frozen network; `from_trainer` and `from_network` take
    a network that was trained in any way: in full, under a policy, with an adapter. How it is used does not depend on
    what it is made of.

        classifier = Classifier.fit("timm/mobilenetv2_100.ra_in1k", load_task("beans", modality="image"))
        classifier.save_pretrained("runs/beans")
        Classifier.from_pretrained("runs/beans").predict(["leaf.jpg"])

    Attributes:
        scorer: what gives the logits.
        class_names: of the logits, in their order.
        calibration: logits -> probabilities.
        record: of the training.
    """

    scorer: Scorer
    class_names: tuple[str, ...]
    calibration: Calibration = field(default_factory=Calibration)
    record: TrainingRecord = field(default_factory=TrainingRecord)

    def __post_init__(self) -> None:
        if len(self.class_names) < 2 or len(set(self.class_names)) != len(self.class_names):
            raise InputError(f"class_names should be two or more different names, got {list(self.class_names)}")

    @classmethod
    def fit(
        cls,
        model: str | Network | FullNetworkEmbedding,
        task: Task | str,
        *,
        head: str | HeadMaker = "svm",
        C: Cost = 1.0,
        groups: np.ndarray | None = None,
        out: str | Path | None = None,
    ) -> Classifier:
        """A linear head on the full-network embedding, calibrated by cross-validation, scored on the test samples.

        For the temperature, the head is fitted on all folds but one of the training samples and its logits of the last
        are kept; no test sample takes part. The head that predicts is fitted on all training samples.

        Args:
            model: the name of a network, as for `load_network`; a `Network`; or an embedding with a recipe, layers and
                an image size of its own.
            task: from `load_task`, or a name that it takes.
            head: "svm", "logreg", "ridge", "lda", or a function that makes another linear one.
            C: of the head, see `make_head`.
            groups: (n_train,) samples of one number, such as copies (`twin_groups`), are in one fold: a head that has
                seen the copy is surer than it will be of new samples.
            out: a folder for the features, in which a pass that was stopped resumes; without it they are in memory.

        Raises:
            InputError: a head that is not linear, samples that cannot be read.
        """
        embedding = _embedding_of(model)
        if isinstance(task, str):
            task = load_task(task, modality=embedding.require_network().modality)
        if task.problem != "classification":
            raise InputError(
                f"a classifier learns one class a sample, but this is a {task.problem} task; see fit_probe"
            )
        folders = [None if out is None else Path(out) / split for split in ("train", "test")]
        train = embedding.fit_transform(task.train, out=folders[0])
        names, numbers = _numbered(train.labels, train.class_names)
        groups = check_groups(groups, len(task.train))
        groups = None if groups is None else groups[train.indices]  # without those that cannot be read
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, message=".*can memorise.*")
            fitted = make_head(head, train.shape, C=C)
        fit_head(fitted, train.values, numbers, groups=groups)
        scorer = EmbeddingScorer(embedding, LinearHead.of(fitted))
        cost = fitted.C_ if isinstance(fitted, LinearSVM) else C
        calibration = _cross_validated(train, numbers, lambda shape: make_head(head, shape, C=cost), groups)
        made = cls(
            scorer,
            names,
            calibration,
            record_training(task.train, method=f"{_method(head, fitted)} on {_of(embedding)}"),
        )
        test = embedding.transform(task.test, out=folders[1])
        logits = np.concatenate([scorer.head(chunk) for chunk in test.chunks()])
        return made._scored(logits, _values(test.labels, test.class_names), task.test.name)

    @classmethod
    def from_network(
        cls,
        network: Network,
        *,
        class_names: Sequence[str] = (),
        held_out: Samples | None = None,
        test: Samples | None = None,
        train: Samples | None = None,
        method: str = "fine-tuned",
        execution: Execution | None = None,
    ) -> Classifier:
        """A network that was trained with a head of its own.

        A network with adapters of `hf_tl.lora` is copied, and they are merged in the copy.

        Args:
            network: from `load_network(..., classes=...)`, trained since; or `Network(model, prepare)`.
            class_names: of its outputs; by default those in its configuration.
            held_out: labelled samples that it was not trained on, for the temperature; None for no calibration.
            test: further ones, for the scores.
            train: what it was trained on, for their digest.
            method: how, in words.
            execution: how samples go through it.

        Raises:
            InputError: classes that are not the network's.
        """
        network = replace(network, model=_merged(network.model))
        names = _class_names(network, class_names)
        scorer = NetworkScorer(network, execution or Execution())
        made = cls(scorer, names, record=record_training(train, method=method))
        if held_out is not None:
            logits, values = made._labelled_logits(held_out)
            numbers = made._numbers(values)
            known = numbers >= 0
            how = f"{known.sum()} held-out samples ({held_out.name})"
            made = replace(made, calibration=calibrate(logits[known], numbers[known], how=how))
        return made if test is None else made._scored(*made._labelled_logits(test), test.name)

    @classmethod
    def from_trainer(
        cls,
        trainer: Trainer,
        *,
        network: Network | None = None,
        class_names: Sequence[str] = (),
        held_out: Samples | None = None,
        test: Samples | None = None,
        train: Samples | None = None,
        method: str = "fine-tuned",
        execution: Execution | None = None,
    ) -> Classifier:
        """The network of a transformers `Trainer`, after its training.

        Args:
            trainer: its `data_collator` is `DataCollator(network)`, or its `processing_class` is the processor.
            network: what prepares the inputs, where it is neither.
            class_names: likewise, as in `from_network`.
            held_out: likewise.
            test: likewise.
            train: likewise.
            method: likewise.
            execution: likewise.

        Raises:
            InputError: nothing says how raw inputs are prepared.
        """
        model = unwrapped(cast(nn.Module, trainer.model))
        if network is None and isinstance(trainer.data_collator, DataCollator):
            network = trainer.data_collator.network
        if network is not None:
            network = replace(network, model=model)
        else:
            network = _network_of(model, trainer.processing_class)
        return cls.from_network(
            network,
            class_names=class_names,
            held_out=held_out,
            test=test,
            train=train,
            method=method,
            execution=execution,
        )

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        network: Network | None = None,
        revision: str | None = None,
        token: str | None = None,
        execution: Execution | None = None,
    ) -> Classifier:
        """What `save_pretrained` or `push_to_hub` wrote.

        Files are data and nothing else: JSON and safetensors; no name in them is imported, no code of theirs runs.

        Args:
            name: a folder, or a Hub id.
            network: the network to read, where that of the fit was none of transformers or timm.
            revision: branch, tag or commit on the Hub.
            token: None for HF_TOKEN or what `hf auth login` stored.
            execution: how samples go through the network.

        Raises:
            InputError: no classifier there, damaged files, another network.
        """
        said, scorer = read_classifier(name, network=network, revision=revision, token=token, execution=execution)
        return cls(scorer, said.class_names, said.calibration, said.record)

    def save_pretrained(self, folder: str | Path, *, with_network: bool = True) -> Path:
        """Writes JSON, safetensors and a model card into a folder.

        A network that was trained whole is in it as transformers or timm save it, with its processor, the class names
        and the temperature in its head, so that `transformers.pipeline(task, model=folder)` answers alike. Below an
        embedding, the network stands in the sub-folder "network".

        Args:
            folder: is made.
            with_network: whether a frozen network is written too; else it is loaded by its name again.

        Raises:
            InputError: a network of another make than transformers' or timm's, which was trained.
        """
        return save_classifier(self, folder, with_network=with_network)

    push_to_hub = push_classifier
    export = export_classifier

    def predict(self, inputs: object) -> np.ndarray:
        """The most probable class of each input: (n,) of names; "" for one that was left out.

        Args:
            inputs: a folder, a table or a file; or a sequence of paths, PIL images, arrays, recordings or texts.

        Raises:
            InputError: an input that cannot be read, unless `execution.on_bad_samples` is "skip".
        """
        found = self.predict_proba(inputs)
        read = np.isfinite(found[:, 0])
        names = np.asarray(self.class_names)[np.where(read, found.argmax(axis=1), 0)]
        return np.where(read, names, "")

    def predict_proba(self, inputs: object) -> np.ndarray:
        """The probability of each class, calibrated as `calibration` says: (n, n_classes); NaN for what was left out.

        Args:
            inputs: as for `predict`.
        """
        raw = self.read(inputs)
        found = np.full((len(raw.samples), len(self.class_names)), np.nan)
        for indices, probabilities, _ in self.batches(raw.samples):
            found[indices] = probabilities
        return found

    def predictions(self, inputs: object, *, top: int = 3) -> Iterator[Prediction]:
        """Each input's name and its most probable classes, as they are read; those left out with the reason.

        Args:
            inputs: as for `predict`.
            top: how many classes each.
        """
        for batch in batches_in_order(self, self.read(inputs), top=top):
            yield from batch

    def evaluate(self, samples: Samples | Task | object) -> Evaluation:
        """How good it is on labelled samples.

        Args:
            samples: `Samples`, a `datasets.Dataset` or a table with a label column; of a `Task` its test samples.
                Those that cannot be read are left out if `execution.on_bad_samples` is "skip".

        Raises:
            InputError: no labels, or none of a class of this classifier.
        """
        if isinstance(samples, Task):
            samples = samples.test
        return self._evaluation(*self._labelled_logits(self.read(samples).samples))

    def batches(self, samples: Samples) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Of each batch the indices of its samples, their probabilities (n, n_classes), and the indices left out."""
        for chunk in self.scorer.chunks(samples):
            values = chunk.values if len(chunk.indices) else np.empty((0, len(self.class_names)))
            if values.shape[1] != len(self.class_names):
                raise InputError(
                    f"the network gives {values.shape[1]} logits, but there are {len(self.class_names)} classes"
                )
            yield chunk.indices, self.calibration.probabilities(values), chunk.skipped

    @cached_property
    def digest(self) -> str:
        """What tells it from another classifier: the weights, the classes and the calibration."""
        said = [list(self.class_names), self.calibration.temperature, fingerprint_weights(self.network.model)]
        if isinstance(self.scorer, EmbeddingScorer):
            embedding, head = self.scorer.embedding, self.scorer.head
            state = [*embedding.statistics_.state().values(), head.coef, head.intercept]
            said += [fingerprint_bytes(np.ascontiguousarray(value).tobytes()) for value in state]
            said.append(repr(find_recipe(embedding.recipe)))
        return fingerprint_json(said)

    def read(self, inputs: object) -> RawSamples:
        """What a user points at, as samples with names."""
        return read_raw(inputs, modality=self.network.modality, columns=self.record.columns)

    def to_module(self) -> nn.Module:
        """From the network's batch to calibrated logits in one module, for `torch.export` and ONNX.

        Its softmax is `predict_proba`. Preparing raw inputs is not in it: `classifier.network.prepare(inputs)`.
        """
        from hf_tl.classifier.module import classifier_module

        return classifier_module(self.scorer, temperature=self.calibration.temperature)

    @property
    def network(self) -> Network:
        """What reads the inputs."""
        return self.scorer.network

    @property
    def execution(self) -> Execution:
        """How samples go through the network; its attributes may be set: `classifier.execution.batch_size = 8`."""
        return self.scorer.execution

    def __str__(self) -> str:
        classes = ", ".join(self.class_names[:6]) + (", ..." if len(self.class_names) > 6 else "")
        lines = [f"{self.record.method or 'classifier'} of {len(self.class_names)} classes: {classes}"]
        if self.record.scores:
            scores = ", ".join(f"{name} {value:.3f}" for name, value in self.record.scores.items())
            lines.append(f"{scores} on {self.record.scored_on}")
        return "\n".join([*lines, f"probabilities: {self.calibration}"])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return as_html(str(self))

    def _labelled_logits(self, samples: Samples) -> tuple[np.ndarray, np.ndarray]:
        """Logits (n, n_classes), and the names of the true classes (n,)."""
        if samples.labels is None:
            raise InputError(f"{samples.name} has no labels; an evaluation needs the class of every sample")
        if find_problem(samples.labels) != "classification":
            raise InputError(f"{samples.name} should have one class a sample, got {samples.labels[0]!r}")
        logits, kept = [], []
        for chunk in self.scorer.chunks(samples):
            if len(chunk.indices):
                logits.append(chunk.values)
            kept += chunk.indices.tolist()
        if not kept:
            raise InputError(f"none of the {len(samples)} samples of {samples.name} can be used; all were skipped")
        return np.concatenate(logits), _values(samples.labels[kept], samples.class_names)

    def _evaluation(self, logits: np.ndarray, values: np.ndarray) -> Evaluation:
        numbers = self._numbers(values)
        unknown = sorted(set(values[numbers < 0].tolist()))  # they are wrong whatever is said, and have their names
        for number, name in enumerate(unknown, start=len(self.class_names)):
            numbers[values == name] = number
        return Evaluation(numbers, logits.argmax(axis=1), (*self.class_names, *unknown))

    def _scored(self, logits: np.ndarray, values: np.ndarray, name: str) -> Classifier:
        numbers = self._numbers(values)
        known = numbers >= 0
        entropy = cross_entropy(logits[known] / self.calibration.temperature, numbers[known])
        scores = {**self._evaluation(logits, values).scores, "cross entropy": entropy}
        return replace(self, record=replace(self.record, scores=scores, scored_on=f"{len(values)} samples ({name})"))

    def _numbers(self, values: np.ndarray) -> np.ndarray:
        """Names of classes -> their numbers; -1 for a class that is not known here."""
        numbers = {name: number for number, name in enumerate(self.class_names)}
        found = np.array([numbers.get(value, -1) for value in values])
        if (found < 0).all():
            raise InputError(
                f"none of the samples is of a class of this classifier, {', '.join(self.class_names[:5])}; "
                f"the first is of class {values[0]!r}; {closest(values[0], self.class_names)}"
            )
        return found


def _embedding_of(model: str | Network | FullNetworkEmbedding) -> FullNetworkEmbedding:
    if isinstance(model, FullNetworkEmbedding):
        return model
    return FullNetworkEmbedding(model) if isinstance(model, Network) else FullNetworkEmbedding.from_pretrained(model)


def _values(labels: np.ndarray | None, class_names: Sequence[str] | None) -> np.ndarray:
    """Labels as the names of their classes, (n,) of str."""
    if labels is None:
        raise InputError("there are no labels; a classifier learns from, and is evaluated on, labelled samples")
    return np.array(
        [str(label) if class_names is None else class_names[label] for label in labels.tolist()], dtype=object
    )


def _numbered(labels: np.ndarray | None, class_names: Sequence[str] | None) -> tuple[tuple[str, ...], np.ndarray]:
    """The classes that occur, and the number of each sample's class among them."""
    if labels is None:
        raise InputError("the training samples have no labels; a classifier learns from labelled samples")
    found, numbers = np.unique(labels, return_inverse=True)
    return tuple(_values(found, class_names).tolist()), numbers


def _cross_validated(
    train: Embedding, numbers: np.ndarray, make: Callable[[tuple[int, int]], Any], groups: np.ndarray | None
) -> Calibration:
    """The temperature from the logits of folds that the head did not see."""
    n_folds = usable_folds(numbers, groups=groups)
    if not n_folds:
        return Calibration(how="not calibrated: too few training samples a class to hold some out")
    fold = stratified_folds(numbers, n_splits=n_folds, groups=groups)
    logits = np.full((len(train), numbers.max() + 1), np.nan)
    for k in range(n_folds):
        kept, out = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        if len(np.unique(numbers[kept])) < logits.shape[1]:
            continue  # a class of one sample cannot be learnt here
        part = train[kept]
        inside = None if groups is None else groups[kept]
        found = LinearHead.of(fit_head(make(part.shape), part.values, numbers[kept], groups=inside))
        logits[out] = found(np.asarray(train[out].values))
    used = np.isfinite(logits).all(axis=1)
    if not used.any():
        return Calibration(how="not calibrated: a class has one training sample only")
    return calibrate(logits[used], numbers[used], how=f"{n_folds} folds of the {len(train)} training samples")


def _method(head: str | HeadMaker, fitted: object) -> str:
    named = {"svm": "linear SVM", "logreg": "logistic regression", "ridge": "ridge classifier", "lda": "LDA"}
    name = named.get(head, head) if isinstance(head, str) else type(fitted).__name__
    return f"{name}, C={fitted.C_:.3g}," if isinstance(fitted, LinearSVM) else name


def _of(embedding: FullNetworkEmbedding) -> str:
    n, name = len(embedding.layers_), Path(embedding.require_network().name).name
    return f"{embedding.n_features_:,} features of {n} layer{'s' * (n > 1)} of {name}"


def _merged(model: nn.Module) -> nn.Module:
    """The network without adapters: a copy of it with their effect in the weights, where it has some."""
    if not any(RECORD in vars(module) for module in model.modules()):
        return model
    model = copy.deepcopy(model)
    merge_adapter(model, safe_merge=True, reversible=False)
    return delete_adapter(model, merge=True)


def _class_names(network: Network, given: Sequence[str]) -> tuple[str, ...]:
    """The names of a network's outputs; they are also written into its configuration."""
    names, own = tuple(map(str, given)), name_outputs(network.model)
    if names and own and len(names) == len(own) and names != own:
        raise InputError(f"the outputs of {network.name!r} are of {list(own)}, but class_names is {list(names)}")
    named = name_outputs(network.model, names)
    if not named and is_transformers(network.model):
        named = tuple((network.model.config.id2label or {}).values())  # LABEL_0, LABEL_1
    if not named:
        raise InputError(f"{network.name!r} does not name its outputs; give class_names=[...], in their order")
    return named


def _network_of(model: nn.Module, processor: object) -> Network:
    name = (model.config.name_or_path if is_transformers(model) else "") or type(model).__name__
    prepare = preparation_with(model, processor, name=name)
    modality = MODALITIES[model.main_input_name] if is_transformers(model) else "array"
    return Network(model, prepare, modality=modality, name=name, processor=processor)
