"""What gives a classifier its logits: a frozen network with a linear head, or a network that was trained whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from hf_tl.data import Samples
from hf_tl.embedding.batches import Execution, loaded_batches
from hf_tl.embedding.full_network import FullNetworkEmbedding
from hf_tl.embedding.passes import Chunk, move
from hf_tl.errors import InputError
from hf_tl.models import Network
from hf_tl.probes.heads import Head, linear_weights
from hf_tl.trace import evaluating, forward


class Scorer(Protocol):
    """Raw inputs -> logits, batch by batch."""

    @property
    def network(self) -> Network:
        """What reads the inputs."""

    @property
    def execution(self) -> Execution:
        """How samples go through it; its attributes may be set."""

    def chunks(self, samples: Samples) -> Iterator[Chunk]:
        """The logits (n, n_outputs) of each batch, with the indices of its samples and of those left out."""


@dataclass(frozen=True)
class LinearHead:
    """Features -> a logit for each class, or a number.

    Attributes:
        coef: (n_outputs, n_features) float32.
        intercept: (n_outputs,) float32.
    """

    coef: np.ndarray
    intercept: np.ndarray

    @classmethod
    def of(cls, fitted: Head, *, n_outputs: int) -> LinearHead:
        """The weights of a fitted head; two classes share the one decision value d of theirs as (-d / 2, d / 2).

        Args:
            fitted: from `make_head`.
            n_outputs: number of classes, or 1 for a number.

        Raises:
            InputError: a head that is not linear, which no file of weights can hold.
        """
        try:
            coef, intercept = linear_weights(fitted)
        except InputError as error:
            raise InputError(f"a classifier is saved with a linear head: {error}") from error
        if len(coef) == 1 and n_outputs == 2:
            coef, intercept = np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
        return cls(coef.astype(np.float32), intercept.astype(np.float32))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Features (n, n_features) -> logits (n, n_outputs), float64."""
        return features.astype(np.float64) @ self.coef.T.astype(np.float64) + self.intercept


@dataclass(frozen=True)
class EmbeddingScorer:
    """A fitted full-network embedding with a linear head.

    Attributes:
        embedding: fitted.
        head: on its features.
    """

    embedding: FullNetworkEmbedding
    head: LinearHead

    @property
    def network(self) -> Network:
        """What is read."""
        return self.embedding.require_network()

    @property
    def execution(self) -> Execution:
        """The embedding's own."""
        return self.embedding

    def chunks(self, samples: Samples) -> Iterator[Chunk]:
        """The logits of each batch."""
        for chunk in self.embedding.stream(samples):
            yield Chunk(chunk.indices, self.head(chunk.values), chunk.skipped)


@dataclass(frozen=True)
class NetworkScorer:
    """A network with a head of its own: fine-tuned, trained under a policy, or with an adapter merged.

    Attributes:
        network: its outputs are logits, in the order of the classes.
        execution: how samples go through it.
    """

    network: Network
    execution: Execution = field(default_factory=Execution)

    def chunks(self, samples: Samples) -> Iterator[Chunk]:
        """The logits of each batch."""
        execution = self.execution
        execution.check()
        if not len(samples):
            raise InputError(f"{samples.name} has no samples; there is nothing to classify")
        model = execution.own_model(self.network.model)
        move(model, execution.device)
        bar = tqdm(total=len(samples), desc="classifying", unit="sample", disable=not execution.progress)
        with evaluating(model), bar:
            for wanted, kept, batch in loaded_batches(
                self.network, samples, execution.batches(len(samples)), execution
            ):
                values = np.empty((0, 0))
                if batch is not None:
                    with torch.inference_mode():
                        values = logits_of(forward(model, execution.placed(batch))).double().cpu().numpy()
                yield Chunk(np.asarray(kept, np.int64), values, np.setdiff1d(wanted, kept))
                bar.update(len(wanted))


def logits_of(output: object) -> Tensor:
    """The logits (n, n_outputs) in what a network returns.

    Raises:
        InputError: none there.
    """
    found = output.get("logits") if isinstance(output, Mapping) else output
    found = found[0] if isinstance(found, tuple) else found
    if not isinstance(found, Tensor) or found.ndim != 2:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise InputError(f"a classifier's network should return logits (samples, classes), got {shape}")
    return found
