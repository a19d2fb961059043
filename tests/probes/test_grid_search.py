"""Folds for a search: as many as the classes and the copies among their samples allow."""

import numpy as np
import pytest

from hf_tl import InputError, LinearSVM
from hf_tl.probes.grid_search import stratified_folds, usable_folds


def test_copies_count_as_one_sample():
    strata = np.repeat([0, 1], 10)
    assert usable_folds(strata) == 5
    assert usable_folds(strata, groups=np.arange(20)) == 5
    assert usable_folds(strata, groups=np.arange(20) // 3) == 4
    assert usable_folds(strata, groups=np.arange(20) // 10) == 0


def test_no_group_is_on_both_sides():
    strata, groups = np.tile([0, 1], 30), np.arange(60) // 4
    fold = stratified_folds(strata, groups=groups)
    assert sorted(set(fold)) == [0, 1, 2, 3, 4]
    assert all(len(set(fold[groups == group])) == 1 for group in set(groups))


def test_fewer_samples_than_folds_when_copies_are_taken_off_is_said_or_not_searched():
    labels, groups = np.repeat([0, 1], 10), np.arange(20) // 10
    with pytest.raises(InputError, match="2 different samples, the others being copies of them, make no 5 folds"):
        stratified_folds(labels, groups=groups)
    features = np.random.default_rng(0).normal(size=(20, 5))
    svm = LinearSVM("auto").fit(features, labels, groups=groups)
    assert svm.score(features, labels) > 0.5
