"""A classifier: photos, texts or recordings -> classes and how sure they are, or numbers; however it was trained."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from torch import nn

from hf_tl.architectures import unwrapped
from hf_tl.classifier.calibration import NO_PROBABILITIES, Calibration, calibrate, calibrate_on_folds
from hf_tl.classifier.export import export_classifier
from hf_tl.classifier.predictions import Prediction, batches_in_order
from hf_tl.classifier.raw_samples import RawSamples, read_raw
from hf_tl.classifier.saved_classifier import push_classifier, read_classifier, save_classifier
from hf_tl.classifier.scorer import EmbeddingScorer, LinearHead, NetworkScorer, Scorer
from hf_tl.classifier.target import Target, cross_entropy, problem_of
from hf_tl.classifier.trained_network import merged, names_of_outputs, network_of
from hf_tl.classifier.training_record import TrainingRecord, record_training
from hf_tl.data import Samples, Task, load_task
from hf_tl.embedding.batches import Execution
from hf_tl.embedding.fingerprint import fingerprint_bytes, fingerprint_json, fingerprint_weights
from hf_tl.embedding.full_network import FullNetworkEmbedding
from hf_tl.embedding.recipe import find_recipe
from hf_tl.errors import InputError
from hf_tl.labels import Problem
from hf_tl.models import Network
from hf_tl.probes.evaluation import Evaluation, scores_in_words
from hf_tl.probes.grid_search import check_groups
from hf_tl.probes.heads import Head, HeadMaker, default_head, fit_head, make_head
from hf_tl.probes.svm import LinearSVM
from hf_tl.table import as_html
from hf_tl.training import DataCollator


if TYPE_CHECKING:
    from transformers import Trainer

    from hf_tl.probes.grid_search import Cost


@dataclass(frozen=True, eq=False)
class Classifier:
    """Says which class, or classes, a photo, text or recording is of, and how sure it is; or a number.

    As with transformers' networks for classification, `problem` says what is answered: fitted on numbers, it gives a
    number and no probability.

    `fit` puts a linear head on the full-network embedding of a frozen network; `from_trainer` and `from_network` take
    a network that was trained in any way: in full, under a policy, with an adapter. How it is used does not depend on
    what it is made of.

        classifier = Classifier.fit("timm/mobilenetv2_100.ra_in1k", load_task("beans", modality="image"))
        classifier.save_pretrained("runs/beans")
        Classifier.from_pretrained("runs/beans").predict(["leaf.jpg"])

    Attributes:
        scorer: what gives the logits.
        class_names: of the logits, in their order; empty for a number.
        calibration: of the logits.
        record: of the training.
        problem: "classification", one class each; "multilabel", several; or "regression", a number.
    """

    scorer: Scorer
    class_names: tuple[str, ...]
    calibration: Calibration = field(default_factory=Calibration)
    record: TrainingRecord = field(default_factory=TrainingRecord)
    problem: Problem = "classification"

    def __post_init__(self) -> None:
        assert self.target  # made here, so that wrong names are said now

    @classmethod
    def fit(
        cls,
        model: str | Network | FullNetworkEmbedding,
        task: Task | str,
        *,
        head: str | HeadMaker | None = None,
        C: Cost | None = None,
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
            head: "svm", "logreg", "ridge", "lda", or a function that makes another linear one; None for "svm", or for
                numbers "ridge".
            C: of the head, see `make_head`; None for 1, or for numbers "auto".
            groups: (n_train,) samples of one number, such as copies (`twin_groups`), are in one fold: a head that has
                seen the copy is surer than it will be of new samples.
            out: a folder for the features, in which a pass that was stopped resumes; without it they are in memory.

        Raises:
            InputError: a head that is not linear, or learns something else; samples that cannot be read.
        """
        embedding = _embedding_of(model)
        if isinstance(task, str):
            task = load_task(task, modality=embedding.require_network().modality)
        problem = task.problem
        head = head or default_head(problem)
        C = C if C is not None else "auto" if problem == "regression" else 1.0
        if isinstance(head, str):
            make_head(head, (2, 1), C=C, problem=problem)  # one that learns something else is refused now
        folders = [None if out is None else Path(out) / split for split in ("train", "test")]
        train = embedding.fit_transform(task.train, out=folders[0])
        target = Target.of_labels(train.labels, train.class_names)
        truth = target.read(train.labels, train.class_names, source=task.train.name)
        groups = check_groups(groups, len(task.train))
        groups = None if groups is None else groups[train.indices]  # without those that cannot be read
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, message=".*can memorise.*")
            fitted = make_head(head, train.shape, C=C, problem=problem)
        fit_head(fitted, train.values, truth, groups=groups)
        scorer = EmbeddingScorer(embedding, LinearHead.of(fitted, n_outputs=target.n_outputs))
        cost = fitted.C_ if isinstance(fitted, LinearSVM) else C

        def again(shape: tuple[int, int]) -> Head:
            return make_head(head, shape, C=cost, problem=problem)

        made = cls(
            scorer,
            target.class_names,
            Calibration(how=NO_PROBABILITIES)
            if problem == "regression"
            else calibrate_on_folds(train, truth, again, n_outputs=target.n_outputs, groups=groups),
            record_training(task.train, method=f"{_method(head, fitted, problem)} on {_of(embedding)}"),
            problem,
        )
        test = embedding.transform(task.test, out=folders[1])
        logits = np.concatenate([scorer.head(chunk) for chunk in test.chunks()])
        return made._scored(logits, test.labels, test.class_names, task.test.name)

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
        problem: Problem | None = None,
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
            problem: what its outputs are; None for what its configuration says, else one class a sample.
            execution: how samples go through it.

        Raises:
            InputError: classes that are not the network's.
        """
        network = replace(network, model=merged(network.model))
        problem = problem or problem_of(network)
        names = () if problem == "regression" else names_of_outputs(network, class_names)
        scorer = NetworkScorer(network, execution or Execution())
        calibration = Calibration(how=NO_PROBABILITIES) if problem == "regression" else Calibration()
        made = cls(scorer, names, calibration, record_training(train, method=method), problem)
        if held_out is not None:
            if problem == "regression":
                raise InputError(
                    "held_out is for the temperature of probabilities, and numbers have none; leave it out"
                )
            logits, labels = made._labelled_logits(held_out)
            truth = made.target.read(labels, held_out.class_names, source=held_out.name)
            known = truth >= 0 if truth.ndim == 1 else np.ones(len(truth), dtype=bool)
            how = f"{known.sum()} held-out samples ({held_out.name})"
            made = replace(made, calibration=calibrate(logits[known], truth[known], how=how))
        if test is None:
            return made
        logits, labels = made._labelled_logits(test)
        return made._scored(logits, labels, test.class_names, test.name)

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
        problem: Problem | None = None,
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
            problem: likewise.
            execution: likewise.

        Raises:
            InputError: nothing says how raw inputs are prepared.
        """
        model = unwrapped(cast(nn.Module, trainer.model))
        if network is None and isinstance(trainer.data_collator, DataCollator):
            network = trainer.data_collator.network
        network = replace(network, model=model) if network is not None else network_of(model, trainer.processing_class)
        return cls.from_network(
            network,
            class_names=class_names,
            held_out=held_out,
            test=test,
            train=train,
            method=method,
            problem=problem,
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
        return cls(scorer, said.class_names, said.calibration, said.record, said.problem)

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

        Of several classes each, (n,) tuples of the names of all that are more probable than not, None for one that was
        left out. Numbers: (n,) float64, NaN for one that was left out.

        Args:
            inputs: a folder, a table or a file; or a sequence of paths, PIL images, arrays, recordings or texts.

        Raises:
            InputError: an input that cannot be read, unless `execution.on_bad_samples` is "skip".
        """
        logits = self._logits(self.read(inputs).samples)
        if self.problem == "regression":
            return logits[:, 0]
        read = np.isfinite(logits[:, 0])
        decided = self.target.decide(np.where(read[:, None], logits, 0.0))
        if self.problem == "classification":
            return np.where(read, np.asarray(self.class_names)[decided], "")
        found = np.empty(len(logits), dtype=object)
        for i in np.flatnonzero(read):
            found[i] = self.named(decided[i])
        return found

    def predict_proba(self, inputs: object) -> np.ndarray:
        """The probability of each class, calibrated as `calibration` says: (n, n_classes); NaN for what was left out.

        Those of one class a sample are 1 together; of several, each is between 0 and 1 by itself.

        Args:
            inputs: as for `predict`.

        Raises:
            InputError: numbers, which have no probability.
        """
        self.target.probabilities(np.empty((0, self.target.n_outputs)))  # before time is spent
        return self.target.probabilities(self._logits(self.read(inputs).samples) / self.calibration.temperature)

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
        found = self.read(samples, labelled=True).samples
        logits, labels = self._labelled_logits(found)
        return self._evaluation(logits, labels, found.class_names, found.name)

    def batches(self, samples: Samples) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Of each batch the indices of its samples, their logits (n, n_outputs), and the indices left out."""
        n = self.target.n_outputs
        for chunk in self.scorer.chunks(samples):
            values = chunk.values if len(chunk.indices) else np.empty((0, n))
            if values.shape[1] != n:
                raise InputError(f"the network gives {values.shape[1]} logits, but there are {n} {self._outputs}")
            yield chunk.indices, values, chunk.skipped

    @property
    def target(self) -> Target:
        """What is answered."""
        return Target(self.problem, self.class_names)

    def named(self, present: np.ndarray) -> tuple[str, ...]:
        """(n_classes,) of 0 and 1 -> the names of the classes that are there."""
        return tuple(name for name, there in zip(self.class_names, present, strict=True) if there)

    @cached_property
    def digest(self) -> str:
        """What tells it from another classifier: the weights, the classes and the calibration."""
        said = [
            self.problem,
            list(self.class_names),
            self.calibration.temperature,
            fingerprint_weights(self.network.model),
        ]
        if isinstance(self.scorer, EmbeddingScorer):
            embedding, head = self.scorer.embedding, self.scorer.head
            state = [*embedding.statistics_.state().values(), head.coef, head.intercept]
            said += [fingerprint_bytes(np.ascontiguousarray(value).tobytes()) for value in state]
            said.append(repr(find_recipe(embedding.recipe)))
        return fingerprint_json(said)

    def read(self, inputs: object, *, labelled: bool = False) -> RawSamples:
        """What a user points at, as samples with names.

        Args:
            inputs: as for `predict`.
            labelled: whether labels are looked for too.
        """
        columns = self.record.columns
        return read_raw(inputs, modality=self.network.modality, columns=columns, labelled=labelled)

    def to_module(self) -> nn.Module:
        """From the network's batch to calibrated logits in one module, for `torch.export` and ONNX.

        Their softmax is `predict_proba`; of several classes a sample, their sigmoid; a number is what `predict` says.
        Preparing raw inputs is not in it: `classifier.network.prepare(inputs)`.
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
        several = "several of " if self.problem == "multilabel" else ""
        classes = ", ".join(self.class_names[:6]) + (", ..." if len(self.class_names) > 6 else "")
        learnt = f"{several}{len(self.class_names)} classes: {classes}" if self.class_names else "a number"
        lines = [f"{self.record.method or 'classifier'}; {learnt}"]
        if self.record.scores:
            lines.append(f"{scores_in_words(self.record.scores, self.record.interval)} on {self.record.scored_on}")
        return "\n".join(lines if self.problem == "regression" else [*lines, f"probabilities: {self.calibration}"])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return as_html(str(self))

    @property
    def _outputs(self) -> str:
        return "number" if self.problem == "regression" else "classes"

    def _logits(self, samples: Samples) -> np.ndarray:
        """(n, n_outputs), at temperature 1; NaN for what was left out."""
        found = np.full((len(samples), self.target.n_outputs), np.nan)
        for indices, logits, _ in self.batches(samples):
            found[indices] = logits
        return found

    def _labelled_logits(self, samples: Samples) -> tuple[np.ndarray, np.ndarray | None]:
        """Logits (n, n_outputs) and labels of the samples that can be read."""
        self.target.read(samples.labels, samples.class_names, source=samples.name)  # before time is spent
        logits = self._logits(samples)
        kept = np.isfinite(logits).all(axis=1)
        if not kept.any():
            raise InputError(f"none of the {len(samples)} samples of {samples.name} can be used; all were skipped")
        return logits[kept], None if samples.labels is None else np.asarray(samples.labels)[kept]

    def _evaluation(
        self, logits: np.ndarray, labels: np.ndarray | None, class_names: Sequence[str] | None, name: str
    ) -> Evaluation:
        truth = self.target.read(labels, class_names, source=name)
        unknown = [] if labels is None else self.target.unknown(labels, class_names, truth)  # wrong whatever is said
        names = (*self.class_names, *unknown) or None
        return Evaluation(truth, self.target.decide(logits), names)

    def _scored(
        self, logits: np.ndarray, labels: np.ndarray | None, class_names: Sequence[str] | None, name: str
    ) -> Classifier:
        evaluation = self._evaluation(logits, labels, class_names, name)
        scores = dict(evaluation.scores)
        if self.problem != "regression":
            truth = self.target.read(labels, class_names, source=name)
            known = truth >= 0 if truth.ndim == 1 else np.ones(len(truth), dtype=bool)
            scores["cross entropy"] = cross_entropy(logits[known] / self.calibration.temperature, truth[known])
        scored_on = f"{len(logits)} samples ({name})"
        record = replace(self.record, scores=scores, interval=evaluation.interval, scored_on=scored_on)
        return replace(self, record=record)


def _embedding_of(model: str | Network | FullNetworkEmbedding) -> FullNetworkEmbedding:
    if isinstance(model, FullNetworkEmbedding):
        return model
    return FullNetworkEmbedding(model) if isinstance(model, Network) else FullNetworkEmbedding.from_pretrained(model)


def _method(head: str | HeadMaker, fitted: object, problem: Problem) -> str:
    named = {"svm": "linear SVM", "logreg": "logistic regression", "ridge": "ridge classifier", "lda": "LDA"}
    if problem == "regression":
        named["ridge"] = "ridge regression"
    name = named.get(head, head) if isinstance(head, str) else type(fitted).__name__
    return f"{name}, C={fitted.C_:.3g}," if isinstance(fitted, LinearSVM) else name


def _of(embedding: FullNetworkEmbedding) -> str:
    n, name = len(embedding.layers_), Path(embedding.require_network().name).name
    return f"{embedding.n_features_:,} features of {n} layer{'s' * (n > 1)} of {name}"
