"""Learning curves: intervals, and sentences that say what the numbers show."""

from dataclasses import replace

import numpy as np
import pytest

from hf_tl import InputError, learning_curve
from hf_tl.intervals import half_width
from hf_tl.probes.learning_curve import LearningCurve, fit_power_law


def curve():
    generator = np.random.default_rng(0)
    noise = generator.normal(0, 0.01, (3, 5))
    return LearningCurve(
        (1, 5, 20),
        {"a": np.array([[0.5], [0.6], [0.7]]) + noise, "b": np.array([[0.5], [0.5], [0.9]]) + noise[::-1]},
        chance=0.2,
    )


def test_the_sentence_follows_the_numbers():
    assert curve().compare("a", "b") == (
        "A beats b at 5; b beats a at 20; no clear difference between a and b at 1 samples per class."
    )
    assert curve().compare("b", "a").startswith("B beats a at 20; a beats b at 5; ")
    assert curve().best() == "With 20 samples per class the highest mean is that of b: 0.90."


def test_paired_differences_count_not_overlapping_intervals():
    level = np.array([[0.3, 0.5, 0.7, 0.9, 0.1]])
    paired = LearningCurve((1,), {"a": level + 0.05 + np.arange(5) * 1e-4, "b": level}, chance=0.2)
    assert paired.compare("a", "b") == "A beats b at 1 samples per class."


def test_table_has_a_row_a_method_and_a_column_a_size():
    lines = curve().table().splitlines()
    assert lines[0].split() == ["samples", "per", "class", "1", "5", "20"]
    assert [line[0] for line in lines[2:]] == ["a", "b"]
    assert lines[3].count("±") == 3


@pytest.mark.parametrize("name", ["curve.png", "curve.svg"])
def test_plot_writes_a_picture(tmp_path, name):
    curve().plot(tmp_path / name, title="title", note="note")
    assert (tmp_path / name).stat().st_size > 5000


def few(rows=120, classes=3, seed=0):
    from test_layer_probes import Features, Span

    generator = np.random.default_rng(seed)
    y = np.arange(rows) % classes
    centres = np.random.default_rng(9).normal(0, 0.4, (classes, 60))
    return Features(centres[y] + generator.normal(size=(rows, 60)), (Span("layer", 0, 60, 0.0),), y)


def test_samples_are_nested_chosen_by_class_and_the_same_for_every_curve():
    seen = []

    def watch(samples, evaluated):
        seen.append(samples)
        return samples, evaluated

    train, test = few(), few(60, seed=1)
    found = learning_curve(train, test, shots=(1, 2, 5, 99), n_splits=2, prepare=watch, progress=False)
    assert found.shots == (1, 2, 5)  # the smallest class has 40
    assert [len(samples) for samples in seen] == [3, 6, 15] * 2
    for smaller, larger in ((seen[0], seen[1]), (seen[1], seen[2]), (seen[3], seen[4])):
        assert {tuple(row) for row in smaller} < {tuple(row) for row in larger}
    assert not np.array_equal(seen[0], seen[3])
    again = learning_curve(train, test, shots=(1, 2, 5), n_splits=2, method="again", progress=False)
    np.testing.assert_array_equal(again.accuracy["again"], found.accuracy["full network"])
    both = found.beside(again)
    assert list(both.accuracy) == ["full network", "again"]
    assert found.accuracy["full network"][-1].mean() > found.accuracy["full network"][0].mean()
    with pytest.raises(InputError, match="curves over the same shots"):
        found.beside(curve())


def test_without_test_rows_a_quarter_is_held_out_and_never_sampled():
    values = []

    def watch(samples, evaluated):
        values.append(({tuple(row) for row in samples}, {tuple(row) for row in evaluated}))
        return samples, evaluated

    learning_curve(few(), shots=(2, 30), n_splits=2, prepare=watch, progress=False)
    assert all(not samples & evaluated and len(evaluated) == 30 for samples, evaluated in values)


def test_it_is_the_mean_of_the_classes_accuracies():
    """Two classes of three are told apart by the one sample each; the third, rare in the test samples, never."""
    values, labels = np.eye(3)[[0, 1, 2]], np.arange(3)
    test = replace(few(), values=np.eye(3)[[0, 0, 0, 1, 0]], labels=np.array([0, 0, 0, 1, 2]))
    found = learning_curve(replace(few(), values=values, labels=labels), test, shots=(1,), n_splits=2, progress=False)
    np.testing.assert_allclose(found.accuracy["full network"], 2 / 3)


def test_draws_that_are_all_the_same_samples_claim_nothing():
    train, test = few(60), few(60, seed=1)
    all_of_them = learning_curve(train, test, shots=(5, 20), progress=False)
    other = learning_curve(few(60, seed=3), test, shots=(5, 20), method="other", progress=False)
    both = all_of_them.beside(other)
    assert np.isfinite(both.half_widths("other")).tolist() == [True, False]
    assert "± ?" in both.table().splitlines()[2]
    assert both.table().endswith("± ?: all draws are the same samples, so they say nothing about others")
    compared = both.compare("other", "full network")
    assert compared.endswith("nothing can be said (all draws are the same samples) at 20 samples per class.")


