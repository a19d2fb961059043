"""A task and a network as Trainer takes them: dataset, collator, metrics; and random numbers that it does not miss."""

from __future__ import annotations

import inspect
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, cast

import numpy as np
import torch
from torch import nn

from hf_tl.acceleration import SAMPLES, Acceleration, measure_acceleration
from hf_tl.data import Samples, Task
from hf_tl.errors import InputError
from hf_tl.files import write_json
from hf_tl.models import Network


if TYPE_CHECKING:
    from transformers import EvalPrediction, Trainer, TrainingArguments


class Item(TypedDict):
    """A sample of `TaskDataset`: the raw input, and the number of its class."""

    input: object
    label: int


def find_classes(task: Task) -> tuple[str, ...]:
    """The names of a task's classes, in the order of a classifier's outputs.

    Args:
        task: with labelled training and test samples.

    Raises:
        InputError: labels that are not one class a sample, or a class that is tested and never taught.
    """
    if task.problem != "classification":
        raise InputError(
            f"a network is trained on one class a sample here, got a {task.problem} task; Classifier.fit learns it"
        )
    untaught = task.test.label_table.untaught(task.train.label_table)
    if untaught:
        raise InputError(f"{untaught[0]}; add some to {task.train.name}, or leave these out")
    return task.train.class_names or tuple(map(str, np.unique(np.asarray(task.train.labels))))


class TaskDataset(Sequence[Item]):
    """Samples as a dataset for Trainer: item i is {"input": the raw input, "label": the number of its class}.

    Args:
        samples: with labels.
        classes: their names, from `find_classes`.
    """

    def __init__(self, samples: Samples, classes: Sequence[str]):
        if samples.labels is None:
            raise InputError(f"{samples.name} has no labels; a classifier learns from labelled samples")
        self.samples = samples
        if samples.class_names is not None:
            self.labels = samples.labels.astype(np.int64)
        else:
            numbers = {name: number for number, name in enumerate(classes)}
            self.labels = np.array([numbers[str(label)] for label in samples.labels])

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Item:  # type: ignore[override]  # loaders ask for no slices
        return {"input": self.samples[index], "label": int(self.labels[index])}


class DataCollator:
    """Items of `TaskDataset` -> the network's batch with its labels (batch,); Trainer's `data_collator`.

    Args:
        network: from `load_network`.
    """

    def __init__(self, network: Network):
        self.network = network

    def __call__(self, items: Sequence[Item]) -> dict[str, torch.Tensor]:
        """A batch of the network's inputs, passed by keyword, and "labels"."""
        inputs = self.network.prepare([item["input"] for item in items])
        if isinstance(inputs, torch.Tensor):
            inputs = {"pixel_values": inputs}
        return {**inputs, "labels": torch.tensor([item["label"] for item in items])}


def compute_accuracy(predicted: EvalPrediction) -> dict[str, float]:
    """The accuracy, and the cross entropy in nats, over all samples; Trainer's `compute_metrics`.

    Trainer's own eval_loss counts the samples twice that fill up the last batch of several processes.

    Args:
        predicted: logits (n_samples, n_classes), and the numbers of the true classes (n_samples,).
    """
    logits = torch.as_tensor(np.asarray(predicted.predictions)).double()
    labels = torch.as_tensor(np.asarray(predicted.label_ids))
    return {
        "accuracy": float((logits.argmax(-1) == labels).double().mean()),
        "cross_entropy": float(torch.nn.functional.cross_entropy(logits, labels)),
    }


def uses_fsdp(args: TrainingArguments) -> bool:
    """Whether a Trainer shards by FSDP, by its arguments or by `accelerate launch`."""
    return bool(args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "false") == "true"


def is_sharded(args: TrainingArguments) -> bool:
    """Whether no process of a Trainer has all the parameters: under FSDP and DeepSpeed."""
    return bool(args.deepspeed) or uses_fsdp(args)


