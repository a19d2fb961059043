"""Heads on an embedding: the exact reduction, scikit-learn's own estimators behind one name each, warnings."""

import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC
from sklearn.utils.estimator_checks import parametrize_with_checks
from test_svm import ternary

from hf_tl import InputError
from hf_tl.probes.heads import HEADS, KernelSVM, RowSpace, make_head


def test_the_row_space_has_the_same_gram_matrix_and_drops_what_is_redundant():
    x, _ = ternary(20, 3000, 2)
    x = np.concatenate([x, x[:5]])
    space = RowSpace()
    z = space.fit_transform(x)
    assert z.shape == (25, 20)
    np.testing.assert_allclose(z @ z.T, x.astype(float) @ x.T.astype(float), atol=1e-8)
    np.testing.assert_allclose(space.transform(x), z, atol=1e-8)
    new = ternary(7, 3000, 2, seed=3)[0]
    np.testing.assert_allclose(space.transform(new) @ z.T, new.astype(float) @ x.T.astype(float), atol=1e-8)
    unit = RowSpace(unit=True).fit_transform(x)
    assert (unit**2).sum(axis=1).mean() == pytest.approx(1)
    assert RowSpace().fit_transform(np.zeros((4, 9))).shape == (4, 1)


@pytest.mark.parametrize(
    "estimator",
    [
        LogisticRegression(C=1e-3, tol=1e-10, max_iter=10_000),
        RidgeClassifier(alpha=100.0),
        KNeighborsClassifier(5, metric="cosine"),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_in_the_row_space_an_estimator_is_the_one_on_the_features(estimator):
    x, y = ternary(60, 300, 3)
    test = ternary(200, 300, 3, seed=1)[0].astype(float)
    there = make_pipeline(RowSpace(), estimator).fit(x, y)
    here = clone(estimator).fit(x.astype(float), y)
    if isinstance(estimator, KNeighborsClassifier):
        assert (there.predict(test) == here.predict(test)).all()
    else:
        np.testing.assert_allclose(there.decision_function(test), here.decision_function(test), atol=1e-4)


def test_the_kernel_svm_is_scikit_learns():
    x, y = ternary(60, 300, 3)
    test = ternary(100, 300, 3, seed=1)[0]
    ours = KernelSVM(2.0).fit(x, y)
    oracle = SVC(C=2.0, kernel="rbf", gamma=ours.gamma_).fit(x.astype(float), y)
    np.testing.assert_allclose(ours.decision_function(test), oracle.decision_function(test.astype(float)), atol=1e-6)


@pytest.mark.parametrize("name", HEADS)
def test_every_head_learns_an_easy_task(name):
    x, y = ternary(240, 100, 3)
    names = np.array(["cat", "dog", "eel"])[y]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        head = make_head(name, x.shape).fit(x, names)
    test, truth = ternary(60, 100, 3)
    assert head.score(test, np.array(["cat", "dog", "eel"])[truth]) > 0.9


@pytest.mark.parametrize("name", ["svm", "logreg", "ridge", "kernel"])
def test_one_c_is_taken_as_it_is(name):
    x, y = ternary(40, 100, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        weak, strong = (make_head(name, x.shape, C=C).fit(x, y) for C in (1e-6, 1.0))
    assert np.abs(weak.decision_function(x)).mean() < np.abs(strong.decision_function(x)).mean()


@pytest.mark.parametrize("name", ["kernel", "mlp"])
def test_a_head_that_can_memorise_the_samples_warns(name):
    with pytest.warns(UserWarning, match=f"head '{name}' on 40 samples of 100 features can memorise them"):
        make_head(name, (40, 100))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "smv"}, "there is no head 'smv' among .*closest are 'svm'"),
        ({"name": "mlp", "hidden_layers": 4}, "takes 1 to 3 hidden layers, got 4"),
        ({"name": "kernel", "C": [1.0, 2.0]}, "head 'kernel' takes one C"),
    ],
)
def test_wrong_heads_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        make_head(shape=(100, 10), **arguments)


@parametrize_with_checks([RowSpace(), KernelSVM()])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)
