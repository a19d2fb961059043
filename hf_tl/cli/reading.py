"""One pass over the training and test samples of a dataset, for the commands that read a network."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_tl.errors import InputError
from hf_tl.files import pack_tensors, read_untrusted, unpack_tensors, write_whole
from hf_tl.table import in_words


if TYPE_CHECKING:
    import numpy as np

    from hf_tl.data import Samples, Task
    from hf_tl.embedding.embedding import Embedding
    from hf_tl.models import Network

GROUPS = "groups.safetensors"  # beside the embeddings of a task: which training samples are copies
LARGEST_GROUPS = 2**32  # bytes


@dataclass(frozen=True)
class ReadTask:
    """A task that was read.

    Attributes:
        train: raw activations of the training samples.
        test: those of the test samples.
        samples: the training samples themselves.
        modality: of them.
        notes: what there is to say about them, in sentences; more may be added.
    """

    train: Embedding
    test: Embedding
    samples: Samples
    modality: str
    notes: list[str]


def read_task(
    options: argparse.Namespace,
    *,
    taps: Sequence[str],
    out: Path | None = None,
    how: Mapping[str, Any] | None = None,
) -> ReadTask:
    """Reads a network on the training and test samples of a dataset.

    Args:
        options: the arguments that `add_reading` added.
        taps: which layers are read.
        how: further arguments of `FullNetworkEmbedding`.
        out: a folder that receives them, in "train" and "test"; a pass that was stopped resumes there.
    """
    from hf_tl.embedding.full_network import FullNetworkEmbedding
    from hf_tl.embedding.recipe import RECIPES, find_recipe

    raw = replace(RECIPES["raw"], activation=find_recipe(options.recipe).activation)
    network, task, notes = read_network_and_task(options)
    reader = FullNetworkEmbedding(
        network,
        recipe=raw,
        taps=taps,
        batch_size=options.batch_size,
        device=options.device,
        on_bad_samples=options.on_bad_samples,
        **(how or {}),
    )
    folders = [None if out is None else out / split for split in ("train", "test")]
    embeddings = [reader.activations(r, out=o) for r, o in zip((task.train, task.test), folders, strict=True)]
    for samples, embedding in zip((task.train, task.test), embeddings, strict=True):
        skipped = sorted(set(range(len(samples))) - set(embedding.indices.tolist()))
        if skipped:
            shown = in_words([str(i) for i in skipped], most=10)
            notes.append(f"left out {len(skipped)} of {len(samples)} {samples.name} samples: {shown}")
    return ReadTask(embeddings[0], embeddings[1], task.train, network.modality, notes)


def read_network_and_task(options: argparse.Namespace) -> tuple[Network, Task, list[str]]:
    """The network, the task, whose data is looked at before the network is loaded, and what there is to say about it.

    Args:
        options: the arguments that `add_reading` added.
    """
    from hf_tl.analysis.twins import twin_groups
    from hf_tl.data import check_inputs, load_task
    from hf_tl.models import find_modality, load_network

    def load(modality: str) -> Task:
        return load_task(
            options.data,
            modality=modality,
            label=options.label,
            input_column=options.input,
            config=options.config,
            problem=options.problem,
            groups=twin_groups,
        )

    network = None
    try:
        modality = find_modality(options.model)
    except InputError:  # without a classifier only the loaded network tells
        network = load_network(options.model, image_size=options.image_size, max_length=options.max_length)
        modality = network.modality
    task = load(modality)
    notes = [*task.notes, *check_inputs(task, modality=modality, on_bad_samples=options.on_bad_samples)]
    network = network or load_network(options.model, image_size=options.image_size, max_length=options.max_length)
    if network.modality != modality:
        task = load(network.modality)
    return network, task, notes


def look_for_twins(samples: Samples, *, modality: str, notes: list[str]) -> np.ndarray | None:
    """(n_samples,) int, equal for copies of one another; None where what finds them is missing.

    Args:
        samples: to look at.
        modality: of them.
        notes: gets what there is to say, in a sentence.
    """
    import numpy as np

    from hf_tl.analysis.twins import twin_groups

    try:
        groups = twin_groups(samples, modality=modality)
    except InputError as error:  # an extra
        note = f"copies among the samples were not looked for: {error}"
        notes.extend([] if note in notes else [note])  # said already where a test split was held out
        return None
    n = len(groups) - len(np.unique(groups))
    if n:
        notes.append(f"{n} of {len(groups)} {samples.name} samples are copies of others, which `hf-tl audit` shows")
    return groups


def save_groups(folder: Path, groups: np.ndarray | None) -> None:
    """Keeps the groups of the training samples for whoever probes their embedding; without any, those of before go.

    Args:
        folder: of the task.
        groups: (n_train,) int.
    """
    import torch

    if groups is None:
        (folder / GROUPS).unlink(missing_ok=True)
    else:
        write_whole(folder / GROUPS, pack_tensors({"train": torch.from_numpy(groups.astype("int64"))}))


def load_groups(folder: Path, train: Embedding, *, notes: list[str]) -> np.ndarray | None:
    """(n,) int of the training samples that were read; None where nobody looked for copies.

    Args:
        folder: of the task.
        train: the embedding of its training samples.
        notes: gets what there is to say, in a sentence.

    Raises:
        InputError: groups of other samples.
    """
    path = folder / GROUPS
    if not path.exists():
        notes.append(f"copies among the samples were not looked for when {str(folder)!r} was made: hf-tl embed does")
        return None
    found = unpack_tensors(read_untrusted(path, largest=LARGEST_GROUPS), path).get("train")
    if found is None or found.ndim != 1 or found.is_floating_point() or len(found) <= train.indices.max(initial=-1):
        raise InputError(f"{str(path)!r} holds no groups of these training samples; repeat hf-tl embed")
    return found.numpy()[train.indices]
