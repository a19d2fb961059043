"""A pre-trained network with a head for the classes of a task, and the samples of the task as Trainer takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from hf_tl.data import Samples, Task
from hf_tl.errors import InputError, in_one_line
from hf_tl.models import Network, find_preparation
from hf_tl.names import closest
from hf_tl.trace import Batch


if TYPE_CHECKING:
    from transformers import EvalPrediction


def load_classifier(
    name: str, classes: Sequence[str], *, image_size: int | None = None, revision: str | None = None
) -> Network:
    """Loads a pre-trained network with a classifier of its own for these classes, to be trained.

    Its model is a transformers one, so Trainer saves and resumes it; timm's come in transformers' wrapper.

    Args:
        name: a Hub id of transformers or timm, or a folder that either saved.
        classes: their names; the head has an output for each, with random weights unless the checkpoint's fits.
        image_size: side of the square images in pixels; None for the size of pre-training.
        revision: branch, tag or commit on the Hub.

    Raises:
        InputError: no such model, or one without a classifier.
    """
    from transformers import AutoConfig, TimmWrapperConfig

    if len(classes) < 2:
        raise InputError(f"a classifier tells at least two classes apart, got {list(classes)}")
    revision = revision or "main"
    auto = _classifiers()[find_modality(name, revision=revision)][0]
    numbered = dict(enumerate(map(str, classes)))
    labels = {"id2label": numbered, "label2id": {label: number for number, label in numbered.items()}}
    try:
        config = AutoConfig.from_pretrained(name, revision=revision, num_labels=len(classes), **labels)
        if isinstance(config, TimmWrapperConfig) and config.model_args:
            config.model_args.pop("num_classes", None)  # of the old head, and given twice where it stays
        model, loading = auto.from_pretrained(
            name,
            revision=revision,
            config=config,
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # a foreign config can fail transformers in any way
        raise InputError(f"transformers could not load {name!r}: {in_one_line(error)}") from error
    prepare, processor, modality = find_preparation(model, name, image_size=image_size, revision=revision)
    new = [*loading["missing_keys"], *(found[0] for found in loading["mismatched_keys"])]
    return Network(
        model,
        prepare,
        modality=modality,
        name=name,
        untrained=frozenset(key.rpartition(".")[0] for key in new),
        image_size=image_size,
        processor=processor,
    )


def find_modality(name: str, *, revision: str | None = None) -> str:
    """What a network reads, "image", "text" or "audio", from its configuration alone.

    Args:
        name: a Hub id or a folder.
        revision: branch, tag or commit on the Hub.

    Raises:
        InputError: no such model, or one without a classifier.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name, revision=revision or "main")
    except Exception as error:
        raise InputError(f"transformers could not load {name!r}: {in_one_line(error)}") from error
    found = next((modality for modality, (_, mapping) in _classifiers().items() if type(config) in mapping), None)
    if found is None:
        raise InputError(
            f"transformers has no classifier of images, text or audio for {name!r}, a model of type "
            f"{config.model_type!r}; choose one that has, or give Trainer a network of your own"
        )
    return found


def find_classes(task: Task) -> tuple[str, ...]:
    """The names of a task's classes, in the order of a classifier's outputs.

    Args:
        task: with labelled training and test samples.

    Raises:
        InputError: a class that is tested and never taught.
    """
    if task.train.class_names is not None:
        return task.train.class_names
    classes = tuple(str(label) for label in np.unique(task.train.labels))
    for label in {str(label) for label in np.unique(task.test.labels)} - set(classes):
        raise InputError(f"{task.test.name} has class {label!r}, {task.train.name} has not; {closest(label, classes)}")
    return classes


class LabelledRows(Sequence):
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

    def __getitem__(self, index: int) -> dict:
        return {"input": self.samples[index], "label": int(self.labels[index])}


def collate(network: Network) -> Callable[[list[dict]], Batch]:
    """What Trainer calls as `data_collator`: items of `LabelledRows` -> the network's batch, with its labels.

    Args:
        network: from `load_classifier`.
    """

    def batch(items: list[dict]) -> Batch:
        inputs = network.prepare([item["input"] for item in items])
        if isinstance(inputs, torch.Tensor):
            inputs = {"pixel_values": inputs}
        return {**inputs, "labels": torch.tensor([item["label"] for item in items])}

    return batch


def score(predicted: EvalPrediction) -> dict[str, float]:
    """What Trainer calls as `compute_metrics`: the accuracy, and the cross entropy in nats, of all samples.

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


def _classifiers() -> dict[str, tuple[type, Mapping]]:
    """What a network reads -> the class that loads its classifier, and the configurations that have one."""
    from transformers import (
        MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING,
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        AutoModelForAudioClassification,
        AutoModelForImageClassification,
        AutoModelForSequenceClassification,
    )

    return {
        "image": (AutoModelForImageClassification, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING),
        "text": (AutoModelForSequenceClassification, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING),
        "audio": (AutoModelForAudioClassification, MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING),
    }
