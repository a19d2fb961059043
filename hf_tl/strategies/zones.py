"""Where to cut: which layers serve the task as they are, and which are worse than those below them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hf_tl.embedding.embedding import LayerColumns
from hf_tl.probes.heads import make_head
from hf_tl.strategies.transfer import Transfer
from hf_tl.table import format_table


FREEZE, TUNE, REINIT = "freeze", "tune", "reinit"


@dataclass(frozen=True)
class Zones:
    """The layers of a network, from data to task, as probes on held-out samples see them.

    Layers above the best one that are worse by more than one standard error of the paired difference have lost what
    the task needs: they are candidates for a fresh start.

    Attributes:
        names: of the layers.
        accuracy: (n_layers,) of a linear probe on each layer alone.
        error: (n_layers,) standard error of its difference from the best layer, on the same samples.
        best: index of the best layer.
        first_worse: index of the first layer above it from which on all are worse; None where there is none.
        n_samples: that were evaluated.
    """

    names: tuple[str, ...]
    accuracy: np.ndarray
    error: np.ndarray
    best: int
    first_worse: int | None
    n_samples: int

    def zone(self, index: int) -> str:
        """ "freeze" up to the best layer, "reinit" where layers above are worse than it, "tune" in between."""
        if index <= self.best:
            return FREEZE
        return REINIT if self.first_worse is not None and index >= self.first_worse else TUNE

    @property
    def verdict(self) -> str:
        """One sentence."""
        best = f"{self.names[self.best]} serves the task best alone, {self.accuracy[self.best]:.3f}"
        if self.first_worse is None:
            return f"{best}; no layer above it is clearly worse, so none has to start anew"
        said = f"{best}; from {self.names[self.first_worse]} on layers are worse by more than a standard error"
        return f"{said}: candidates for a fresh start, {self.policy!r}" if self.policy else said

    @property
    def policy(self) -> str:
        """Blocks up to the best layer stay frozen, those that are worse start anew, what lies between is tuned.

        Where no layer lies above the best one, its own block is tuned; "" where there is no block to freeze.
        """
        numbers = [name.partition("block ")[2] for name in self.names[: self.best + 1]]
        blocks = [int(number) for number in numbers if number.isdecimal()]
        if self.best == len(self.names) - 1:
            blocks = blocks[:-1]
        if not blocks:
            return ""
        policy = f"freeze: ..{blocks[-1]}"
        if self.first_worse is None:
            return policy
        worse = self.names[self.first_worse].removeprefix("block ")
        again = f"{worse}.., head" if worse.isdecimal() else "head"
        return f"{policy}; reinit: {again}"

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows: layer, accuracy alone, what it loses to the best with its standard error, zone."""
        lost = self.accuracy[self.best] - self.accuracy
        rows = [
            [name, f"{self.accuracy[i]:.3f}", f"{lost[i]:.3f} ± {self.error[i]:.3f}", self.zone(i)]
            for i, name in enumerate(self.names)
        ]
        return ["layer", "accuracy alone", "less than the best", "zone"], rows

    def table(self) -> str:
        """The gradient of representations, as plain text."""
        return format_table(*self.cells())


def measure_zones(transfer: Transfer, train: np.ndarray, held_out: np.ndarray) -> Zones | None:
    """The last layer of each block alone: a linear SVM learns from some samples and is evaluated on others.

    Args:
        transfer: network and samples.
        train: (n,) indices to learn from.
        held_out: (m,) indices to evaluate on.

    Returns:
        None for a network of one block.
    """
    blocks = last_of_blocks(transfer.raw.layers)
    if len(blocks) < 2:
        return None
    outcomes = np.stack([probe_layer(transfer, layer, train, held_out) for layer in blocks.values()])
    return find_zones([*blocks], outcomes.astype(np.int8))


def probe_layer(transfer: Transfer, layer: str, train: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """(m,) bool: which held-out samples a linear SVM on one layer gets right."""
    features, labels = transfer.raw.select(layer), transfer.labels
    learnt, others = (np.asarray(features[part].values) for part in (train, held_out))
    C = 10 / max(float(np.square(learnt, dtype=np.float64).sum(axis=1).mean()), 1e-12)
    head = make_head("svm", learnt.shape, C=C).fit(learnt, labels[train])
    return np.asarray(head.predict(others) == labels[held_out])


def find_zones(names: Sequence[str], outcomes: np.ndarray) -> Zones:
    """The zones of layers that were probed on the same samples.

    Args:
        names: of the layers, from data to task.
        outcomes: (n_layers, n_samples), 1 where a probe of the layer alone is right.
    """
    accuracy = outcomes.mean(axis=1)
    best = int(accuracy.argmax())
    gaps = outcomes[best].astype(np.float64) - outcomes
    error = gaps.std(axis=1, ddof=1) / np.sqrt(outcomes.shape[1])
    worse = gaps.mean(axis=1) > error
    above = [i for i in range(best + 1, len(names)) if worse[i:].all()]
    return Zones(tuple(names), accuracy, error, best, above[0] if above else None, outcomes.shape[1])


def last_of_blocks(layers: Sequence[LayerColumns]) -> dict[str, str]:
    """Name of each block -> its last layer; the layers themselves where their places are unknown."""
    layers = [layer for layer in layers if layer.kind != "last"]
    last: dict[str, str] = {}
    name = "stem"
    for layer in layers:
        block = layer.place.partition("/")[0]
        name = (f"block {block}" if block.isdecimal() else block) or name
        last[name] = layer.name
    return last if len(last) > 1 else {layer.name: layer.name for layer in layers}
