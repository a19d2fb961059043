"""The samples behind a training script's own data loaders, to be embedded without a line about data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import Trainer

from hf_tl.data import Samples
from hf_tl.errors import InputError
from hf_tl.trace import Batch


LABELS = ("labels", "label", "label_ids")
AT_ONCE = 32  # samples that are collated together to read their labels


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
            raise InputError(f"batches of {name} have no labels: none of {LABELS} among {list(batch)}")
        found = batch[key]
    elif isinstance(batch, Sequence) and len(batch) == 2:
        found = batch[1]
    else:
        raise InputError(f"batches of {name} should be mappings with labels, or pairs, got {type(batch).__name__}")
    labels = np.asarray(found.cpu() if isinstance(found, torch.Tensor) else found)
    if labels.ndim != 1 or labels.dtype.kind not in "iubU":
        raise InputError(
            f"labels of {name} should be one class a sample, got {labels.dtype} of shape {labels.shape}; "
            f"the accuracy of an embedding is that of a classifier"
        )
    return labels


def _without_labels(batch: Any) -> Batch:
    if isinstance(batch, Mapping):
        return {key: value for key, value in batch.items() if key not in LABELS}
    return batch[0]
