"""Scores against their definitions."""

import numpy as np
import pytest
from scipy.optimize import minimize

from hf_tl.analysis.transferability import SCORES, find_score, score_hscore, score_knn, score_logme, score_ridge
from hf_tl.errors import InputError


def classes(n=40, d=6, n_classes=3, shift=1.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % n_classes
    return rng.normal(size=(n, d)) + shift * rng.normal(size=(n_classes, d))[labels], labels


def evidence(F, y, alpha, beta):
    """log N(y; 0, I / beta + F F' / alpha), the definition."""
    covariance = np.eye(len(y)) / beta + F @ F.T / alpha
    _, logdet = np.linalg.slogdet(covariance)
    return -0.5 * (len(y) * np.log(2 * np.pi) + logdet + y @ np.linalg.solve(covariance, y))


@pytest.mark.parametrize("d", [6, 60])
def test_logme_is_the_maximum_of_the_evidence(d):
    F, labels = classes(d=d)
    best = []
    for c in range(3):
        y = (labels == c).astype(float)

        def missing(logs, y=y):
            return -evidence(F, y, *np.exp(logs))

        options = {"xatol": 1e-8, "fatol": 1e-10}
        found = [
            minimize(missing, start, method="Nelder-Mead", options=options) for start in ((0, 0), (3, 2), (-2, 3))
        ]
        best.append(-min(one.fun for one in found) / len(y))
    assert score_logme(F, labels) == pytest.approx(np.mean(best), abs=1e-4)


@pytest.mark.parametrize("d", [6, 60])
def test_hscore_is_its_definition(d):
    from sklearn.covariance import LedoitWolf

    F, labels = classes(d=d)
    centred = F - F.mean(axis=0)
    fitted = LedoitWolf(assume_centered=True).fit(centred)
    means = np.stack([centred[labels == c].mean(axis=0) for c in labels])
    between = means.T @ means / len(F)
    expected = np.trace(np.linalg.inv(fitted.covariance_) @ ((1 - fitted.shrinkage_) * between))
    assert score_hscore(F, labels) == pytest.approx(expected)


def test_ridge_is_that_of_scikit_learn_whichever_side_is_smaller():
    from sklearn.linear_model import Ridge

    from hf_tl.analysis.transferability import FOLDS, PENALTIES
    from hf_tl.probes.grid_search import stratified_folds

    for d in (6, 60):
        F, labels = classes(d=d, shift=0.4)
        fold, right = stratified_folds(labels, n_splits=FOLDS), np.zeros(len(PENALTIES))
        for k in range(FOLDS):
            inside, out = fold != k, fold == k
            centred = F[inside] - F[inside].mean(axis=0)
            for i, penalty in enumerate(PENALTIES):
                strength = penalty * np.square(centred).sum() / inside.sum()
                fitted = Ridge(alpha=strength).fit(F[inside], np.eye(3)[labels[inside]])
                right[i] += (fitted.predict(F[out]).argmax(axis=1) == labels[out]).sum()
        assert score_ridge(F, labels) == pytest.approx(right.max() / len(labels))


def test_knn_leaves_the_sample_itself_out():
    F = np.array([[1.0, 0.01], [1, 0], [0, 1], [0.01, 1.0]])
    assert score_knn(F, np.array([0, 0, 1, 1])) == 1.0
    assert score_knn(np.eye(4), np.array([0, 1, 0, 1])) < 1.0  # its own label would make it right


def test_knn_is_its_definition():
    F, labels = classes(n=30, shift=0.5)
    rows, right = F / np.linalg.norm(F, axis=1, keepdims=True), 0
    for i in range(30):
        alike = rows @ rows[i]
        nearest = sorted((j for j in range(30) if j != i), key=lambda j: -alike[j])[:10]
        votes = [sum(np.exp(alike[j] / 0.07) for j in nearest if labels[j] == c) for c in range(3)]
        right += int(np.argmax(votes)) == labels[i]
    assert score_knn(F, labels) == right / 30


@pytest.mark.parametrize("score", SCORES)
def test_better_features_score_higher(score):
    values = [SCORES[score](*classes(n=90, shift=shift)) for shift in (0.0, 0.7, 3.0)]
    assert values[0] < values[1] < values[2]


def test_an_unknown_score():
    with pytest.raises(InputError, match="score 'knnn' is none of"):
        find_score("knnn")