def accelerate_training(
    model: nn.Module,
    arguments: TrainingArguments,
    train_dataset: Iterable[Any],
    data_collator: Callable[[list], Any] | None = None,
) -> Acceleration:
    """Has a Trainer that is built next train with what is fastest here: channels last, bfloat16, both or neither.

    Measured in a few seconds, on steps of the first samples, of which nothing stays. Printed, it says in one line what
    was chosen. Of several processes the first one measures for all, and a training that is resumed goes on with what
    acceleration.json in `output_dir` says. A precision that the arguments ask for stays.
    Nothing is measured, and nothing changed, where the network is sharded by FSDP or DeepSpeed, or lies on several
    devices.

    Args:
        model: with its new head, or with its adapter: what is to be trained.
        arguments: of the Trainer; `bf16` is set where that was chosen.
        train_dataset: of the Trainer.
        data_collator: of the Trainer.

    Raises:
        InputError: no samples.
    """
    asked = None if arguments.mixed_precision == "no" else arguments.mixed_precision == "bf16"
    if is_sharded(arguments) or len({parameter.device for parameter in model.parameters()}) > 1:
        return Acceleration(channels_last=False, bf16=asked is True)
    found: list[Acceleration | None] = [None]
    kept = Path(str(arguments.output_dir)) / "acceleration.json"
    if arguments.process_index == 0:
        if not arguments.resume_from_checkpoint:
            kept.unlink(missing_ok=True)
        if not kept.is_file():
            inputs = _first_batch(model, arguments, train_dataset, data_collator)
            if next(model.parameters()).device != arguments.device:
                model.to(arguments.device)  # as Trainer does
            measure_acceleration(model, inputs, train=True, bf16=asked).save(kept)
        found = [Acceleration.load(kept)]
    if arguments.world_size > 1:
        from accelerate.utils import broadcast_object_list

        broadcast_object_list(found)
    chosen = cast(Acceleration, found[0])
    chosen.apply(model, arguments)
    return chosen


def _first_batch(
    model: nn.Module, arguments: TrainingArguments, dataset: Iterable[Any], collate: Callable[[list], Any] | None
) -> dict[str, torch.Tensor]:
    """The first samples as Trainer hands them to a network: without the columns that it does not take."""
    from transformers import default_data_collator

    items = list(islice(iter(dataset), min(SAMPLES, arguments.per_device_train_batch_size)))
    if not items:
        raise InputError("train_dataset has no samples, on whose steps precision and layout would be chosen")
    if arguments.remove_unused_columns:
        taken = {*inspect.signature(model.forward).parameters, "label", "label_ids"}
        items = [{name: value for name, value in item.items() if name in taken} for item in items]
    batch = (collate or default_data_collator)(items)
    return {name: value.to(arguments.device) for name, value in batch.items() if isinstance(value, torch.Tensor)}


def run_trainer(trainer: Trainer) -> dict[str, float]:
    """Trains, evaluates and saves the network: a script's last lines.

    Training resumes from `resume_from_checkpoint` of the Trainer's arguments. Process 0 also writes what is returned
    into results.json in the Trainer's folder.

    Args:
        trainer: with an evaluation set and `compute_accuracy`.

    Returns:
        {"accuracy", "cross_entropy", "processes"} on the evaluation set.
    """
    arguments = trainer.args
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    metrics = trainer.evaluate()
    trainer.save_model()
    results = {name: metrics[f"eval_{name}"] for name in ("accuracy", "cross_entropy")}
    results["processes"] = arguments.world_size
    if trainer.is_world_process_zero():
        write_json(Path(str(arguments.output_dir)) / "results.json", results)
        print("accuracy {accuracy:.4f}, cross entropy {cross_entropy:.4f}, {processes} process(es)".format(**results))
    trainer.accelerator.end_training()
    return results


@contextmanager
def preserving_seeds() -> Iterator[None]:
    """Random number generators of Python, numpy and torch are restored afterwards."""
    devices: Sequence[int] = range(torch.cuda.device_count())
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
