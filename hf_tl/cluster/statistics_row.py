"""Training statistics as rows of a Ray Dataset; whoever merges them needs no torch, which takes seconds to import."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hf_tl.embedding.recipe import Statistics


def as_row(statistics: Statistics) -> dict[str, np.ndarray]:
    """One row: each array of `Statistics.state`, with an axis of one in front."""
    return {name: value[None] for name, value in statistics.state().items()}


def merge_statistics(rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rows -> one row, of the samples of all."""
    merged = Statistics(rows["shift"].shape[1])
    for i in range(len(rows["n"])):
        merged = merged.merge(Statistics.from_state({name: column[i] for name, column in rows.items()}))
    return as_row(merged)
