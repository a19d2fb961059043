"""The linear SVM against scikit-learn's LinearSVC, which is its oracle."""

import numpy as np
import pytest
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from hf_tl import LinearSVM


def ternary(rows, features, classes, seed=0):
    """Rows of {-1, 0, 1} whose class shifts some of the features."""
    generator = np.random.default_rng(seed)
    y = np.arange(rows) % classes
    centres = generator.normal(0, 0.7, (classes, features))
    x = centres[y] + generator.normal(size=(rows, features))
    return np.where(x > 0.15, 1, np.where(x < -0.25, -1, 0)).astype(np.int8), y


def cases():
    x, y = ternary(60, 400, 3)
    duplicates = np.concatenate([x[:30], x[:30]])
    constant = x.copy()
    constant[:, ::2] = 1
    yield "more features than rows", x, y
    yield "duplicate rows", duplicates, np.concatenate([y[:30], y[:30]])
    yield "constant features", constant, y
    yield "two classes", x, y % 2
    yield "one row a class", *ternary(8, 100, 8)
    yield "more rows than features", *ternary(200, 30, 4)
    yield "as many rows as features", *ternary(50, 50, 3)
    yield "float features", x.astype(np.float32) * 0.3 + 0.1, y
    yield "string labels", x, np.array(["cat", "dog", "eel"])[y]


@pytest.mark.parametrize("C", [1.0, 1e-3])
@pytest.mark.parametrize(("x", "y"), [pytest.param(x, y, id=name) for name, x, y in cases()])
def test_same_solution_as_linearsvc(x, y, C):
    test = ternary(300, x.shape[1], 3, seed=1)[0].astype(x.dtype)
    ours = LinearSVM(C).fit(x, y)
    oracle = LinearSVC(C=C, tol=1e-8, max_iter=1_000_000, dual=True, random_state=0).fit(x.astype(float), y)
    assert ours.coef_.shape == oracle.coef_.shape
    np.testing.assert_allclose(ours.coef_, oracle.coef_, atol=1e-5)
    np.testing.assert_allclose(ours.intercept_, oracle.intercept_, atol=1e-5)
    np.testing.assert_allclose(ours.decision_function(test), oracle.decision_function(test.astype(float)), atol=1e-3)
    assert (ours.predict(test) == oracle.predict(test.astype(float))).mean() >= 0.999
    assert ours.classes_.tolist() == oracle.classes_.tolist()
    assert ours.score(x, y) == oracle.score(x.astype(float), y)


def test_class_weight_is_passed_on():
    x, y = ternary(60, 200, 3)
    keep = (y != 2) | (np.arange(60) < 12)
    x, y = x[keep], y[keep]
    ours = LinearSVM(1e-3, class_weight="balanced").fit(x, y)
    oracle = LinearSVC(C=1e-3, class_weight="balanced", tol=1e-8, max_iter=1_000_000, dual=True).fit(
        x.astype(float), y
    )
    np.testing.assert_allclose(ours.coef_, oracle.coef_, atol=1e-6)
    plain = LinearSVM(1e-3).fit(x, y)
    assert not np.allclose(ours.coef_, plain.coef_, atol=1e-6)


def test_the_factor_has_the_same_gram_matrix_and_drops_what_is_redundant():
    x, _ = ternary(20, 9000, 2)  # more than one part of features
    x = np.concatenate([x, x[:5]])
    assert factor.shape[1] == 20
    np.testing.assert_allclose(factor @ factor.T, x.astype(float) @ x.T.astype(float), atol=1e-8)
    np.testing.assert_allclose(factor @ ((vectors / scale).T @ x), x, atol=1e-9)


def test_all_zero_features_are_no_crash():
    x = np.zeros((4, 10), np.int8)
    fitted = LinearSVM().fit(x, [0, 1, 0, 1])
    assert not fitted.coef_.any()
    assert fitted.predict(x).shape == (4,)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.ones((3, 5)), ["cat"] * 3, r"expected two classes or more, got one class only: \['cat'\]"),
        (np.full((3, 5), np.nan), [0, 1, 0], "NaN"),
        (np.ones((3, 5)), [0, 1], "inconsistent numbers of samples"),
        (np.ones((3, 5)), [0.1, 0.7, 0.3], "Unknown label type"),
    ],
)
def test_wrong_input_is_refused(x, y, message):
    with pytest.raises(ValueError, match=message):
        LinearSVM().fit(x, y)


@parametrize_with_checks([LinearSVM()])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)
