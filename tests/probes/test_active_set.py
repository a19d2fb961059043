"""The exact solver: its solution fulfils the conditions of an optimum, wherever it starts and however hard it is."""

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from hf_tl.probes import active_set
from hf_tl.probes.active_set import solve
from hf_tl.probes.gram import gram


def task(rows, features, classes=3, seed=0):
    generator = np.random.default_rng(seed)
    y = generator.integers(0, classes, rows)
    x = np.sign(generator.normal(size=(classes, features))[y] + 1.5 * generator.normal(size=(rows, features)))
    return x, np.where(y[:, None] == np.arange(classes), 1.0, -1.0)


def assert_optimal(among, signs, curvature, found, atol=1e-6):
    """Karush-Kuhn-Tucker: the dual coefficients are those that the margins ask for."""
    slack = np.maximum(0, 1 - signs * (among @ found.alpha))
    np.testing.assert_allclose(found.alpha, curvature * signs * slack, atol=atol * curvature.max())
    np.testing.assert_allclose(found.values, among @ found.alpha, atol=1e-6)


@pytest.mark.parametrize("C", [1e-4, 1e-2, 1.0, 100.0])
@pytest.mark.parametrize(("rows", "features"), [(60, 300), (300, 40), (200, 200)])
def test_the_solution_is_optimal(rows, features, C):
    x, signs = task(rows, features)
    among, curvature = gram(x) + 1, np.full(signs.shape, 2 * C)
    narrow = np.column_stack([x, np.ones(rows)]) if features < rows else None
    found = solve(among, signs, curvature, features=narrow)
    assert_optimal(among, signs, curvature, found)


def test_it_does_not_matter_where_it_starts_or_in_which_space_it_solves():
    x, signs = task(300, 40)
    among, curvature = gram(x) + 1, np.full(signs.shape, 0.1)
    found = solve(among, signs, curvature)
    for start in (np.zeros(signs.shape, bool), np.ones(signs.shape, bool), found.active):
        for narrow in (None, np.column_stack([x, np.ones(300)])):
            again = solve(among, signs, curvature, start=start, features=narrow)
            np.testing.assert_allclose(again.alpha, found.alpha, atol=1e-8)


def test_where_block_exchanges_go_in_circles_the_dual_objective_still_falls(monkeypatch):
    """Separable rows of few features, nearly hard margin: the case that block pivoting alone does not end on."""
    x, signs = task(600, 60, classes=6)
    signs = signs[:, :2]
    x = x + 3 * (signs[:, :1] > 0)  # separable
    among, curvature = gram(x) + 1, np.full(signs.shape, 200.0)
    calls = []
    descend = active_set._descend
    monkeypatch.setattr(active_set, "_descend", lambda *given: calls.append(1) or descend(*given))
    found = solve(among, signs, curvature, start=np.zeros(signs.shape, bool))
    assert calls
    assert_optimal(among, signs, curvature, found, atol=1e-5)


def test_rows_without_weight_do_not_count():
    x, signs = task(80, 200)
    among, kept = gram(x) + 1, np.arange(80) % 4 > 0
    some = solve(among, signs, 0.02 * kept[:, None] * np.ones_like(signs))
    alone = solve(among[np.ix_(kept, kept)], signs[kept], np.full(signs[kept].shape, 0.02))
    np.testing.assert_allclose(some.alpha[kept], alone.alpha, atol=1e-10)
    assert not some.alpha[~kept].any()


def test_many_rows_are_guessed_from_half_of_them(monkeypatch):
    monkeypatch.setattr(active_set, "COARSE", 50)
    x, signs = task(180, 400)
    among, curvature = gram(x) + 1, np.full(signs.shape, 0.02)
    assert_optimal(among, signs, curvature, solve(among, signs, curvature))


def test_a_solution_that_is_not_reached_warns(monkeypatch):
    monkeypatch.setattr(active_set, "PATIENCE", 0)
    monkeypatch.setattr(active_set, "LIMIT", 1)
    x, signs = task(60, 20)
    monkeypatch.setattr(active_set, "_solve_column", lambda gram, y, curvature, active, features: active_set._descend(
        gram, y, 1 / curvature, curvature > 0, np.zeros(len(y)), features))  # fmt: skip
    with pytest.warns(ConvergenceWarning, match="choose a smaller C"):
        solve(gram(x) + 1, signs, np.full(signs.shape, 2.0))


def test_a_system_beyond_float64_is_refused():
    with pytest.raises(FloatingPointError, match="not positive definite in float64"):
        active_set._positive_solve(np.array([[1.0, 2.0], [2.0, 1.0]]), np.ones(2))


@pytest.mark.parametrize("dtype", [np.int8, np.float32, np.float64])
def test_gram_of_blocks_is_the_gram(dtype, monkeypatch):
    import hf_tl.probes.gram as features

    monkeypatch.setattr(features, "ROWS_AT_ONCE", 7)
    generator = np.random.default_rng(0)
    x, z = (generator.integers(-100, 100, (n, 3000)).astype(dtype) for n in (20, 9))
    np.testing.assert_array_equal(gram(x), x.astype(np.float64) @ x.T.astype(np.float64))
    np.testing.assert_array_equal(gram(x, z), x.astype(np.float64) @ z.T.astype(np.float64))
