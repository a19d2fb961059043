"""What a classifier knows of its training: the method, the data by their digest, the scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hf_tl.data import Samples
from hf_tl.embedding.fingerprint import fingerprint_samples


@dataclass(frozen=True)
class TrainingRecord:
    """What a classifier knows of its training.

    Attributes:
        method: how it was trained, in words.
        data: of the training samples: "name", "n_samples" and "digest" (`hf_tl.embedding.fingerprint`).
        scores: metric -> value on held-out samples.
        scored_on: which those were, in words.
        interval: the 95 % interval of the first of them, None where nobody says.
        columns: of the table that it was trained on, those that were read.
    """

    method: str = ""
    data: Mapping[str, str | int] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    scored_on: str = ""
    columns: tuple[str, ...] = ()
    interval: tuple[float, float] | None = None


def record_training(train: Samples | None, *, method: str) -> TrainingRecord:
    """The record of a training that ends here, still without scores.

    Args:
        train: what it was on; None where nobody says.
        method: how, in words.
    """
    if train is None:
        return TrainingRecord(method)
    data: dict[str, str | int] = {"name": train.name, "n_samples": len(train), "digest": fingerprint_samples(train)}
    return TrainingRecord(method, data, columns=train.columns)
