"""Learning curves: intervals, and sentences that say what the numbers show."""

import numpy as np
import pytest

from hf_tl import InputError, learning_curve
from hf_tl.probes.learning_curve import LearningCurve, fit_power_law, per_class_accuracy


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

    def watch(samples, judged):
        seen.append(samples)
        return samples, judged

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

    def watch(samples, judged):
        values.append(({tuple(row) for row in samples}, {tuple(row) for row in judged}))
        return samples, judged

    learning_curve(few(), shots=(2, 30), n_splits=2, prepare=watch, progress=False)
    assert all(not samples & judged and len(judged) == 30 for samples, judged in values)


def test_mean_per_class_accuracy_is_scikit_learns():
    from sklearn.metrics import balanced_accuracy_score

    generator = np.random.default_rng(0)
    truth, predicted = generator.choice(4, 50, p=[0.7, 0.1, 0.1, 0.1]), generator.integers(0, 4, 50)
    assert per_class_accuracy(truth, predicted) == pytest.approx(balanced_accuracy_score(truth, predicted))


def test_a_power_law_is_found_and_its_range_covers_what_comes():
    shots = np.array([1, 2, 5, 10, 20, 50])
    covered = 0
    for seed in range(60):
        noise = np.random.default_rng(seed).normal(0, 0.02, (6, 5))
        law = fit_power_law(shots, 0.9 - 0.5 * shots[:, None] ** -0.6 + noise)
        low, high = law.range_at(100)
        covered += low <= 0.9 - 0.5 * 100**-0.6 <= high
        assert low <= law.at(100) <= high
        assert law.a <= 1
    assert covered >= 54
    exact = fit_power_law(shots, np.repeat(0.9 - 0.5 * shots[:, None] ** -0.6, 5, axis=1))
    assert (exact.a, exact.b, exact.c) == pytest.approx((0.9, 0.5, 0.6), abs=0.05)


def test_few_points_leave_the_law_open():
    assert curve().law("a") is None
    assert curve().outlook() == ""
    flat = fit_power_law([1, 2, 3, 5], np.full((4, 3), 0.25))
    assert flat.at(1000) == pytest.approx(0.25, abs=0.02)
    wide = fit_power_law([1, 2, 3, 5], np.array([[0.2, 0.4], [0.3, 0.5], [0.4, 0.5], [0.5, 0.6]]))
    low, high = wide.range_at(1000)
    assert high - low > 0.3


def test_a_curve_that_cannot_be_drawn_is_refused():
    from dataclasses import replace

    with pytest.raises(InputError, match="n_splits must be 2 or more"):
        learning_curve(few(), n_splits=1)
    with pytest.raises(InputError, match="the smallest with 40 to draw from"):
        learning_curve(few(), few(60, seed=1), shots=(50,))
    with pytest.raises(InputError, match="no labels"):
        learning_curve(replace(few(), labels=None))
