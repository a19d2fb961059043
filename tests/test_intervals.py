"""Intervals: against published figures, scipy, and formulas worked by hand."""

import numpy as np
import pytest
from scipy import stats

from hf_tl.intervals import half_width, paired_gain, wilson


def outcomes(both: int, first_only: int, second_only: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    first = np.repeat([True, True, False, False], [both, first_only, second_only, neither])
    second = np.repeat([True, False, True, False], [both, first_only, second_only, neither])
    return first, second


def test_wilsons_interval_is_the_published_one():
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I
    assert wilson(0, 20) == pytest.approx((0, 0.1611), abs=1e-4)
    assert wilson(np.count_nonzero(np.ones(5, bool)), 5)[1] == 1


def test_half_width_is_students():
    draws = np.array([0.5, 0.6, 0.4, 0.55])
    low, high = stats.t.interval(0.95, 3, loc=draws.mean(), scale=stats.sem(draws))
    assert half_width(draws) == pytest.approx((high - low) / 2)


def test_a_paired_interval_is_walds_with_half_a_sample_more_in_each_cell():
    gain, low, high = paired_gain(*outcomes(10, 6, 2, 2))
    cells = np.array([10, 6, 2, 2]) + 0.5
    n = cells.sum()
    middle = (cells[1] - cells[2]) / n
    variance = ((cells[1] + cells[2]) - (cells[1] - cells[2]) ** 2 / n) / n**2
    assert gain == pytest.approx(0.2)
    assert (low, high) == pytest.approx(stats.norm.interval(0.95, middle, np.sqrt(variance)), rel=1e-6)


def test_a_paired_interval_of_equals_is_no_point():
    gain, low, high = paired_gain(*outcomes(7, 0, 0, 3))
    assert gain == 0
    assert low < -0.1 < 0.1 < high  # none of 10 samples differed, which proves little


def test_a_paired_interval_covers_and_is_narrower_than_two():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        hard = generator.random(200)
        first, second = hard < 0.8 + 0.05 * generator.normal(size=200), hard < 0.7
        _, low, high = paired_gain(first, second)
        covered += low <= 0.1 <= high
    assert 0.92 <= covered / 400 <= 0.99
    assert high - low < sum(np.diff(wilson(np.sum(r), 200))[0] for r in (first, second))
