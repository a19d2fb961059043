"""The linear SVM against scikit-learn's LinearSVC, which is its oracle."""

import warnings

import numpy as np
import pytest
from check_svm import best_known, excess, make_problem
from lanes import lanes
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from hf_tl import Embedding, InputError, LinearSVM
from hf_tl.embedding.embedding import LayerColumns
from hf_tl.probes.grid_search import stratified_folds


def ternary(rows, features, classes, seed=0):
    """Rows of {-1, 0, 1} whose class shifts some of the features."""
    generator = np.random.default_rng(seed)
    y = np.arange(rows) % classes
    centres = generator.normal(0, 0.7, (classes, features))
    x = centres[y] + generator.normal(size=(rows, features))
    return np.where(x > 0.15, 1, np.where(x < -0.25, -1, 0)).astype(np.int8), y


def cases():
    """Name, rows, classes, row weights."""
    x, y = ternary(60, 400, 3)
    constant = x.copy()
    constant[:, ::2] = 1
    weights = np.random.default_rng(0).choice([0.0, 0.5, 3.0], 60)
    yield "more features than rows", x, y, None
    yield "duplicate rows", np.concatenate([x[:30], x[:30]]), np.concatenate([y[:30], y[:30]]), None
    yield "constant columns", constant, y, None
    yield "two classes", x, y % 2, None
    yield "one row a class", *ternary(8, 100, 8), None
    yield "more rows than features", *ternary(200, 30, 4), None
    yield "as many rows as features", *ternary(50, 50, 3), None
    yield "60 classes", *ternary(120, 300, 60), None
    yield "row weights", x, y, weights
    yield "float features", x.astype(np.float32) * 0.3 + 0.1, y, None
    yield "float64, far from zero", x * 0.3 + 5.0, y, None
    yield "string labels", x, np.array(["cat", "dog", "eel"])[y], None


def objectives(svm, x, y, weights):
    """What LinearSVC minimises, for each column."""
    x, weights = x.astype(np.float64), np.ones(len(x)) if weights is None else weights
    signs = np.where(y[:, None] == svm.classes_[-len(svm.coef_) :], 1, -1)
    hinge = np.maximum(0, 1 - signs * (x @ svm.coef_.T + svm.intercept_))
    penalty = (svm.coef_**2).sum(axis=1) + svm.intercept_**2
    return penalty / 2 + svm.C * (weights[:, None] * hinge**2).sum(axis=0)


CASES = [  # far from zero, scikit-learn takes 8 s
    pytest.param(*rest, id=name, marks=pytest.mark.slow if name.endswith("far from zero") else ())
    for name, *rest in cases()
]


@pytest.mark.parametrize("C", lanes([1.0, 1e-3], fast=lambda C: C == 1.0))
@pytest.mark.parametrize(("x", "y", "weights"), CASES)
def test_same_solution_as_linearsvc(x, y, weights, C):
    test = ternary(1000, x.shape[1], 3, seed=1)[0].astype(x.dtype)
    ours = LinearSVM(C).fit(x, y, sample_weight=weights)
    oracle = LinearSVC(C=C, tol=1e-6, max_iter=1_000_000, dual=True, random_state=0)
    oracle.fit(x.astype(float), y, sample_weight=weights)
    assert ours.coef_.shape == oracle.coef_.shape
    assert ours.classes_.tolist() == oracle.classes_.tolist()
    np.testing.assert_allclose(objectives(ours, x, y, weights), objectives(oracle, x, y, weights), rtol=1e-5)
    assert (objectives(ours, x, y, weights) <= objectives(oracle, x, y, weights) * (1 + 1e-9)).all()
    np.testing.assert_allclose(ours.decision_function(test), oracle.decision_function(test.astype(float)), atol=1e-3)
    assert (ours.predict(test) == oracle.predict(test.astype(float))).mean() >= 0.999


@pytest.mark.parametrize("n_classes", [2, 3])
def test_class_weights_count_as_in_liblinear(n_classes):
    x, y = ternary(60, 200, n_classes)
    keep = (y != 1) | (np.arange(60) < 12)
    x, y = x[keep], y[keep]
    for weight in ("balanced", {0: 1.0, 1: 5.0} | ({2: 0.5} if n_classes == 3 else {})):
        ours = LinearSVM(1e-3, class_weight=weight).fit(x, y)
        oracle = LinearSVC(C=1e-3, class_weight=weight, tol=1e-8, max_iter=1_000_000, dual=True)
        np.testing.assert_allclose(ours.coef_, oracle.fit(x.astype(float), y).coef_, atol=1e-6)
        features = LinearSVM(1e-3, class_weight=weight, solver="primal", tol=1e-10).fit(x, y)
        np.testing.assert_allclose(ours.coef_, features.coef_, atol=1e-4)


def test_label_sets_are_one_problem_a_label():
    x, y = ternary(60, 200, 3)
    sets = np.stack([y == 0, y <= 1, np.ones(60)], axis=1).astype(int)
    fitted = LinearSVM(1e-3).fit(x, sets)
    for column in (0, 1):
        alone = LinearSVM(1e-3).fit(x, sets[:, column])
        np.testing.assert_allclose(fitted.coef_[column], alone.coef_[0], atol=1e-9)
    assert fitted.predict(x).shape == (60, 3)
    assert fitted.score(x, sets) == 1
    with pytest.raises(ValueError, match="class_weight is for one class a sample"):
        LinearSVM(class_weight="balanced").fit(x, sets)


