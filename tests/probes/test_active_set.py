"""The exact solver: its solution fulfils the conditions of an optimum, wherever it starts and however hard it is."""

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from hf_tl.probes import active_set
from hf_tl.probes.active_set import SampleSpace, solve, warn_if_inexact
from hf_tl.probes.gram import gram


def task(samples, features, classes=3, seed=0):
    generator = np.random.default_rng(seed)
    y = generator.integers(0, classes, samples)
    x = np.sign(generator.normal(size=(classes, features))[y] + 1.5 * generator.normal(size=(samples, features)))
    return x, np.where(y[:, None] == np.arange(classes), 1.0, -1.0)


def space_of(x):
    return SampleSpace(gram(x) + 1, x)


def assert_optimal(space, signs, curvature, found, atol=1e-6):
    """Karush-Kuhn-Tucker: the dual coefficients are those that the margins ask for."""
    slack = np.maximum(0, 1 - signs * (space.gram @ found.alpha))
    np.testing.assert_allclose(found.alpha, curvature * signs * slack, atol=atol * curvature.max())
    np.testing.assert_allclose(found.values, space.gram @ found.alpha, atol=1e-6)


@pytest.mark.parametrize("C", [1e-4, 1e-2, 1.0, 100.0])
@pytest.mark.parametrize(("samples", "features"), [(60, 300), (300, 40), (200, 200)])
def test_the_solution_is_optimal(samples, features, C):
    x, signs = task(samples, features)
    space, curvature = space_of(x), np.full(signs.shape, 2 * C)
    assert_optimal(space, signs, curvature, solve(space, signs, curvature))


def test_it_does_not_matter_where_it_starts_or_in_which_space_it_solves():
    x, signs = task(300, 40)
    curvature = np.full(signs.shape, 0.1)
    found = solve(space_of(x), signs, curvature)
    for start in (np.zeros(signs.shape, bool), np.ones(signs.shape, bool), found.active):
        for space in (space_of(x), SampleSpace(gram(x) + 1)):
            np.testing.assert_allclose(solve(space, signs, curvature, start=start).alpha, found.alpha, atol=1e-8)


@pytest.mark.parametrize("known", [True, False], ids=["features", "inner products alone"])
def test_where_block_exchanges_go_in_circles_an_interior_point_method_ends(known, monkeypatch):
    """Separable samples of few features, nearly hard margin: the case that block pivoting alone does not end on."""
    x, signs = task(600, 60, classes=6)
    signs = signs[:, :2]
    x = x + 3 * (signs[:, :1] > 0)  # separable
    space, curvature = SampleSpace(gram(x) + 1, x if known else None), np.full(signs.shape, 200.0)
    calls = []
    original = active_set.solve_by_interior_point
    monkeypatch.setattr(active_set, "solve_by_interior_point", lambda *given: calls.append(1) or original(*given))
    found = solve(space, signs, curvature, start=np.zeros(signs.shape, bool))
    assert calls
    assert found.gap.max() < 1e-6
    assert_optimal(space, signs, curvature, found, atol=1e-5)


def test_samples_without_weight_do_not_count():
    x, signs = task(80, 200)
    space, kept = space_of(x), np.arange(80) % 4 > 0
    some = solve(space, signs, 0.02 * kept[:, None] * np.ones_like(signs))
    alone = solve(SampleSpace(space.gram[np.ix_(kept, kept)]), signs[kept], np.full(signs[kept].shape, 0.02))
    np.testing.assert_allclose(some.alpha[kept], alone.alpha, atol=1e-10)
    assert not some.alpha[~kept].any()


def test_of_many_samples_the_support_is_guessed_from_half(monkeypatch):
    monkeypatch.setattr(active_set, "COARSE", 50)
    for features in (400, 30):
        x, signs = task(180, features)
        space, curvature = space_of(x), np.full(signs.shape, 0.02)
        assert_optimal(space, signs, curvature, solve(space, signs, curvature))


def test_a_small_negative_coefficient_is_no_solution():
    """Nearly hard margin: slacks are far below any absolute tolerance, and so are wrong signs times D."""
    generator = np.random.default_rng(5)
    x = 1e4 + generator.normal(size=(24, 160))
    signs = np.where(np.arange(24) % 2, 1.0, -1.0)[:, None]
    found = solve(space_of(x), signs, np.full(signs.shape, 2e3))
    assert (signs * found.alpha).min() >= -1e-6 * np.abs(found.alpha).max()
    assert found.gap.max() < 1e-6


def test_what_cannot_be_solved_exactly_warns(monkeypatch):
    monkeypatch.setattr(active_set, "AFFORDABLE", 0)
    x, signs = task(60, 300)
    found = solve(space_of(1e9 * x), signs, np.full(signs.shape, 1e9))
    assert np.isinf(found.gap).all()
    with pytest.warns(ConvergenceWarning, match="3 of 3 classes are not solved exactly.*standardise them"):
        warn_if_inexact(found)


@pytest.mark.parametrize("dtype", [np.int8, np.float32, np.float64])
def test_gram_of_blocks_is_the_gram(dtype, monkeypatch):
    import hf_tl.probes.gram as module

    monkeypatch.setattr(module, "ROWS_AT_ONCE", 7)
    generator = np.random.default_rng(0)
    x, z = (generator.integers(-100, 100, (n, 3000)).astype(dtype) for n in (20, 9))
    np.testing.assert_array_equal(gram(x), x.astype(np.float64) @ x.T.astype(np.float64))
    np.testing.assert_array_equal(gram(x, z), x.astype(np.float64) @ z.T.astype(np.float64))
