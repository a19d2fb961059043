"""Learning curves: intervals, and sentences that say what the numbers show."""

import numpy as np
import pytest
from scipy import stats

from hf_tl import LearningCurve
from hf_tl.probes.learning_curve import half_width


def curve():
    generator = np.random.default_rng(0)
    noise = generator.normal(0, 0.01, (3, 5))
    return LearningCurve(
        (1, 5, 20),
        {"a": np.array([[0.5], [0.6], [0.7]]) + noise, "b": np.array([[0.5], [0.5], [0.9]]) + noise[::-1]},
        chance=0.2,
    )


def test_interval_is_students():
    draws = np.array([0.5, 0.6, 0.4, 0.55])
    low, high = stats.t.interval(0.95, 3, loc=draws.mean(), scale=stats.sem(draws))
    assert half_width(draws) == pytest.approx((high - low) / 2)


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
