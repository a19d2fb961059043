"""Which samples are the same photo or text twice, so that a draw never learns what it is evaluated on."""

from __future__ import annotations

import numpy as np

from hf_tl.analysis.twins import find_twins
from hf_tl.errors import InputError
from hf_tl.models import find_modality
from hf_tl.strategies.transfer import Transfer


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
