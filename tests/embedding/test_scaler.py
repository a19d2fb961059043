"""Comparing raw float32 numbers is the same as comparing them in float64, next to every threshold."""

import numpy as np
import pytest

from hf_tl.embedding.recipe import CONSTANT, RECIPES, Recipe, Scaler, Statistics


EXTREMES = np.array(
    [0.0, -0.0, 1e-45, -1e-45, 1.1754944e-38, -1.1754944e-38, 1.0, -1.0, 3.4028235e38, -3.4028235e38], np.float32
)


def bounds(recipe, statistics):
    """What a feature must be above and below, in float64; constant ones are 0 once standardised."""
    mean, std = statistics.mean, statistics.std(ddof=recipe.ddof)
    constant = std <= CONSTANT * np.abs(mean)
    return constant, *(mean + threshold * np.where(constant, 0, std) for threshold in recipe.thresholds)


def reference(recipe, statistics, values):
    """The rule as it stands in the paper, in float64."""
    constant, low_bound, high_bound = bounds(recipe, statistics)
    low, high = recipe.thresholds
    values = values.astype(np.float64)
    below = values <= low_bound if recipe.low_closed else values < low_bound
    made = np.where(values > high_bound, 1, np.where(below, -1, 0))
    made[:, constant] = 1 if high < 0 else -1 if low > 0 or (low == 0 and recipe.low_closed) else 0
    return made


def around(bound, n=3):
    """The `n` float32 numbers on either side of each float64 one, and the nearest: (2n + 1, features)."""
    row = np.clip(bound, -3e38, 3e38).astype(np.float32)
    rows = [row]
    for direction in (-np.inf, np.inf):
        moved = row
        for _ in range(n):
            moved = np.nextafter(moved, np.float32(direction))
            rows.append(moved)
    return np.stack(rows)


def hard_training_rows(generator):
    """Columns of every scale and offset, constant and nearly constant ones, and thresholds that fall on zero."""
    scale = np.exp2(generator.integers(-130, 100, 3000)).astype(np.float32)
    offset = np.float32(10) ** generator.uniform(-3, 6, 3000).astype(np.float32) * scale
    offset *= generator.choice(np.float32([-1, 0, 1]), 3000)
    columns = [generator.standard_normal((40, 3000), dtype=np.float32) * scale + offset]
    columns.append(np.float32([[-4.0], [4.0]] * 20) * scale[:500])  # mean 0, standard deviation a power of two
    columns.append(np.float32([[1.0], [9.0]] * 20) * np.exp2(np.arange(-60, 60, dtype=np.float32)))
    columns.append(np.float32([[-3.0], [5.0]] * 20) * scale[:500])  # mean 1, standard deviation 4: z = -0.25 at zero
    columns.append(np.full((40, 300), 0.1, np.float32) * scale[:300])  # constant
    columns.append(np.float32(100) * (1 + np.float32(1.2e-7) * (np.arange(40)[:, None] % 2)) + np.zeros(3, np.float32))
    columns.append((generator.random((40, 500)) < 0.03).astype(np.float32) * scale[:500])  # seldom active
    return np.concatenate(columns, axis=1)


@pytest.mark.parametrize("thresholds", [(-0.25, 0.15), (-0.25, 0.125), (0.0, 0.0), (0.1, 0.2), (-0.2, -0.1), (-9, 9)])
@pytest.mark.parametrize(("ddof", "low_closed"), [(0, False), (1, True), (0, True), (1, False)])
def test_float32_numbers_are_compared_as_in_float64_next_to_every_threshold(thresholds, ddof, low_closed):
    recipe = Recipe(thresholds=thresholds, ddof=ddof, low_closed=low_closed)
    train = hard_training_rows(np.random.default_rng(0))
    statistics = Statistics(train.shape[1]).update(train)
    near = [around(bound) for bound in bounds(recipe, statistics)[1:]]
    values = np.concatenate([train, *near, np.repeat(EXTREMES[:, None], train.shape[1], axis=1)])
    scaler = Scaler(recipe, statistics, [train.shape[1]])
    got = scaler(values)
    assert np.array_equal(got, reference(recipe, statistics, values))
    assert np.array_equal(got, scaler(values.astype(np.float64)))


@pytest.mark.parametrize("name", ["paper", "fne-package"])
def test_a_threshold_differs_from_that_of_standardised_values_by_float64_rounding_alone(name):
    generator = np.random.default_rng(1)
    train = np.maximum(generator.standard_normal((30, 100_000), dtype=np.float32), 0)
    train *= generator.lognormal(0, 3, 100_000).astype(np.float32)
    statistics, recipe = Statistics(100_000).update(train), RECIPES[name]
    values = np.concatenate([train, *(around(bound, 2) for bound in bounds(recipe, statistics)[1:])])
    got = Scaler(recipe, statistics, [100_000])(values)
    z = (values.astype(np.float64) - statistics.mean) / statistics.std(ddof=recipe.ddof)
    low, high = recipe.thresholds
    below = z <= low if recipe.low_closed else z < low
    differing = got != np.where(z > high, 1, np.where(below, -1, 0))
    nearest = np.minimum(np.abs(z - low), np.abs(z - high))
    assert (nearest[differing] < 1e-14 * (1 + np.abs(statistics.mean / statistics.std()).max())).all()
    assert {-1, 0, 1} == set(np.unique(got))


def test_values_that_are_no_numbers_are_neither_above_nor_below():
    train = np.array([[0.0], [1.0]], np.float32)
    scaler = Scaler(RECIPES["paper"], Statistics(1).update(train), [1])
    assert scaler(np.array([[np.nan]], np.float32)).tolist() == [[0]]
