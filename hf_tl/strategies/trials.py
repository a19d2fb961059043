"""The trials of a strategy: a training with Trainer for each learning rate, the best epoch by validation loss."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from hf_tl.classifier import Classifier
from hf_tl.errors import InputError
from hf_tl.models import Network
from hf_tl.strategies.strategy import SAVE_AND_PREDICT, Effort, Fitted
from hf_tl.strategies.transfer import Transfer, items
from hf_tl.training import compute_accuracy


STEPS = (1.0, 1 / 3, 3.0, 1 / 10, 10.0)  # learning rates that are tried, in units of the strategy's own
WARM_UP = 0.1  # share of the steps
EVALUATED = 64  # samples a forward pass that trains nothing
LOSS = "eval_cross_entropy"

Adapt = Callable[[nn.Module, Effort, int], Sequence[TrainerCallback]]
"""Makes a fresh classifier what the strategy trains: (model, effort, seed) -> callbacks of Trainer."""


@dataclass(frozen=True)
class Trial:
    """One training.

    Attributes:
        rate: learning rate.
        network: at its best epoch.
        accuracy: on the validation samples; NaN without any.
        loss: their cross entropy in nats; infinite without any.
        epochs: that were trained.
        stopped: why it ended before its time.
    """

    rate: float
    network: Network
    accuracy: float
    loss: float
    epochs: float
    stopped: str


def train_trials(
    transfer: Transfer,
    train: np.ndarray,
    validation: np.ndarray,
    *,
    adapt: Adapt,
    rate: tuple[float, float],
    effort: Effort,
    seed: int,
    name: str,
) -> Fitted:
    """Trains a fresh classifier once for each learning rate; of the highest validation accuracy, the lowest loss wins.

    Args:
        transfer: network and samples.
        train: (n,) indices of samples.
        validation: (m,) indices; where there are none, the first learning rate is taken and no epoch is chosen.
        adapt: what the strategy does to the classifier.
        rate: the first learning rate for a convolutional network, and for any other.
        effort: what may be spent.
        seed: of the head, the order of samples and dropout.
        name: of the strategy.
    """
    trials: list[Trial] = []
    repeated = np.tile(train, effort.passes(len(train)))
    for step in STEPS[: effort.trials if len(validation) else 1]:
        if trials and effort.is_over:
            break
        trials.append(_train(transfer, repeated, validation, adapt, rate, step, effort, seed))
    best = min(trials, key=lambda trial: (-trial.accuracy, trial.loss) if len(validation) else (0, 0))
    collate = transfer.collator(best.network)
    return Fitted(
        lambda indices: predict(best.network.model, collate, indices),
        setting=f"learning rate {best.rate:.2g}",
        validation=best.accuracy,
        trials=len(trials),
        samples_seen=round(sum(trial.epochs * (len(repeated) + len(validation)) for trial in trials)),
        stopped=next((trial.stopped for trial in trials if trial.stopped), ""),
        network=best.network,
        to_classifier=lambda: Classifier.from_network(
            best.network,
            class_names=transfer.classes,
            held_out=transfer.part(validation, name="validation samples") if len(validation) else None,
            test=transfer.task.test,
            train=transfer.part(train, name=transfer.task.train.name),
            method=f"{name}, learning rate {best.rate:.2g}",
        ),
    )


def predict(model: nn.Module, collate: Callable[[list], dict[str, Tensor]], indices: np.ndarray) -> np.ndarray:
    """Indices of samples (n,) -> numbers of classes (n,)."""
    found = []
    device = next(model.parameters()).device
    with torch.inference_mode():
        for start in range(0, len(indices), EVALUATED):
            batch = collate([{"index": int(i)} for i in indices[start : start + EVALUATED]])
            inputs = {name: value.to(device) for name, value in batch.items() if name != "labels"}
            found.append(model(**inputs).logits.argmax(dim=-1).cpu().numpy())
    return np.concatenate(found) if found else np.zeros(0, dtype=int)


def _train(
    transfer: Transfer,
    train: np.ndarray,
    validation: np.ndarray,
    adapt: Adapt,
    rate: tuple[float, float],
    step: float,
    effort: Effort,
    seed: int,
) -> Trial:
    network = transfer.network(seed=seed)
    rate_here = step * rate[0 if transfer.is_convolutional(network.model) else 1]
    collate, keep = transfer.collator(network), _KeepBest(effort)
    n_steps = math.ceil(len(train) / effort.batch_size)
    with tempfile.TemporaryDirectory(prefix="hf-tl-run-") as folder:
        callbacks = adapt(network.model, effort, seed)
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=math.ceil(len(train) / n_steps),  # none of one sample, without a variance
            per_device_eval_batch_size=EVALUATED,
            num_train_epochs=effort.epochs,
            learning_rate=rate_here,
            warmup_steps=round(WARM_UP * effort.epochs * n_steps),
            eval_strategy="epoch" if len(validation) else "no",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            seed=seed,
        )
        trainer = Trainer(
            network.model,
            arguments,
            train_dataset=_as_dataset(train, transfer),
            eval_dataset=_as_dataset(validation, transfer) if len(validation) else None,
            data_collator=collate,
            compute_metrics=compute_accuracy,
            callbacks=[*callbacks, keep],
        )
        for shown in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(shown)
        done = trainer.train()
        if not math.isfinite(done.training_loss):
            keep.stopped = keep.stopped or "its loss is not finite"
    keep.restore(network.model)
    network.model.eval()
    return Trial(rate_here, network, keep.accuracy, keep.loss, float(trainer.state.epoch or 0.0), keep.stopped)


def _as_dataset(indices: np.ndarray, transfer: Transfer) -> Any:
    """A list is all that Trainer asks of a dataset, whatever its types say."""
    return items(indices, transfer.labels)


class _KeepBest(TrainerCallback):
    """Remembers the epoch of the lowest validation loss, stops when it does not come back, or when time is over."""

    def __init__(self, effort: Effort):
        self.effort, self.epochs_since = effort, 0
        self.accuracy, self.loss = math.nan, math.inf
        self.stopped = ""
        self._state: dict[str, Tensor] | None = None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ends on time; what was learnt so far is evaluated."""
        if self.effort.is_over:
            self.stopped = f"the time was over after {state.epoch:.1f} of {args.num_train_epochs:g} epochs"
            control.should_training_stop = True
            control.should_evaluate = args.eval_strategy != "no"

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keeps what trains, and the statistics of batch norms, when the loss is the lowest so far."""
        metrics, model = kwargs["metrics"], kwargs["model"]
        self.epochs_since += 1
        if metrics[LOSS] < self.loss:
            self.loss, self.accuracy, self.epochs_since = metrics[LOSS], metrics["eval_accuracy"], 0
            self._state = {name: value.detach().clone() for name, value in _moving(model).items()}
        if self.epochs_since >= self.effort.patience:
            control.should_training_stop = True

    def restore(self, model: nn.Module) -> None:
        """Puts the best epoch back; without validation samples, the last one stays."""
        if self._state is not None:
            tensors = _moving(model)
            with torch.no_grad():
                for name, value in self._state.items():
                    tensors[name].copy_(value)


def _moving(model: nn.Module) -> dict[str, Tensor]:
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    return {**trained, **dict(model.named_buffers())}


def script_epochs(transfer: Transfer) -> int:
    """Epochs on all training samples in the scripts that are written."""
    effort = Effort()
    return effort.epochs * effort.passes(transfer.n_train)


def trainer_code(transfer: Transfer, *, rate: str, lines: str, callbacks: str, imports: Sequence[str]) -> str:
    """A script that trains as a strategy did, saves and predicts.

    Args:
        transfer: network and task.
        rate: the setting, "learning rate 0.0005".
        lines: what is done to `network.model` before the Trainer is built.
        callbacks: of the Trainer, as code.
        imports: names of hf_tl that those need.
    """
    if not rate.startswith("learning rate "):
        raise InputError(f"a setting of fine-tuning is a learning rate, got {rate!r}")
    names = sorted(
        {"Classifier", "DataCollator", "TaskDataset", "find_classes", "find_modality", "load_network", "load_task",
         "twin_groups", *imports}
    )  # fmt: skip
    size = "" if transfer.image_size is None else f", image_size={transfer.image_size}"
    return f"""\
from transformers import Trainer, TrainingArguments

from hf_tl import {", ".join(names)}

name = {transfer.model!r}
task = load_task({transfer.source!r}, modality=find_modality(name), groups=twin_groups)
classes = find_classes(task)
network = load_network(name, classes=classes{size})
{lines}arguments = TrainingArguments(
    "checkpoints", learning_rate={rate.removeprefix("learning rate ")}, num_train_epochs={script_epochs(transfer)},
    warmup_steps=0.1, per_device_train_batch_size={Effort().batch_size}, remove_unused_columns=False, report_to=[],
)
trainer = Trainer(
    network.model,
    arguments,
    train_dataset=TaskDataset(task.train, classes),
    data_collator=DataCollator(network),
    callbacks=[{callbacks}],
)
trainer.train()
classifier = Classifier.from_trainer(trainer, train=task.train, test=task.test)
{SAVE_AND_PREDICT}"""
