"""One pass over the training and test samples of a dataset, for the commands that read a network."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from hf_tl.embedding.embedding import Embedding


def read_task(
    options: argparse.Namespace,
    *,
    taps: Sequence[str],
    out: Path | None = None,
    how: Mapping[str, Any] | None = None,
) -> tuple[Embedding, Embedding, list[str]]:
    """The raw activations of training and test samples, and what there is to say about them.

    Args:
        options: the arguments that `add_reading` added.
        taps: which layers are read.
        how: further arguments of `FullNetworkEmbedding`.
        out: a folder that receives them, in "train" and "test"; a pass that was stopped resumes there.
    """
    from hf_tl.data import load_task
    from hf_tl.embedding.full_network import FullNetworkEmbedding
    from hf_tl.embedding.recipe import RECIPES, find_recipe
    from hf_tl.models import load_network

    raw = replace(RECIPES["raw"], activation=find_recipe(options.recipe).activation)
    network = load_network(options.model, image_size=options.image_size)
    task = load_task(
        options.data,
        modality=network.modality,
        label=options.label,
        input_column=options.input,
        config=options.config,
    )
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
    notes = list(task.notes)
    for rows, embedding in zip((task.train, task.test), embeddings, strict=True):
        skipped = sorted(set(range(len(rows))) - set(embedding.indices.tolist()))
        if skipped:
            shown = ", ".join(str(row) for row in skipped[:10]) + (", ..." if len(skipped) > 10 else "")
            notes.append(f"left out {len(skipped)} of {len(rows)} {rows.name} samples: {shown}")
    return embeddings[0], embeddings[1], notes
