"""Probes of raw activations, from classes to numbers; layers and curves of the same."""

import numpy as np
import pytest
from lanes import lanes

from hf_tl import Embedding, InputError, layer_probes, learning_curve
from hf_tl.embedding.embedding import LayerColumns
from hf_tl.probes.heads import make_head
from hf_tl.probes.probe import compare_curves, compare_probes, compared_features, fit_probe


LAYERS = tuple(LayerColumns(name, 20 * i, 20 * (i + 1), i / 2) for i, name in enumerate(("conv1", "conv2", "last")))


def embedding(problem, n=90, seed=0, names=None):
    """Three layers of which the second knows the labels."""
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(n, 60)).astype(np.float32)
    if problem == "regression":
        labels = values[:, 20:25].sum(axis=1).astype(float) + 0.2 * generator.normal(size=n)
    elif problem == "multilabel":
        labels = (values[:, 20:23] > 0).astype(np.int8)
    else:
        labels = np.arange(n) % 3
        values[:, 20:23] += 3 * np.eye(3)[labels]
    return Embedding(values, LAYERS, np.arange(n), labels, names)


PROBLEMS = ("classification", "multilabel", "regression")


@pytest.mark.parametrize("problem", lanes(PROBLEMS, fast=lambda problem: problem == "multilabel"))
def test_every_problem(problem):
    train, test = embedding(problem), embedding(problem, seed=1)
    features = compared_features(recipe="standardize")
    probes = [fit_probe(train, test, choice) for choice in features]
    assert [probe.features.name for probe in probes] == ["full network", "last layer"]
    assert probes[0].evaluation.score > probes[1].evaluation.score + 0.1
    assert f"test {probes[0].evaluation.metric}" in compare_probes(probes).splitlines()[0]
    found = layer_probes(train, test, progress=False)
    assert found.best_layer.name == "conv2"
    assert found.metric == probes[0].evaluation.metric
    low, high = found.best_layer.interval
    assert low < found.best_layer.score < high
    assert layer_probes(train, progress=False).best_layer.name == "conv2"
    curve = compare_curves(train, test, features, C=1.0)
    assert list(curve.accuracy) == ["full network", "last layer"]
    means = curve.accuracy["full network"].mean(axis=1)
    assert means[-1] > means[0]
    assert curve.unit in curve.table()


def test_ridge_on_inner_products_is_ridge_on_the_features():
    from sklearn.linear_model import Ridge

    train, test = embedding("regression"), embedding("regression", seed=1)
    found = layer_probes(train, test, relative_C=5.0, progress=False)
    x = train.values[:, 20:40].astype(float)
    oracle = Ridge(alpha=np.square(x).sum(axis=1).mean() / 5).fit(x, train.labels)
    assert found.single[1].score == pytest.approx(oracle.score(test.values[:, 20:40], test.labels))


def test_tables_of_names_are_compared_everywhere():
    train, test = embedding("classification", names=("a", "b", "c")), embedding("classification", seed=1)
    turned = Embedding(test.values, LAYERS, test.indices, (test.labels + 1) % 3, ("c", "a", "b"))
    straight = Embedding(test.values, LAYERS, test.indices, test.labels, ("a", "b", "c"))
    words = Embedding(test.values, LAYERS, test.indices, np.array(["a", "b", "c"])[test.labels])
    choice = compared_features()[0]
    scores = {fit_probe(train, other, choice).evaluation.score for other in (straight, turned, words)}
    assert len(scores) == 1
    assert min(scores) > 0.7
    curves = [
        learning_curve(train, other, shots=(20,), progress=False).accuracy["full network"]
        for other in (straight, turned, words)
    ]
    assert (curves[0] == curves[1]).all()
    assert (curves[0] == curves[2]).all()
    for function in (lambda: fit_probe(train, test, choice), lambda: layer_probes(train, test)):
        with pytest.raises(InputError, match="give both in one form"):
            function()


def test_a_class_that_is_tested_and_never_taught_is_said():
    train, test = (
        embedding("classification", names=("a", "b", "c")),
        embedding("classification", names=("a", "b", "c")),
    )
    few = train[train.labels != 2]
    said = "30 of 90 test samples are of class 'c', of which there is no training sample"
    assert said in fit_probe(few, test, compared_features()[0]).notes
    assert said in str(layer_probes(few, test, progress=False))
    assert said in learning_curve(few, test, shots=(5,), progress=False).table()
    with pytest.raises(InputError, match="no test sample is of a class that is taught: they are 2, taught are 0, 1"):
        fit_probe(few, test[test.labels == 2], compared_features()[0])


def test_one_rare_class_does_not_shorten_the_curve():
    train = embedding("classification", names=("a", "b", "c"))
    kept = np.r_[np.flatnonzero(train.labels != 2), np.flatnonzero(train.labels == 2)[:1]]
    curve = learning_curve(train[np.sort(kept)], embedding("classification", seed=1, names=("a", "b", "c")),
                           shots=(1, 10, 30), progress=False)  # fmt: skip
    assert curve.shots == (1, 10, 30)
    assert curve.table().endswith("classes with fewer than 30 samples give all that they have: c")


def test_a_head_for_another_problem_is_refused():
    with pytest.raises(InputError, match="head 'lda' does not solve a regression problem; choose one of ridge, knn"):
        fit_probe(embedding("regression"), embedding("regression"), compared_features()[0], head="lda")
    assert make_head("ridge", (3, 3), problem="regression") is not None