def test_auto_chooses_c_on_the_training_rows_and_reports_it():
    x, y = ternary(90, 200, 3)
    x[::4] = ternary(90, 200, 3, seed=5)[0][::4]  # noise, so that C matters
    fitted = LinearSVM("auto").fit(x, y)
    assert fitted.search_.grid[0] < fitted.C_ <= fitted.search_.grid[-1]
    assert fitted.search_.accuracy.shape == (9, 5)
    assert str(fitted.search_).startswith(f"C={fitted.C_:.2g} of 9 values from ")
    assert "5 folds of the 90 training samples" in str(fitted.search_)
    np.testing.assert_allclose(fitted.coef_, LinearSVM(fitted.C_).fit(x, y).coef_, atol=1e-9)
    scaled = LinearSVM("auto").fit(x * 8.0, y)
    assert (scaled.search_.accuracy == fitted.search_.accuracy).mean() > 0.9  # only the intercept sees the scale
    held_out = LinearSVM([1e-4, 1e-2], solver="primal").fit(x, y)
    assert held_out.C_ in (1e-4, 1e-2)
    assert "held out of the 90 training samples" in str(held_out.search_)


def test_cross_validation_is_fits_without_the_fold():
    x, y = ternary(60, 200, 3)
    x[::3] = ternary(60, 200, 3, seed=5)[0][::3]
    fitted = LinearSVM([1e-4, 1.0]).fit(x, y)
    fold = stratified_folds(y)
    for i, C in enumerate((1e-4, 1.0)):
        for k in range(5):
            svc = LinearSVC(C=C, tol=1e-8, max_iter=1_000_000, dual=True).fit(x[fold != k].astype(float), y[fold != k])
            assert fitted.search_.accuracy[i, k] == pytest.approx(svc.score(x[fold == k].astype(float), y[fold == k]))


def test_one_row_a_class_leaves_nothing_to_choose_by():
    x, y = ternary(8, 100, 8)
    fitted = LinearSVM("auto").fit(x, y)
    assert "too few samples" in str(fitted.search_)
    assert fitted.score(x, y) == 1


def test_probabilities_through_scikit_learns_calibration():
    x, y = ternary(120, 200, 3)
    calibrated = CalibratedClassifierCV(LinearSVM(1e-3), cv=3).fit(x, y)
    probabilities = calibrated.predict_proba(x)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert (probabilities.argmax(axis=1) == y).mean() > 0.95


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


@pytest.mark.parametrize("weight", [0, -1, np.nan, np.inf])
@pytest.mark.parametrize("solver", ["dual", "primal"])
def test_class_weights_that_are_none_are_refused(weight, solver):
    with pytest.raises(ValueError, match=r"class_weight should be above 0 and finite, got .* by sample_weight"):
        LinearSVM(class_weight={0: weight, 1: 1}, solver=solver).fit(*ternary(10, 20, 2))


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["dual", "primal"])
def test_no_scale_makes_it_inexact_without_a_warning(solver):
    """A sample of what recipes/benchmarks/check_svm.py checks on 500 problems."""
    for seed in range(24 if solver == "dual" else 9):
        problem = make_problem(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            best = best_known(problem)
        above, warned = excess(problem, solver, best)
        assert above <= 1e-3 or (warned and solver == "primal"), seed


@pytest.mark.parametrize("C", [100.0, 1e6])
def test_unscaled_columns_of_a_real_table(C):
    x, y = load_breast_cancer(return_X_y=True)
    ours = LinearSVM(C).fit(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oracle = LinearSVC(C=C, dual=False, tol=1e-10, max_iter=100_000).fit(x, y)
    assert objectives(ours, x, y, None) <= objectives(oracle, x, y, None) * (1 + 1e-5)


def test_c_is_chosen_by_exact_fits_where_scales_differ():
    x, y = load_wine(return_X_y=True)
    fitted = LinearSVM([1e-2, 1e4]).fit(x, y)
    fold = stratified_folds(y)
    for i, C in enumerate((1e-2, 1e4)):
        for k in range(5):
            alone = LinearSVM(C).fit(x[fold != k], y[fold != k])
            assert fitted.search_.accuracy[i, k] == pytest.approx(alone.score(x[fold == k], y[fold == k]), abs=0.03)


@pytest.mark.parametrize("solver", ["dual", "primal"])
def test_features_beyond_float64_are_refused(solver):
    with pytest.raises(ValueError, match="beyond float64"):
        LinearSVM(solver=solver).fit(np.full((4, 3), 1e200) * [[1], [2], [3], [4]], [0, 1, 0, 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"C": 0}, "C should be above 0 and finite, got 0"),
        ({"C": "scale"}, "C should be a number, several numbers or 'auto', got 'scale'"),
        ({"solver": "rows"}, "solver should be 'auto', 'dual' or 'primal', got 'rows'"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LinearSVM(**options).fit(*ternary(10, 20, 2))


@parametrize_with_checks([LinearSVM()])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def test_an_embeddings_own_labels_mean_what_its_table_says():
    x, y = ternary(60, 40, 3)
    layers = (LayerColumns("all", 0, 40, 1.0),)

    def embedded(rows, numbers, names):
        return Embedding(x[rows], layers, np.arange(len(numbers)), numbers, names)

    train, test = slice(0, 40), slice(40, 60)
    svm = LinearSVM().fit(taught := embedded(train, y[train], ("a", "b", "c")), taught.labels)
    turned = embedded(test, (y[test] + 1) % 3, ("c", "a", "b"))
    assert svm.score(turned, turned.labels) == svm.score(x[test], y[test]) > 0.5
    other = embedded(test, y[test], ("a", "b", "d"))
    with pytest.raises(InputError, match=r"class 'd' is none of \['a', 'b', 'c'\]"):
        svm.score(other, other.labels)
