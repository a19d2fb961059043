"""Unbiased CKA: 1 for a rotation, nothing for noise."""

import numpy as np
import pytest

from hf_tl import cka, compare_layers
from hf_tl.analysis.cka import compare_each_layer
from hf_tl.embedding.embedding import Embedding, LayerColumns
from hf_tl.errors import InputError


def test_a_rotation_and_a_shift_are_the_same():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 10))
    Q, _ = np.linalg.qr(rng.normal(size=(10, 10)))
    assert cka(X, 3 * X @ Q + 5) == pytest.approx(1)


def test_independent_noise_is_unrelated():
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(2, 256, 768))
    assert abs(cka(X, Y)) < 0.02


def test_the_estimator_is_the_definition():
    rng = np.random.default_rng(1)
    X, Y = rng.normal(size=(8, 3)), rng.normal(size=(8, 4))

    def hsic(A, B):
        K, L = A @ A.T, B @ B.T
        np.fill_diagonal(K, 0)
        np.fill_diagonal(L, 0)
        n, one = len(K), np.ones(len(K))
        middle = (one @ K @ one) * (one @ L @ one) / (n - 1) / (n - 2)
        return (np.trace(K @ L) + middle - 2 / (n - 2) * one @ K @ L @ one) / n / (n - 3)

    assert cka(X, Y) == pytest.approx(hsic(X, Y) / np.sqrt(hsic(X, X) * hsic(Y, Y)))


@pytest.mark.slow
def test_layers_of_embeddings(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(30, 9)).astype(np.float32)
    layers = (LayerColumns("a", 0, 4, 0.0), LayerColumns("b", 4, 9, 1.0))
    one = Embedding(values, layers, np.arange(30))
    found = compare_layers(one)
    assert found.values.shape == (2, 2)
    assert np.diag(found.values) == pytest.approx([1, 1])
    assert found.values[0, 1] == pytest.approx(cka(values[:, :4], values[:, 4:]))
    assert compare_each_layer(one, one) == pytest.approx([1, 1])
    assert found.plot(tmp_path / "cka.png", title="layers").stat().st_size > 1000


def test_mistakes():
    with pytest.raises(InputError, match="the same 4 samples or more, got 3 and 3"):
        cka(np.ones((3, 2)), np.ones((3, 2)))
    one = Embedding(np.zeros((5, 2)), (LayerColumns("a", 0, 2, 0.0),), np.arange(5))
    with pytest.raises(InputError, match="same samples"):
        compare_layers(one, one[:4])
    assert np.isnan(cka(np.ones((5, 2)), np.ones((5, 2))))
