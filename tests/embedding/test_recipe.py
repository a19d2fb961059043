"""Scaling and discretising, by hand."""

from dataclasses import replace

import numpy as np
import pytest

from hf_tl import InputError, Recipe
from hf_tl.embedding import RECIPES
from hf_tl.embedding.recipe import Scaler, Statistics, find_recipe


def apply(recipe, train, values=None, widths=None):
    train = np.asarray(train, dtype=np.float32)
    values = train if values is None else np.asarray(values, dtype=np.float32)
    return Scaler(recipe, Statistics(train.shape[1]).update(train), widths or [train.shape[1]])(values)


def test_thresholds_and_ties_of_the_two_presets():
    train = np.array([[-4.0], [4.0]])  # mean 0, population std 4
    values = [[-1.01], [-1.0], [0.0], [0.5], [0.51]]  # z: below -1/4, -1/4, 0, 1/8, above 1/8
    ties = (-0.25, 0.125)  # thresholds that floating point numbers meet exactly
    paper, package = RECIPES["paper"], RECIPES["fne-package"]
    assert apply(replace(paper, thresholds=ties), train, values).ravel().tolist() == [-1, 0, 0, 0, 1]
    assert apply(replace(package, thresholds=ties, ddof=0), train, values).ravel().tolist() == [-1, -1, 0, 0, 1]
    assert paper == Recipe("after", "standardize", 0, (-0.25, 0.15), False)
    assert package == Recipe("before", "standardize", 1, (-0.25, 0.15), True)


def test_ddof_divides_by_one_row_less():
    train = np.array([[0.0], [1.0], [5.0]])
    standardised = apply(Recipe(thresholds=None, ddof=1), train).ravel()
    np.testing.assert_allclose(standardised, (train.ravel() - 2) / train.std(ddof=1), rtol=1e-6)


def test_a_feature_constant_in_training_is_0_whatever_the_test_brings():
    train = np.array([[3.0, 0.0], [3.0, 1.0]])
    for recipe in (RECIPES["paper"], RECIPES["fne-package"], RECIPES["standardize"]):
        assert apply(recipe, train, [[3.0001, 1.0], [1e6, 0.0]])[:, 0].tolist() == [0, 0]


def test_rounding_noise_on_a_constant_feature_is_not_blown_up():
    train = np.float32(100) * (1 + np.float32(1.2e-7) * np.arange(8).reshape(-1, 1) % 2)
    assert not apply(RECIPES["paper"], train).any()


def test_l2_gives_each_layer_of_a_row_norm_1():
    values = np.random.default_rng(0).normal(size=(5, 7))
    values[0, :3] = 0
    scaled = apply(RECIPES["l2"], values, widths=[3, 4])
    np.testing.assert_allclose(np.linalg.norm(scaled[1:, :3], axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(scaled[:, 3:], axis=1), 1, rtol=1e-6)
    assert not scaled[0, :3].any()


def test_raw_is_raw_and_dtypes_are_small():
    values = np.random.default_rng(0).normal(size=(600, 3)).astype(np.float32)  # more than one block of rows
    assert np.array_equal(apply(RECIPES["raw"], values), values)
    assert apply(RECIPES["paper"], values).dtype == np.int8
    assert apply(RECIPES["standardize"], values).dtype == np.float32


def test_the_input_is_left_alone():
    values = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    before = values.copy()
    for recipe in RECIPES.values():
        apply(recipe, values)
    assert np.array_equal(values, before)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"activation": "pre"}, "activation should be 'after' or 'before', got 'pre'"),
        ({"scale": "zscore"}, "scale should be 'standardize', 'l2-layer' or 'none', got 'zscore'"),
        ({"thresholds": (0.2, -0.2)}, r"low <= high, got \(0.2, -0.2\)"),
    ],
)
def test_wrong_recipes_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        Recipe(**fields)


def test_an_unknown_name_shows_the_known_ones():
    with pytest.raises(
        InputError, match=r"no recipe 'papre' among \['fne-package', 'l2', 'paper'.*closest are 'paper'"
    ):
        find_recipe("papre")
