"""Comparing raw float32 numbers is the same as standardising them in float64, to the last bit."""

import itertools

import numpy as np
import pytest

from hf_tl.embedding.cut_points import find_cut_points
from hf_tl.embedding.recipe import CONSTANT, RECIPES, Recipe
from hf_tl.embedding.statistics import Statistics


EXTREMES = np.array(
    [0.0, -0.0, 1e-45, -1e-45, 1.1754944e-38, -1.1754944e-38, 1.0, -1.0, 3.4028235e38, -3.4028235e38], np.float32
)


def reference(recipe, statistics, values):
    """The rule as it stands in the paper, in float64."""
    mean, std = statistics.mean, statistics.std(ddof=recipe.ddof)
    constant = std <= CONSTANT * np.abs(mean)
    standard = (values.astype(np.float64) - mean) / np.where(constant, 1, std)
    standard[:, constant] = 0
    low, high = recipe.thresholds
    below = standard <= low if recipe.low_closed else standard < low
    return np.where(standard > high, 1, np.where(below, -1, 0))


def around(cut, n=6):
    """The `n` float32 numbers on either side of each cut, and the cut: (2n + 1, features)."""
    rows, largest = [cut], np.finfo(np.float32).max
    for direction in (-largest, largest):
        row = cut
        for _ in range(n):
            row = np.nextafter(row, direction)
            rows.append(row)
    rows = np.stack(rows)
    return np.where(np.isfinite(rows), rows, np.float32(0))


def hard_training_rows(generator):
    """Columns of every scale and offset, constant and nearly constant ones, and thresholds that fall on zero."""
    scale = np.exp2(generator.integers(-130, 100, 3000)).astype(np.float32)
    offset = np.float32(10) ** generator.uniform(-3, 6, 3000).astype(np.float32) * scale
    offset *= generator.choice(np.float32([-1, 0, 1]), 3000)
    columns = [generator.standard_normal((40, 3000), dtype=np.float32) * scale + offset]
    columns.append(np.float32([[-4.0], [4.0]] * 20) * scale[:500])  # mean 0, deviation a power of two
    columns.append(np.float32([[1.0], [9.0]] * 20) * np.exp2(np.arange(-60, 60, dtype=np.float32)))  # a cut at +4
    columns.append(np.float32([[-3.0], [5.0]] * 20) * scale[:500])  # mean 1, deviation 4: z = -0.25 at zero
    columns.append(np.full((40, 300), 0.1, np.float32) * scale[:300])  # constant
    columns.append(np.float32(100) * (1 + np.float32(1.2e-7) * (np.arange(40)[:, None] % 2)) + np.zeros(3, np.float32))
    columns.append((generator.random((40, 500)) < 0.03).astype(np.float32) * scale[:500])  # seldom active
    return np.concatenate(columns, axis=1)


@pytest.mark.parametrize("thresholds", [(-0.25, 0.15), (-0.25, 0.125), (0.0, 0.0), (0.1, 0.2), (-0.2, -0.1), (-9, 9)])
@pytest.mark.parametrize(("ddof", "low_closed"), [(0, False), (1, True), (0, True), (1, False)])
def test_comparing_equals_standardising_next_to_every_cut(thresholds, ddof, low_closed):
    recipe = Recipe(thresholds=thresholds, ddof=ddof, low_closed=low_closed)
    generator = np.random.default_rng(0)
    train = hard_training_rows(generator)
    statistics = Statistics(train.shape[1]).update(train)
    std = statistics.std(ddof=ddof)
    spread = np.where(std > CONSTANT * np.abs(statistics.mean), std, np.inf)
    cuts = [
        find_cut_points(statistics.mean, spread, threshold, closed=closed)
        for threshold, closed in itertools.product(thresholds, (False, True))
    ]
    values = np.concatenate([train, *map(around, cuts), np.repeat(EXTREMES[:, None], train.shape[1], axis=1)])
    got = recipe.apply(values, statistics, [train.shape[1]])
    assert np.array_equal(got, reference(recipe, statistics, values))
    exact = recipe.apply(values.astype(np.float64), statistics, [train.shape[1]])  # without cuts
    assert np.array_equal(got, exact)


@pytest.mark.parametrize("name", ["paper", "fne-package"])
def test_the_two_presets_are_exact_on_a_hundred_thousand_columns(name):
    generator = np.random.default_rng(1)
    train = np.maximum(generator.standard_normal((30, 100_000), dtype=np.float32), 0)
    train *= generator.lognormal(0, 3, 100_000).astype(np.float32)
    statistics, recipe = Statistics(100_000).update(train), RECIPES[name]
    std = statistics.std(ddof=recipe.ddof)
    cuts = [find_cut_points(statistics.mean, std, t, closed=closed) for t in (-0.25, 0.15) for closed in (False, True)]
    values = np.concatenate([train, *(around(cut, 2) for cut in cuts)])
    got = recipe.apply(values, statistics, [100_000])
    assert np.array_equal(got, reference(recipe, statistics, values))
    assert {-1, 0, 1} == set(np.unique(got))


def test_a_cut_is_the_first_number_above():
    mean, spread = np.array([0.0, 5.0, 1.0]), np.array([4.0, 4.0, np.inf])
    closed = find_cut_points(mean, spread, -0.25, closed=True)
    opened = find_cut_points(mean, spread, -0.25, closed=False)
    assert closed[:2].tolist() == [-1.0, 4.0]
    assert opened[:2].tolist() == np.nextafter(np.float32([-1, 4]), np.float32(9)).tolist()
    lowest = np.finfo(np.float32).min
    assert (closed[2], opened[2]) == (lowest, lowest)  # a constant feature is 0, above -0.25, whatever it is
    assert find_cut_points(mean, spread, 0.15, closed=False)[2] == np.inf


def test_values_that_are_no_numbers_are_neither_above_nor_below():
    train = np.array([[0.0], [1.0]], np.float32)
    assert RECIPES["paper"].apply(np.array([[np.nan]], np.float32), Statistics(1).update(train), [1]).tolist() == [[0]]
