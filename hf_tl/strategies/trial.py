"""A training of a strategy with Trainer: one learning rate, the best epoch by validation loss."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

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
    set_seed,
)

from hf_tl.acceleration import use_bf16
from hf_tl.models import Network
from hf_tl.strategies.strategy import Effort
from hf_tl.strategies.transfer import Transfer, items
from hf_tl.training import compute_accuracy, preserving_seeds


WARM_UP = 0.1  # share of the steps
EVALUATED = 64  # samples a forward pass that trains nothing
LOSS = "eval_cross_entropy"
NOT_FINITE = "its loss is not finite"

Adapt = Callable[[nn.Module, Effort, int], Sequence[TrainerCallback]]
"""Makes a fresh classifier what the strategy trains: (model, effort, seed) -> callbacks of Trainer."""


@dataclass(frozen=True)
class Trial:
    """One training.

    Attributes:
        rate: learning rate.
        network: at its best epoch; None where another trial was better.
        accuracy: on the validation samples; NaN without any.
        loss: their cross entropy in nats; infinite without any.
        epochs: that were trained.
        stopped: why it ended before its time.
    """

    rate: float
    network: Network | None
    accuracy: float
    loss: float
    epochs: float
    stopped: str

    @property
    def rank(self) -> tuple[float, float]:
        """The lowest is the best: of the highest accuracy, the lowest loss."""
        return (math.inf if math.isnan(self.accuracy) else -self.accuracy), self.loss


@dataclass(frozen=True)
class Training:
    """What is trained, but for its learning rate.

    Attributes:
        transfer: network and samples.
        train: (n,) indices of samples, once for each pass of an epoch.
        validation: (m,) indices; where there are none, no epoch is chosen.
        adapt: what the strategy does to the classifier.
        rates: the strategy's own, for a convolutional network, and for any other.
        effort: what may be spent.
        seed: of the head, the order of samples and dropout.
    """

    transfer: Transfer
    train: np.ndarray
    validation: np.ndarray
    adapt: Adapt
    rates: tuple[float, float]
    effort: Effort
    seed: int

    def network(self) -> Network:
        """A fresh classifier."""
        return self.transfer.network(seed=self.seed)

    def rate(self, network: Network) -> float:
        """The strategy's own."""
        return self.rates[0 if self.transfer.is_convolutional(network.model) else 1]

    def run(self, rate: float | None = None, *, times: float = 1.0) -> Trial:
        """One training.

        Args:
            rate: None for the strategy's own.
            times: of that.
        """
        network = self.network()
        rate, keep = times * (self.rate(network) if rate is None else rate), KeepBest(self.effort)
        callbacks = [*self.adapted(network.model), keep, *self.effort.reporting.callbacks(rate)]
        with tempfile.TemporaryDirectory(prefix="hf-tl-run-") as folder:
            trainer = self.trainer(folder, network, rate, model=network.model, callbacks=callbacks)
            done = trainer.train()
        if not math.isfinite(done.training_loss):
            keep.stopped = keep.stopped or NOT_FINITE
        return self.trial(network, keep, trainer)

    def adapted(self, model: nn.Module) -> Sequence[TrainerCallback]:
        """Makes a fresh classifier what the strategy trains, drawing by seed; the callbacks of its Trainer."""
        with preserving_seeds():
            set_seed(self.seed)
            return self.adapt(model, self.effort, self.seed)

    def trainer(
        self,
        folder: str,
        network: Network,
        rate: float,
        *,
        model: nn.Module | None = None,
        model_init: Callable[..., nn.Module] | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> Trainer:
        """What trains, a model or those that are made anew for each training."""
        n_steps = math.ceil(len(self.train) / self.effort.batch_size)
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=math.ceil(len(self.train) / n_steps),  # none of one sample, without a variance
            per_device_eval_batch_size=EVALUATED,
            num_train_epochs=self.effort.epochs,
            learning_rate=rate,
            warmup_steps=round(WARM_UP * self.effort.epochs * n_steps),
            eval_strategy="epoch" if len(self.validation) else "no",
            save_strategy="no",
            logging_strategy="epoch" if self.effort.reporting.report_to else "no",
            report_to=[],  # callbacks report, see Reporting
            run_name=self.effort.reporting.run_name(rate),
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            seed=self.seed,
        )
        if self.effort.bf16 is True:
            use_bf16(arguments)
        trainer = Trainer(
            model,
            arguments,
            train_dataset=self._dataset(self.train),
            eval_dataset=self._dataset(self.validation) if len(self.validation) else None,
            data_collator=self.transfer.collator(network),
            compute_metrics=compute_accuracy,
            callbacks=list(callbacks),
            model_init=cast(Any, model_init),  # networks of timm are none of transformers'
        )
        for shown in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(shown)
        return trainer

    def trial(self, network: Network, keep: KeepBest, trainer: Trainer) -> Trial:
        """What a Trainer has made of a network, at its best epoch."""
        keep.restore(network.model)
        network.model.eval()
        epochs = float(trainer.state.epoch or 0.0)
        return Trial(trainer.args.learning_rate, network, keep.accuracy, keep.loss, epochs, keep.stopped)

    def samples_seen(self, trials: Sequence[Trial]) -> int:
        """Samples that went through the network, forward."""
        return round(sum(trial.epochs * (len(self.train) + len(self.validation)) for trial in trials))

    def _dataset(self, indices: np.ndarray) -> Any:
        """A list is all that Trainer asks of a dataset, whatever its types say."""
        return items(indices, self.transfer.labels)


class KeepBest(TrainerCallback):
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
