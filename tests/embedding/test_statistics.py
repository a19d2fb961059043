"""Mean and variance in one pass."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from hf_tl.embedding.recipe import Statistics


def blocks(values, sizes):
    stops = np.cumsum([0, *sizes])
    return [values[a:b] for a, b in pairwise(stops)]


@pytest.mark.parametrize("sizes", [(100,), (1,) * 100, (3, 0, 50, 47)])
def test_any_blocks_give_numpys_mean_and_std(sizes):
    values = np.random.default_rng(0).normal(5, 2, (100, 7))
    statistics = Statistics(7)
    for block in blocks(values, sizes):
        statistics.update(block)
    assert statistics.n == 100
    np.testing.assert_allclose(statistics.mean, values.mean(axis=0), rtol=1e-14)
    for ddof in (0, 1):
        np.testing.assert_allclose(statistics.std(ddof=ddof), values.std(axis=0, ddof=ddof), rtol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_threads_change_no_bit(dtype):
    values = np.random.default_rng(0).normal(5, 2, (153, 3000)).astype(dtype)
    states = []
    before = torch.get_num_threads()
    for count in (1, 3):
        torch.set_num_threads(count)
        states.append(Statistics(3000).update(values[:20]).update(values[20:]).state())
    torch.set_num_threads(before)
    for one, three in zip(states[0].values(), states[1].values(), strict=True):
        assert np.array_equal(one, three)


def test_a_mean_far_from_zero_costs_no_digits():
    noise = np.random.default_rng(0).normal(size=(1000, 3))
    values = 1e8 + noise
    naive = (values**2).mean(axis=0) - values.mean(axis=0) ** 2
    assert not np.allclose(naive, values.var(axis=0), rtol=0.01)  # the textbook formula fails here
    np.testing.assert_allclose(Statistics(3).update(values).std(), values.std(axis=0), rtol=1e-9)


def test_a_constant_feature_has_no_variance_at_all():
    statistics = Statistics(1)
    for _ in range(10):
        statistics.update(np.full((7, 1), 0.1, np.float32))
    assert statistics.std()[0] == 0.0


def test_merged_halves_equal_the_whole_in_any_order():
    values = np.random.default_rng(0).normal(-3, 1, (50, 4))
    a, b, c = (Statistics(4).update(part) for part in blocks(values, (10, 1, 39)))
    whole = Statistics(4).update(values)
    for merged in (a.merge(b).merge(c), c.merge(a.merge(b)), Statistics(4).merge(a).merge(b).merge(c)):
        assert merged.n == 50
        np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-13)
        np.testing.assert_allclose(merged.std(), whole.std(), rtol=1e-12)


def test_merging_leaves_both_halves_alone():
    a, b = Statistics(1).update([[1.0], [2.0]]), Statistics(1).update([[10.0]])
    a.merge(b)
    assert (a.n, a.mean[0], b.n, b.mean[0]) == (2, 1.5, 1, 10.0)


def test_other_widths_are_refused():
    with pytest.raises(ValueError, match=r"expected rows of 3 features, got shape \(2, 4\)"):
        Statistics(3).update(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="expected statistics of 3 features, got 4"):
        Statistics(3).merge(Statistics(4))
