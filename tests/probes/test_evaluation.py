"""What predictions are worth: scores against scikit-learn, confusion by hand, labels of two embeddings in one form."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score, r2_score

from hf_tl import InputError
from hf_tl.intervals import wilson
from hf_tl.probes.evaluation import Evaluation, chance, score_samples


def test_classes(tmp_path):
    truth, predicted = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 1, 0])
    found = Evaluation(truth, predicted, ("cat", "dog", "cow"))
    assert found.scores == pytest.approx(
        {
            "accuracy": 4 / 6,
            "mean accuracy of classes": balanced_accuracy_score(truth, predicted),
            "share of the largest class": 0.5,
        }
    )
    assert (found.confusion == confusion_matrix(truth, predicted)).all()
    lines = found.table().splitlines()
    assert lines[2].split() == ["cat", "3", "2", "0.667", "0.208", "..", "0.939", "dog", "(1)"]
    assert found.confusion_table().splitlines()[-1].split() == ["cow", "1", "0", "0"]
    found.plot(tmp_path / "confusion.svg", title="animals")
    assert (tmp_path / "confusion.svg").stat().st_size > 5000


def test_of_many_classes_the_most_confused_are_listed():
    truth = np.arange(40).astype(str)
    predicted = truth.copy()
    predicted[[3, 7]] = "39"
    lines = Evaluation(truth, predicted).confusion_table().splitlines()
    assert [line.split() for line in lines[2:]] == [["3", "39", "1"], ["7", "39", "1"]]


def test_a_class_that_is_never_tested():
    found = Evaluation(np.array(["a", "b"]), np.array(["a", "c"]))
    assert found.scores["mean accuracy of classes"] == 0.5
    assert found.table().splitlines()[-1].split() == ["c", "0", "0", "-", "never", "tested"]


def test_several_classes_a_sample():
    generator = np.random.default_rng(0)
    truth, predicted = generator.integers(0, 2, (2, 50, 4))
    found = Evaluation(truth, predicted, ("a", "b", "c", "d"))
    assert found.score == pytest.approx(f1_score(truth, predicted, average="micro"))
    assert score_samples(truth, predicted).mean() == pytest.approx(
        f1_score(truth, predicted, average="samples", zero_division=1)
    )
    assert len(found.table().splitlines()) == 6
    assert chance(np.array([[1, 0], [1, 1]])) == pytest.approx((2 / 3 + 1) / 2)  # both are said
    with pytest.raises(InputError, match="one class a sample, got a multilabel"):
        found.confusion_table()


def test_numbers():
    generator = np.random.default_rng(0)
    truth = generator.normal(size=300)
    predicted = truth + 0.3 * generator.normal(size=300)
    found = Evaluation(truth, predicted)
    assert found.score == pytest.approx(r2_score(truth, predicted))
    assert found.scores["MAE"] < found.scores["MAE of the median"]
    assert score_samples(truth, predicted).mean() == pytest.approx(found.score)
    assert "median" in found.table()


def test_what_samples_add_to_r2_varies_as_r2_does():
    generator = np.random.default_rng(1)
    scores, errors = [], []
    for _ in range(300):
        truth = generator.normal(size=200)
        outcomes = score_samples(truth, truth + 0.5 * generator.normal(size=200))
        scores.append(outcomes.mean())
        errors.append(outcomes.std(ddof=1) / np.sqrt(200))
    assert np.mean(errors) == pytest.approx(np.std(scores), rel=0.15)


def test_shapes_that_differ_are_refused():
    with pytest.raises(InputError, match=r"in the shape of the labels, one sample or more, got \(2,\) and \(3,\)"):
        Evaluation(np.zeros(3), np.zeros(2))


def test_a_score_is_said_with_its_interval():
    few = Evaluation(np.array([0, 1, 0, 1, 1]), np.array([0, 1, 0, 1, 0]))
    assert few.interval == wilson(4, 5)
    assert str(few).startswith("accuracy 0.800 (0.376 .. 0.964), mean accuracy of classes 0.833")
    ages = np.arange(40.0)
    low, high = Evaluation(ages, ages + np.where(np.arange(40) % 2, 3, -3)).interval
    assert low < 1 - 9 / ages.var() < high  # R2
    assert Evaluation(ages[:1], ages[:1]).interval is None
