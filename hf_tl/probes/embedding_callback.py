"""How good the embedding of a network is while it is being trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sklearn.base import ClassifierMixin, clone
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import LinearSVC
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_tl.architectures import find_networks, is_encoder_of_sentences, task_of
from hf_tl.data import Samples
from hf_tl.embedding.batches import single_process
from hf_tl.embedding.full_network import FullNetworkEmbedding
from hf_tl.embedding.recipe import Recipe
from hf_tl.embedding.taps import TapSelection
from hf_tl.errors import InputError
from hf_tl.labels import find_problem
from hf_tl.models import Network
from hf_tl.trace import Batch
from hf_tl.training import is_sharded, preserving_seeds


LABELS = ("labels", "label", "label_ids")
AT_ONCE = 32  # samples that are collated together to read their labels
NEIGHBOURS = 5
CLASSES = "give EmbeddingCallback(train, val, prepare=...) samples with a class each"


class EmbeddingCallback(TrainerCallback):
    """Embeds two labelled sets with the network being trained, every so many steps, and logs the accuracy of heads on
    them.

        trainer.add_callback(EmbeddingCallback.from_trainer(trainer, eval_steps=500))

    The log gets "embedding/svm" and "embedding/knn", accuracies on the validation samples of heads that were fitted
    on the training samples. Process 0 does it alone, and the others wait for it at their next step, for `ddp_timeout`
    seconds at most; training flags and random numbers are left as they were. Two samples are read as training
    begins, so that a network that cannot be read is refused then.

    Args:
        train: labelled samples to fit the heads on.
        val: labelled samples to evaluate them on.
        prepare: a list of raw inputs -> the batch that the network is called with, as in `Network`.
        eval_steps: steps of the optimiser between two measurements; there is one at the end of training too.
        taps: which layers are read, as in `FullNetworkEmbedding`.
        recipe: how they are scaled.
        batch_size: samples a forward pass.
        heads: name -> scikit-learn classifier of the labels; None for a linear SVM and the five nearest neighbours.
        trainer: whose log gets the accuracies; without it they stand in the trainer's state alone.

    Raises:
        InputError: samples without labels, or of one class, or a step below 1.
    """

    def __init__(
        self,
        train: Samples,
        val: Samples,
        *,
        prepare: Callable[[list], Batch],
        eval_steps: int = 500,
        taps: TapSelection = "auto",
        recipe: Recipe | str = "paper",
        batch_size: int = 32,
        heads: Mapping[str, ClassifierMixin] | None = None,
        trainer: Trainer | None = None,
    ):
        for samples in (train, val):
            if samples.labels is None:
                raise InputError(f"{samples.name} has no labels; heads are fitted and evaluated on labelled samples")
        if eval_steps < 1:
            raise InputError(f"eval_steps must be at least 1, got {eval_steps}")
        taught = train.label_table
        problem = find_problem(taught.labels)
        if heads is None and problem != "classification":
            raise InputError(f"{train.name} are labelled for {problem}; give heads={{name: classifier}} that learn it")
        if len(np.unique(taught.labels, axis=0)) < 2:
            raise InputError(
                f"all {len(train)} {train.name} are of class {taught.labels[0]!s}; heads need two or more"
            )
        aligned = val.label_table.aligned_to(taught)
        val = replace(val, labels=aligned.labels, class_names=aligned.names)
        self.train, self.val, self.prepare, self.eval_steps = train, val, prepare, eval_steps
        self.taps, self.recipe, self.batch_size, self.trainer = taps, recipe, batch_size, trainer
        near = KNeighborsClassifier(min(NEIGHBOURS, len(train)))
        self.heads = heads or {"svm": LinearSVC(random_state=0), "knn": near}

    @classmethod
    def from_trainer(
        cls,
        trainer: Trainer,
        *,
        eval_steps: int = 500,
        limit: int = 512,
        taps: TapSelection = "auto",
        recipe: Recipe | str = "paper",
    ) -> EmbeddingCallback:
        """For a Trainer's own samples, collated as it collates them: at most `limit` of each of its two datasets.

        Heads are classifiers of samples: labels of tokens, spans, pixels, texts to generate, and pairs of texts are
        refused, with the task by its name. Such a network can be judged by other samples that have a class each:
        `EmbeddingCallback(train, val, prepare=...)`. Of sentence-transformers' networks, the transformer is read.

        Raises:
            InputError: a Trainer without evaluation samples, samples without classes.
        """
        train, evaluated = loaders_of_trainer(trainer)
        of_sentences = trainer.model is not None and is_encoder_of_sentences(trainer.model)
        inputs = _inputs_of_one_text if of_sentences else None
        try:
            made = cls.from_loaders(
                train, evaluated, inputs=inputs, eval_steps=eval_steps, limit=limit, taps=taps, recipe=recipe
            )
        except InputError as error:
            task = task_of(trainer.model)
            raise InputError(
                f"EmbeddingCallback judges a network by one class a sample, and {type(trainer.model).__name__} is "
                f"trained {f'for {task}' if task else 'otherwise'}: {error}"
            ) from error
        made.trainer = trainer
        return made

    @classmethod
    def from_loaders(
        cls,
        train: DataLoader,
        val: DataLoader,
        *,
        inputs: Callable[[Any], Batch] | None = None,
        eval_steps: int = 500,
        limit: int = 512,
        taps: TapSelection = "auto",
        recipe: Recipe | str = "paper",
    ) -> EmbeddingCallback:
        """For a training loop of your own, prepared by accelerate or not; call `measure(model)` where you evaluate.

        Args:
            train: a loader of labelled samples to fit the heads on; at most `limit` of them, evenly spread, are used.
            val: likewise, to evaluate on.
            inputs: a collated batch -> what the network is called with; by default the batch without its labels.
            eval_steps: steps between two measurements, where a Trainer calls.
            limit: samples of each.
            taps: which layers are read.
            recipe: how they are scaled.

        Raises:
            InputError: a loader without a length, samples without classes.
        """
        with preserving_seeds():
            fitted, prepare = samples_of_loader(train, inputs=inputs, limit=limit, name="training samples")
            evaluated, _ = samples_of_loader(val, inputs=inputs, limit=limit, name="evaluation samples")
        return cls(fitted, evaluated, prepare=prepare, eval_steps=eval_steps, taps=taps, recipe=recipe)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Reads two samples, in every process: what cannot be read is refused before a step is taken."""
        if is_sharded(args):
            raise InputError(
                "FSDP and DeepSpeed share the parameters among the processes, and EmbeddingCallback reads the network "
                "in one of them; use DDP, or embed a saved checkpoint"
            )
        with preserving_seeds(), single_process():
            fne, samples = self._embedding(kwargs["model"]), self.train
            fne.activations(Samples([{"input": samples[i]} for i in range(2)], "input", name=samples.name))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measures every `eval_steps` steps."""
        if state.global_step % self.eval_steps == 0:
            self._report(state, control, kwargs["model"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measures at the end, unless the last step just did."""
        if state.global_step % self.eval_steps:
            self._report(state, control, kwargs["model"])

    def measure(self, model: nn.Module) -> dict[str, float]:
        """The accuracy of each head, "embedding/NAME" -> share of the validation samples.

        In several processes each may call it, on the wrapped network too; all find the same.
        """
        with preserving_seeds(), single_process():
            fne = self._embedding(model)
            train, val = fne.fit_transform(self.train), fne.transform(self.val)
            return {
                f"embedding/{name}": float(clone(head).fit(train, train.labels).score(val, val.labels))
                for name, head in self.heads.items()
            }

    def _embedding(self, model: nn.Module) -> FullNetworkEmbedding:
        model = model.module if isinstance(model, DistributedDataParallel) else model
        if is_encoder_of_sentences(model):
            (model,) = find_networks(model).values()
        return FullNetworkEmbedding(
            Network(model, self.prepare, name="the network in training"),
            recipe=self.recipe,
            taps=self.taps,
            batch_size=self.batch_size,
            device=str(next(model.parameters()).device),
            progress=False,
        )

    def _report(self, state: TrainerState, control: TrainerControl, model: nn.Module) -> None:
        if not state.is_world_process_zero:
            return
        found = self.measure(model)
        if self.trainer is not None:
            # A log that is due at this step is taken for done by any log: it would be lost, and with it the gathering
            # of the loss, for which the other processes would wait without end.
            due = control.should_log
            self.trainer.log(found)
            self.trainer.control.should_log = control.should_log = due
        else:
            state.log_history.append({**found, "step": state.global_step, "epoch": state.epoch})


