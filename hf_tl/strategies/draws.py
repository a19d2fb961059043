"""Few samples per class, drawn so that more contain fewer, none has a twin elsewhere, and some choose the setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hf_tl.analysis.twins import find_twins
from hf_tl.errors import InputError
from hf_tl.models import find_modality
from hf_tl.strategies.transfer import Transfer


VALIDATION = 0.25  # of a draw chooses the setting; never more samples beside it


@dataclass(frozen=True)
class Draw:
    """The samples of one run.

    Attributes:
        train: (n,) indices to learn from, ascending.
        validation: (m,) indices to choose by, ascending; empty with one sample per class.
    """

    train: np.ndarray
    validation: np.ndarray

    def part(self, share: float, labels: np.ndarray) -> Draw:
        """A share of the samples of each class, one at least, of those to learn from and of those to choose by.

        Args:
            share: above 0; 1 for all.
            labels: (n,) numbers of classes of all samples.
        """
        if share == 1:
            return self
        parts = []
        for indices in (self.train, self.validation):
            own = [indices[labels[indices] == value] for value in np.unique(labels[indices])]
            parts.append(np.sort(np.concatenate([some[: max(1, round(share * len(some)))] for some in own])))
        return Draw(parts[0], parts[1])


def find_groups(transfer: Transfer, groups: np.ndarray | None = None) -> tuple[np.ndarray, tuple[str, ...]]:
    """A number for each sample that it shares with its twins, and what there is to say of them.

    Args:
        transfer: whose samples are looked at.
        groups: (n,) numbers that are known; None to look for twins.

    Raises:
        InputError: numbers of another number of samples.
    """
    n, n_train = len(transfer.labels), transfer.n_train
    if groups is None:
        try:
            parts = (transfer.task.train, transfer.task.test)
            found = find_twins(parts, modality=find_modality(transfer.model)).groups
        except InputError as error:  # what looks for them is an extra
            return np.arange(n), (f"twins among the samples were not looked for: {error}",)
        groups = np.concatenate([found[part.name] for part in parts])
    groups = np.asarray(groups)
    if groups.shape != (n,):
        raise InputError(f"groups should be a number for each of {n} samples, test samples last, got {groups.shape}")
    across = np.isin(groups[:n_train], groups[n_train:])
    within = int((~across).sum()) - len(np.unique(groups[:n_train][~across]))
    if not across.any() and not within:
        return groups, ("no sample has a twin",)
    return groups, (
        f"{across.sum()} training samples have a twin among the test samples and are not learnt from; {within} more "
        f"are twins of other training samples and are left out too",
    )


def usable_samples(labels: np.ndarray, *, n_train: int, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The samples that may be drawn, and how many there are of each class.

    Args:
        labels: (n,) numbers of classes, of training samples first.
        n_train: training samples.
        groups: (n,) twins have the same number.

    Returns:
        Indices of the training samples of which no twin is among the others, and of twins the first; and their
        number by class.
    """
    pool = np.arange(n_train)
    pool = pool[~np.isin(groups[pool], groups[n_train:])]
    pool = np.sort(pool[np.unique(groups[pool], return_index=True)[1]])
    return pool, np.bincount(labels[pool], minlength=int(labels.max()) + 1)


def draw(labels: np.ndarray, pool: np.ndarray, *, shots: int, seed: int) -> Draw:
    """So many samples of each class, a quarter of them to choose by.

    Those of one seed are nested: five contain the two that two contain.

    Args:
        labels: (n,) numbers of classes.
        pool: indices to draw from, of `usable_samples`.
        shots: samples per class; a class of fewer gives all that it has.
        seed: of the order in which samples are taken.
    """
    order = np.random.default_rng((seed, 0)).permutation(pool)
    train: list[np.ndarray] = []
    validation: list[np.ndarray] = []
    for value in np.unique(labels[pool]):
        own = order[labels[order] == value][:shots]
        n_validation = int(np.ceil(VALIDATION * len(own))) if len(own) > 1 else 0
        validation.append(own[len(own) - n_validation :])
        train.append(own[: len(own) - n_validation])
    return Draw(np.sort(np.concatenate(train)), np.sort(np.concatenate(validation)))


def check_shots(shots: Sequence[int], counts: np.ndarray, classes: Sequence[str]) -> tuple[int, ...]:
    """Samples per class, ascending and none twice.

    Raises:
        InputError: a number below 1, or more than the smallest class has.
    """
    wanted = tuple(sorted({int(n) for n in shots}))
    fewest = int(counts.argmin())
    if not wanted or wanted[0] < 1 or wanted[-1] > counts[fewest]:
        raise InputError(
            f"shots should be 1 to {counts[fewest]} samples per class, which class {classes[fewest]!r} has without "
            f"twins, got {list(shots)}"
        )
    return wanted
