"""Copies stay together: in folds, in the search for C, in layer probes, and in the draws of a learning curve."""

import numpy as np
import pytest

from hf_tl import LinearSVM, layer_probes, learning_curve
from hf_tl.embedding.embedding import Embedding, LayerColumns
from hf_tl.errors import InputError
from hf_tl.probes.grid_search import stratified_folds


LABELS = np.repeat([0, 1, 2], 20)
GROUPS = np.arange(60) // 2  # each sample has a copy


def copied(seed=0):
    """Noise without any class, each sample twice: whoever has seen the copy knows the class."""
    values = np.repeat(np.random.default_rng(seed).normal(size=(30, 40)), 2, axis=0).astype(np.float32)
    return Embedding(values, (LayerColumns("a", 0, 40, 0.0),), np.arange(60), LABELS)


def test_folds_keep_groups_together():
    fold = stratified_folds(LABELS, groups=GROUPS)
    assert len({(group, k) for group, k in zip(GROUPS, fold, strict=True)}) == 30
    assert np.array_equal(stratified_folds(LABELS, groups=np.arange(60)), stratified_folds(LABELS))


def test_the_search_for_C_is_not_deceived_by_copies():
    embedding = copied()
    deceived = LinearSVM(C="auto").fit(embedding.values, LABELS).search_.accuracy.mean(axis=1).max()
    honest = LinearSVM(C="auto").fit(embedding.values, LABELS, groups=GROUPS).search_.accuracy.mean(axis=1).max()
    assert deceived > 0.7
    assert honest < 0.6


def test_layer_probes_are_not_deceived_by_copies():
    assert layer_probes(copied(), progress=False).whole.score > 0.7
    assert layer_probes(copied(), groups=GROUPS, progress=False).whole.score < 0.6


def test_a_draw_has_no_copies_of_itself_or_of_what_is_held_out():
    options = {"shots": (2, 4), "n_splits": 3, "progress": False}
    seen = []

    def watch(samples, others):
        together = np.concatenate([samples, np.unique(others, axis=0)])
        seen.append(len(np.unique(together, axis=0)) == len(together))
        return samples, others

    learning_curve(copied(), groups=GROUPS, prepare=watch, **options)
    assert all(seen)
    seen.clear()
    learning_curve(copied(), prepare=watch, **options)
    assert not all(seen)


def test_groups_of_other_samples():
    with pytest.raises(InputError, match=r"one number a sample, \(60,\), got shape \(3,\)"):
        stratified_folds(LABELS, groups=np.arange(3))