def samples_of_loader(
    loader: DataLoader,
    *,
    inputs: Callable[[object], Batch] | None = None,
    limit: int = 512,
    name: str = "samples",
) -> tuple[Samples, Callable[[list], Batch]]:
    """At most `limit` samples of a loader, evenly spread over its dataset, and what makes batches of them.

    Samples are collated as the loader collates them, and labels are read from those batches.

    Args:
        loader: of a dataset that has a length.
        inputs: a collated batch -> what the network is called with; by default a mapping without its labels, or the
            first of two.
        limit: how many samples.
        name: what messages call them.

    Raises:
        InputError: a loader without a length, batches without labels, labels that are not classes.
    """
    if not isinstance(loader, DataLoader) or not isinstance(loader.dataset, Sized):
        kind = type(loader.dataset).__name__ if isinstance(loader, DataLoader) else type(loader).__name__
        raise InputError(f"{name} should come from a DataLoader over a dataset with a length, got {kind}")
    if limit < 2 or len(loader.dataset) < 2:
        raise InputError(f"heads need two {name} or more, got {min(limit, len(loader.dataset))}")
    count = len(loader.dataset)
    chosen = np.arange(count) if count <= limit else np.linspace(0, count - 1, limit).round().astype(int)
    picked = _Picked(loader.dataset, chosen)
    found = []
    for start in range(0, len(picked), AT_ONCE):
        items = [picked[i]["sample"] for i in range(start, min(start + AT_ONCE, len(picked)))]
        found.append(_labels(loader.collate_fn(items), name))
    labels = np.concatenate(found)

    def prepare(items: list) -> Batch:
        batch = loader.collate_fn(items)
        return _without_labels(batch) if inputs is None else inputs(batch)

    prepare([picked[0]["sample"]])  # what it refuses, it refuses now
    return Samples(picked, "sample", labels=labels, name=name), prepare


