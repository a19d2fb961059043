"""The arguments of a training script: dataclasses, from the command line over a YAML or JSON file."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hf_tl.errors import InputError


if TYPE_CHECKING:
    from transformers import TrainingArguments


@dataclass
class TaskArguments:
    """Which network is trained on which task; a script's own arguments inherit from it.

    Attributes:
        model: Hub id or folder of a pre-trained network.
        dataset: Hub id, folder or file of a labelled dataset.
        batch: samples a step, of all processes together.
        dataset_config: configuration of the dataset, where it has several.
        label: label column, where it is not found.
        image_size: side of the square images in pixels; None for the size of pre-training.
        accelerate_training: whether the function of this name chooses precision and layout.
    """

    model: str = field(metadata={"help": "Hub id or folder of a pre-trained network"})
    dataset: str = field(metadata={"help": "Hub id, folder or file of a labelled dataset"})
    batch: int = field(default=32, metadata={"help": "samples per step, of all processes together"})
    dataset_config: str | None = field(default=None, metadata={"help": "configuration of the dataset"})
    label: str | None = field(default=None, metadata={"help": "label column, if it is not found"})
    image_size: int | None = field(default=None, metadata={"help": "side of the square images in pixels"})
    accelerate_training: bool = field(
        default=True, metadata={"help": "whether a few steps choose channels last and bfloat16 where that is faster"}
    )


def parse_arguments(*kinds: type, arguments: Sequence[str] | None = None) -> tuple:
    """One object of each dataclass: `script.py [FILE.yaml | FILE.json] [--name value ...]`, the latter winning.

    Args:
        kinds: dataclasses, `TrainingArguments` among them or not.
        arguments: words of the command line; those of this process by default.

    Raises:
        InputError: a file that is none, or does not hold names with values.
    """
    from transformers import HfArgumentParser

    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and Path(words[0]).suffix in (".yaml", ".yml", ".json"):
        words = [*_as_words(Path(words[0])), *words[1:]]
    return HfArgumentParser(cast(Any, kinds)).parse_args_into_dataclasses(args=words)


def share_batch(arguments: TrainingArguments, n_samples: int) -> None:
    """Splits a batch of `n_samples` among processes, so that one process and many take the same steps.

    Args:
        arguments: of the Trainer; their batch size per device is set.
        n_samples: samples a step, of all processes and accumulation steps together.

    Raises:
        InputError: a number that cannot be split evenly.
    """
    parts = arguments.world_size * max(1, arguments.n_gpu) * arguments.gradient_accumulation_steps
    if n_samples % parts:
        raise InputError(
            f"a batch of {n_samples} samples cannot be split evenly into {parts} parts (processes x accumulation "
            f"steps); choose a multiple, such as {max(1, round(n_samples / parts)) * parts}"
        )
    arguments.per_device_train_batch_size = n_samples // parts
    # parts are equal, so the mean of their means is right; Trainer would multiply the loss by the number of processes
    # for every network that takes further keywords, also where that loss is a mean already
    arguments.average_tokens_across_devices = False


def _as_words(path: Path) -> list[str]:
    import yaml

    if not path.is_file():
        raise InputError(f"configuration file {str(path)!r} does not exist")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except yaml.YAMLError as error:
        raise InputError(f"{str(path)!r} is neither YAML nor JSON: {error}") from error
    if not isinstance(settings, dict):
        raise InputError(f"{str(path)!r} should hold names with values, got {type(settings).__name__}")
    words = []
    for name, value in settings.items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{name}", *(json.dumps(v) if isinstance(v, dict) else str(v) for v in values)]
    return words
