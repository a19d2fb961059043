"""The trials of a strategy: a training for each learning rate, of which the validation samples choose one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from hf_tl.analysis.footprint import Footprint
from hf_tl.classifier import Classifier
from hf_tl.errors import InputError
from hf_tl.strategies.search import search_rates, with_one_network
from hf_tl.strategies.strategy import SAVE_AND_PREDICT, Effort, Fitted
from hf_tl.strategies.transfer import Transfer
from hf_tl.strategies.trial import EVALUATED, Adapt, Training, Trial


STEPS = (1.0, 1 / 3, 3.0, 1 / 10, 10.0)  # learning rates of the grid, in units of the strategy's own


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
    repeated = np.tile(train, effort.passes(len(train)))
    training = Training(transfer, repeated, validation, adapt, rate, effort, seed)
    one = effort.trials == 1 or not len(validation) or effort.is_over
    elsewhere: tuple[Footprint, ...] = ()
    if effort.search == "grid" or one:
        trials = _grid(training, STEPS[: 1 if one else effort.trials])
    else:
        trials, elsewhere = search_rates(training)
    best = min((trial for trial in trials if trial.network is not None), key=lambda trial: trial.rank)
    network = best.network
    assert network is not None
    collate = transfer.collator(network)
    return Fitted(
        lambda indices: predict(network.model, collate, indices),
        setting=f"learning rate {best.rate:.2g}",
        validation=best.accuracy,
        trials=len(trials),
        samples_seen=training.samples_seen(trials),
        stopped=next((trial.stopped for trial in trials if trial.stopped), ""),
        network=network,
        to_classifier=lambda: Classifier.from_network(
            network,
            class_names=transfer.classes,
            held_out=transfer.part(validation, name="validation samples") if len(validation) else None,
            test=transfer.task.test,
            train=transfer.part(train, name=transfer.task.train.name),
            method=f"{name}, learning rate {best.rate:.2g}",
        ),
        elsewhere=elsewhere,
    )


def _grid(training: Training, steps: Sequence[float]) -> list[Trial]:
    trials: list[Trial] = []
    for step in steps:
        if trials and training.effort.is_over:
            break
        trials = with_one_network([*trials, training.run(times=step)])
    return trials


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
        {"Classifier", "DataCollator", "accelerate_training", "TaskDataset", "find_classes", "find_modality",
         "load_network", "load_task", "twin_groups", *imports}
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
train, collator = TaskDataset(task.train, classes), DataCollator(network)
print(accelerate_training(network.model, arguments, train, collator))  # channels last, bfloat16: what is fastest
trainer = Trainer(
    network.model,
    arguments,
    train_dataset=train,
    data_collator=collator,
    callbacks=[{callbacks}],
)
trainer.train()
classifier = Classifier.from_trainer(trainer, train=task.train, test=task.test)
{SAVE_AND_PREDICT}"""
