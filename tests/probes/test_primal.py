"""The solver for many rows, against the exact one, and on rows that are not in memory."""

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning

from hf_tl import LinearSVM
from hf_tl.probes import primal, svm
from hf_tl.probes.primal import Columns, solve_primal


def task(rows=800, features=60, classes=4, seed=0):
    generator = np.random.default_rng(seed)
    y = generator.integers(0, classes, rows)
    centres = np.random.default_rng(9).normal(0, 0.5, (classes, features))
    x = centres[y] + generator.normal(size=(rows, features))
    return np.where(x > 0.15, 1, np.where(x < -0.25, -1, 0)).astype(np.int8), y


@pytest.mark.parametrize("dtype", [np.int8, np.float32, np.float64])
@pytest.mark.parametrize("classes", [2, 4])
def test_same_solution_as_the_exact_solver(dtype, classes):
    x, y = task(classes=classes)
    x, test = x.astype(dtype), task(seed=1)[0].astype(dtype)
    exact = LinearSVM(0.03, solver="dual").fit(x, y)
    blocks = LinearSVM(0.03, solver="primal", tol=1e-8).fit(x, y)
    np.testing.assert_allclose(blocks.decision_function(test), exact.decision_function(test), atol=1e-3)
    assert (blocks.predict(test) == exact.predict(test)).mean() >= 0.999
    assert blocks.n_iter_ > 1


def test_levels_blocks_and_float32_change_nothing(monkeypatch):
    x, y = task()
    exact = LinearSVM(0.03, solver="dual").fit(x, y)
    monkeypatch.setattr(primal, "FEWEST", 50)  # 12, 100 and 800 rows
    monkeypatch.setattr(primal, "BLOCK", 61 * 70)
    monkeypatch.setattr(primal, "SMALL", 0)
    monkeypatch.setattr(primal, "SAMPLE", 64)
    monkeypatch.setattr(primal, "DIRECTIONS", 8)
    blocks = LinearSVM(0.03, solver="primal", tol=1e-7).fit(x, y)
    np.testing.assert_allclose(blocks.decision_function(x), exact.decision_function(x), atol=5e-3)


def test_many_rows_take_this_solver(monkeypatch):
    monkeypatch.setattr(svm, "GRAM_SAMPLES", 100)
    assert LinearSVM(0.03).fit(*task()).n_iter_ > 1


class Lazy:
    """Rows that are made when they are asked for, and never all at once."""

    def __init__(self, x):
        self.x, self.shape, self.dtype = x, x.shape, x.dtype

    def __getitem__(self, rows):
        assert rows.stop - rows.start <= 2048
        return self.x[rows]

    def __array__(self, dtype=None, copy=None):
        raise AssertionError("all rows at once")


def test_lazy_and_memory_mapped_rows(tmp_path):
    x, y = task(3000)
    np.save(tmp_path / "x.npy", x)
    plain = LinearSVM(0.03, solver="primal").fit(x, y)
    for rows in (Lazy(x), np.load(tmp_path / "x.npy", mmap_mode="r")):
        fitted = LinearSVM(0.03, solver="primal").fit(rows, y)
        np.testing.assert_allclose(fitted.coef_, plain.coef_, atol=1e-6)
        assert (fitted.predict(rows) == plain.predict(x)).all()
    with pytest.raises(ValueError, match="has 59 features, but LinearSVM was fitted on 60"):
        plain.predict(Lazy(x[:, 1:]))
    broken = x.astype(np.float32)
    broken[7, 3] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        LinearSVM(solver="primal").fit(Lazy(broken), y)


def test_stopping_early_warns_and_says_what_to_do():
    with pytest.warns(ConvergenceWarning, match="SVMs are not solved to tol=1e-08.* choose a smaller C"):
        LinearSVM(1.0, solver="primal", tol=1e-8, max_iter=3).fit(*task())


def test_several_values_of_c_are_columns_of_one_problem():
    x, y = task()
    signs = np.where(y == 0, 1, -1).astype(np.int8)[:, None]
    both = Columns(np.tile(signs, (1, 2)), np.array([0.01, 0.1]), np.array([0.01, 0.1]), np.ones(len(y)))
    found = solve_primal(x, both, tol=1e-8)
    for j, C in enumerate((0.005, 0.05)):
        alone = LinearSVM(C).fit(x, y == 0)
        np.testing.assert_allclose(found.coef[j], alone.coef_[0], atol=1e-4)


@pytest.mark.gpu
def test_same_on_an_accelerator():
    if not torch.cuda.is_available():
        pytest.skip("no accelerator here")
    x, y = task()
    exact = LinearSVM(0.03, solver="dual").fit(x, y)
    there = LinearSVM(0.03, solver="primal", device="cuda").fit(x, y)
    np.testing.assert_allclose(there.decision_function(x), exact.decision_function(x), atol=5e-3)
