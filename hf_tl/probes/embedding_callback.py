"""How good the embedding of a network is while it is being trained."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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

from hf_tl.data import Samples
from hf_tl.embedding.batches import single_process
from hf_tl.embedding.full_network import FullNetworkEmbedding
from hf_tl.embedding.recipe import Recipe
from hf_tl.embedding.taps import TapSelection
from hf_tl.errors import InputError
from hf_tl.models import Network
from hf_tl.probes.loaders import loaders_of_trainer, samples_of_loader
from hf_tl.trace import Batch


class EmbeddingCallback(TrainerCallback):
    """Embeds two labelled sets with the network being trained, every so many steps, and logs the accuracy of heads on
    them.

        trainer.add_callback(EmbeddingCallback.from_trainer(trainer, eval_steps=500))

    The log gets "embedding/svm" and "embedding/knn", accuracies on the validation samples of heads that were fitted
    on the training samples. Process 0 does it alone, and the others wait for it at their next step, for `ddp_timeout`
    seconds at most; training flags and random numbers are left as they were.

    Args:
        train: labelled samples to fit the heads on.
        val: labelled samples to evaluate them on.
        prepare: a list of raw inputs -> the batch that the network is called with, as in `Network`.
        eval_steps: steps of the optimiser between two measurements; there is one at the end of training too.
        taps: which layers are read, as in `FullNetworkEmbedding`.
        recipe: how they are scaled.
        batch_size: samples a forward pass.
        heads: name -> scikit-learn classifier; None for a linear SVM and the five nearest neighbours.
        trainer: whose log gets the accuracies; without it they stand in the trainer's state alone.

    Raises:
        InputError: samples without labels, or a step below 1.
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
        self.train, self.val, self.prepare, self.eval_steps = train, val, prepare, eval_steps
        self.taps, self.recipe, self.batch_size, self.trainer = taps, recipe, batch_size, trainer
        self.heads = heads or {"svm": LinearSVC(random_state=0), "knn": KNeighborsClassifier()}

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

        Raises:
            InputError: a Trainer without evaluation samples, samples without classes.
        """
        train, evaluated = loaders_of_trainer(trainer)
        made = cls.from_loaders(train, evaluated, eval_steps=eval_steps, limit=limit, taps=taps, recipe=recipe)
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
        with _seed_preserving():
            fitted, prepare = samples_of_loader(train, inputs=inputs, limit=limit, name="training samples")
            evaluated, _ = samples_of_loader(val, inputs=inputs, limit=limit, name="evaluation samples")
        return cls(fitted, evaluated, prepare=prepare, eval_steps=eval_steps, taps=taps, recipe=recipe)

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
        model = model.module if isinstance(model, DistributedDataParallel) else model
        with _seed_preserving(), single_process():
            network = Network(model, self.prepare, name="the network in training")
            device = str(next(model.parameters()).device)
            fne = FullNetworkEmbedding(
                network,
                recipe=self.recipe,
                taps=self.taps,
                batch_size=self.batch_size,
                device=device,
                progress=False,
            )
            train, val = fne.fit_transform(self.train), fne.transform(self.val)
            return {
                f"embedding/{name}": float(clone(head).fit(train, train.labels).score(val, val.labels))
                for name, head in self.heads.items()
            }

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


@contextmanager
def _seed_preserving() -> Iterator[None]:
    """Random number generators of Python, numpy and torch are restored afterwards."""
    devices: Sequence[int] = range(torch.cuda.device_count())
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