def loaders_of_trainer(trainer: Trainer) -> tuple[DataLoader, DataLoader]:
    """The loaders of a Trainer's training and evaluation samples, as it builds them for evaluation.

    Raises:
        InputError: it lacks one of the two.
    """
    evaluated = trainer.eval_dataset
    if isinstance(evaluated, Mapping):
        evaluated = next(iter(evaluated.values()), None)
    for dataset, name in ((trainer.train_dataset, "train_dataset"), (evaluated, "eval_dataset")):
        if dataset is None:
            raise InputError(
                f"the Trainer has no {name}; heads are fitted on its training samples, evaluated on the others"
            )
        if not isinstance(dataset, Sized):
            raise InputError(f"the Trainer's {name} has no length; give EmbeddingCallback(train, val, prepare=...)")
    return trainer.get_eval_dataloader(trainer.train_dataset), trainer.get_eval_dataloader(evaluated)


class _Picked(Sequence):
    """Some items of a dataset, read when they are asked for."""

    def __init__(self, dataset: Any, chosen: np.ndarray):
        self.dataset, self.chosen = dataset, chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: Any) -> Any:
        return {"sample": self.dataset[int(self.chosen[index])]}


def _labels(batch: Any, name: str) -> np.ndarray:
    if isinstance(batch, Mapping):
        key = next((key for key in LABELS if key in batch), None)
        if key is None:
            raise InputError(f"batches of {name} have no labels: none of {LABELS} among {list(batch)}; {CLASSES}")
        found = batch[key]
        ids = batch.get("input_ids")
        if isinstance(ids, torch.Tensor) and ids.ndim == 3:  # multiple choice
            raise InputError(f"{name} are {ids.shape[1]} texts each, of which the label says the right one; {CLASSES}")
    elif isinstance(batch, Sequence) and len(batch) == 2:
        found = batch[1]
    else:
        raise InputError(f"batches of {name} should be mappings with labels, or pairs, got {type(batch).__name__}")
    if isinstance(found, Sequence) and found and not isinstance(found[0], (int, str)):
        raise InputError(f"labels of {name} should be one class a sample, got a {type(found[0]).__name__}; {CLASSES}")
    labels = np.asarray(found.cpu() if isinstance(found, torch.Tensor) else found)
    if labels.ndim == 2 and labels.dtype.kind == "f":
        raise InputError(f"labels of {name} are several numbers each, of shape {labels.shape}; {CLASSES}")
    if labels.ndim > 1:
        what = "token" if labels.ndim == 2 else "pixel"
        raise InputError(f"labels of {name} are one a {what}, of shape {labels.shape}, not a sample; {CLASSES}")
    if labels.ndim == 0 or labels.dtype.kind not in "iubU":
        raise InputError(f"labels of {name} should be one class a sample, got {labels.dtype}; {CLASSES}")
    return labels


def _without_labels(batch: Any) -> Batch:
    if not isinstance(batch, Mapping):
        return batch[0]
    found = {key: value for key, value in batch.items() if key not in LABELS and isinstance(value, torch.Tensor)}
    if not found:
        raise InputError(f"batches hold nothing but labels that is a tensor: {list(batch)}; give inputs=...")
    return found


def _inputs_of_one_text(batch: Mapping[str, Any]) -> Batch:
    """The features of a text in a batch of sentence-transformers, which writes its column in front of their names.

    Raises:
        InputError: samples of several texts.
    """
    columns = [name.removesuffix("_input_ids") for name in batch if name.endswith("_input_ids")]
    if len(columns) != 1:
        got = columns or [name for name in batch if name not in LABELS]
        raise InputError(
            f"samples should be one text with its class, got the columns {got}; give EmbeddingCallback(train, "
            f"val, prepare=...) one of them"
        )
    start = f"{columns[0]}_"
    features = {name.removeprefix(start): value for name, value in batch.items() if name.startswith(start)}
    return {name: value for name, value in features.items() if isinstance(value, torch.Tensor)}
