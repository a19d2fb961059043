"""Heads on an embedding: the exact reduction, scikit-learn's own estimators behind one name each, warnings."""

import warnings

import numpy as np
import pytest
from lanes import lanes
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC
from sklearn.utils.estimator_checks import parametrize_with_checks
from test_svm import ternary

from hf_tl import InputError
from hf_tl.probes.heads import HEADS, default_head, linear_weights, make_head
from hf_tl.probes.kernel_svm import KernelSVM
from hf_tl.probes.row_space import RowSpace


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


@pytest.mark.parametrize("name", lanes(HEADS, fast=lambda name: name != "mlp"))
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


def numbers(n=80, seed=0):
    """Wide features and a number that depends on them linearly, with noise."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n, 300))
    return x, x[:, :5].sum(axis=1) + 0.1 * generator.normal(size=n) + 40


@pytest.mark.parametrize("C", [1.0, "auto", [0.1, 10.0]])
def test_ridge_predicts_numbers_as_scikit_learns_on_the_features(C):
    from sklearn.linear_model import Ridge

    x, y = numbers()
    head = make_head("ridge", x.shape, C=C, problem="regression").fit(x, y)
    alpha = 1.0 if C == 1.0 else head[-1].alpha_
    oracle = Ridge(alpha=alpha * np.square(x).sum(axis=1).mean()).fit(x, y)
    new = numbers(seed=1)[0]
    np.testing.assert_allclose(head.predict(new), oracle.predict(new), rtol=1e-8)
    assert make_head("knn", x.shape, problem="regression").fit(x, y).predict(new).shape == (80,)


@pytest.mark.parametrize(
    "name",
    lanes([name for name, problems in HEADS.items() if "multilabel" in problems], fast=lambda name: name != "mlp"),
)
@pytest.mark.filterwarnings("ignore")
def test_heads_of_several_labels_a_sample(name):
    x, _ = numbers(120)
    y = (x[:, :3] > 0).astype(np.int8)
    head = make_head(name, x.shape, C=1.0, problem="multilabel").fit(x, y)
    assert head.predict(x).shape == (120, 3)
    assert (head.predict(x) == y).mean() > 0.7


@pytest.mark.parametrize("problem", ["classification", "multilabel", "regression"])
@pytest.mark.parametrize("name", ["svm", "logreg", "ridge", "lda"])
@pytest.mark.parametrize("C", [1.0, "auto"])
def test_linear_heads_are_their_weights(name, problem, C):
    if problem not in HEADS[name]:
        with pytest.raises(InputError, match=f"head '{name}' does not solve a {problem} problem; choose one of"):
            make_head(name, (10, 3), problem=problem)
        return
    x, y = numbers()
    y = {"classification": np.digitize(y, [39, 41]), "multilabel": (x[:, :3] > 0).astype(int), "regression": y}[
        problem
    ]
    head = make_head(name, x.shape, C=C, problem=problem).fit(x, y)
    weights, bias = linear_weights(head)
    values = x @ weights.T + bias
    said = values[:, 0] if problem == "regression" else head.decision_function(x)
    np.testing.assert_allclose(values, np.reshape(said, values.shape), rtol=1e-6, atol=1e-8)


def test_a_head_that_is_not_linear_has_no_weights():
    x, y = ternary(40, 30, 2)
    with pytest.raises(InputError, match="KNeighborsClassifier has no weights of features"):
        linear_weights(make_head("knn", x.shape).fit(x, y))
    assert [default_head(problem) for problem in ("classification", "regression")] == ["svm", "ridge"]
