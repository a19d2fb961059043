"""The interior point method: what it says about its distance from the minimum holds, at any scale."""

import numpy as np
import pytest

from hf_tl.probes.interior_point import solve_by_interior_point


def problem(seed, samples=60, features=12):
    generator = np.random.default_rng(seed)
    y = np.where(np.arange(samples) % 2, 1.0, -1.0)
    x = generator.normal(size=(samples, features)) * 10 ** generator.uniform(-4, 4, features)
    x[:, 0] += 1e4
    return np.column_stack([x, np.ones(samples)]), y


def objective(x, y, curvature, weights):
    return (weights @ weights + curvature @ np.maximum(0, 1 - y * (x @ weights)) ** 2) / 2


@pytest.mark.parametrize("C", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("samples", [60, 8])
def test_the_dual_proves_the_primal(samples, C):
    for seed in range(10):
        x, y = problem(seed, samples)
        curvature = np.full(samples, 2 * C)
        found = solve_by_interior_point(x, y, curvature)
        value, dual = objective(x, y, curvature, found.weights), y * found.alpha
        assert found.gap < 1e-6
        assert (dual >= 0).all()
        proven = dual.sum() - (np.square(x.T @ found.alpha).sum() + np.square(dual) @ (1 / curvature)) / 2
        assert 0 <= value - proven <= 2e-6 * value


def test_samples_without_weight_do_not_count():
    x, y = problem(0)
    curvature = np.where(np.arange(60) < 40, 2.0, 0.0)
    some, alone = solve_by_interior_point(x, y, curvature), solve_by_interior_point(x[:40], y[:40], curvature[:40])
    np.testing.assert_array_equal(some.weights, alone.weights)
    assert not some.alpha[40:].any()
    assert not solve_by_interior_point(x, y, np.zeros(60)).weights.any()


def test_numbers_beyond_float64_leave_a_gap_not_a_crash():
    x, y = problem(0)
    assert not solve_by_interior_point(1e200 * x, y, np.full(60, 1e100)).gap < 1e-3