def test_intervals_are_wider_where_draws_share_samples():
    apart = half_width(np.array([0.5, 0.6, 0.4, 0.55]))
    draws = np.tile([0.5, 0.6, 0.4, 0.55], (2, 1))
    curve = LearningCurve((1, 2), {"a": draws}, chance=0.2, overlap=(0.0, 0.5))
    assert curve.half_widths("a") == pytest.approx([apart, apart * np.sqrt(7 / 3)])


@pytest.mark.slow
@pytest.mark.parametrize("held_out", [False, True])
def test_intervals_hold_the_accuracy_of_new_samples(held_out):
    """recipes/benchmarks/check_intervals.py at a small size."""
    options, n, covered = {"shots": (1, 10, 30), "C": 1.0, "progress": False}, 25, np.zeros(3)
    many = [learning_curve(pairs(40, i), pairs(1000, 999), n_splits=2, random_state=i, **options) for i in range(n)]
    expected = np.mean([curve.accuracy["full network"].mean(axis=1) for curve in many], axis=0)
    for i in range(n):
        train, test = pairs(54 if held_out else 40, 1000 + i), None if held_out else pairs(100, 2000 + i)
        curve = learning_curve(train, test, random_state=i, **options)
        covered += abs(curve.accuracy["full network"].mean(axis=1) - expected) <= curve.half_widths("full network")
    assert (covered >= 0.8 * n).all()


def pairs(n, seed):
    """Two classes of n, hard to tell apart."""
    y = np.repeat([0, 1], n)
    values = np.random.default_rng(seed).normal(size=(2 * n, 6)) + 0.35 * (2 * y[:, None] - 1)
    return replace(few(), values=values, labels=y)


def fit(shots, accuracy):
    return fit_power_law(shots, accuracy.mean(axis=1), accuracy.std(axis=1, ddof=1) / np.sqrt(accuracy.shape[1]))


def test_a_power_law_is_found_and_its_range_covers_what_comes():
    shots = np.array([1, 2, 5, 10, 20, 50])
    covered = 0
    for seed in range(60):
        noise = np.random.default_rng(seed).normal(0, 0.02, (6, 5))
        law = fit(shots, 0.9 - 0.5 * shots[:, None] ** -0.6 + noise)
        low, high = law.range_at(100)
        covered += low <= 0.9 - 0.5 * 100**-0.6 <= high
        assert low <= law.at(100) <= high
        assert law.a <= 1
    assert covered >= 54
    exact = fit(shots, np.repeat(0.9 - 0.5 * shots[:, None] ** -0.6, 5, axis=1))
    assert (exact.a, exact.b, exact.c) == pytest.approx((0.9, 0.5, 0.6), abs=0.05)


def test_a_law_is_never_surer_of_more_samples_than_laws_have_been_right():
    shots = np.array([1, 2, 5, 10, 20, 50])
    exact = fit(shots, np.repeat(0.9 - 0.5 * shots[:, None] ** -0.6, 5, axis=1))
    floors = [exact.misfit_at(n) for n in (20, 50, 100, 200, 400)]
    assert floors[:2] == [0, 0]  # among the points, nothing is added
    assert 0 < floors[2] < floors[3] < floors[4]
    for n, floor in zip((20, 50, 100, 200, 400), floors, strict=True):
        low, high = exact.range_at(n)
        assert low <= exact.at(n) - floor
        assert high >= min(exact.at(n) + floor, 1)
    scattered = fit(shots, 0.9 - 0.5 * shots[:, None] ** -0.6 + np.random.default_rng(0).normal(0, 0.2, (6, 5)))
    low, high = scattered.range_at(100)
    assert high - low > 3 * scattered.misfit_at(100)  # a range that is wide by itself stays what it is


def test_few_points_leave_the_law_open():
    assert curve().law("a") is None
    assert curve().outlook() == ""
    flat = fit([1, 2, 3, 5], np.full((4, 3), 0.25))
    assert flat.at(1000) == pytest.approx(0.25, abs=0.02)
    wide = fit([1, 2, 3, 5], np.array([[0.2, 0.4], [0.3, 0.5], [0.4, 0.5], [0.5, 0.6]]))
    low, high = wide.range_at(1000)
    assert high - low > 0.3


def test_a_curve_that_cannot_be_drawn_is_refused():
    with pytest.raises(InputError, match="n_splits must be 2 or more"):
        learning_curve(few(), n_splits=1)
    with pytest.raises(InputError, match="the median with 40 to draw from"):
        learning_curve(few(), few(60, seed=1), shots=(50,))
    with pytest.raises(InputError, match="no labels"):
        learning_curve(replace(few(), labels=None))
