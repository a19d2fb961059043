"""The metrics against scikit-learn, offline, alone and combined."""

import evaluate
import numpy as np
import pytest
from sklearn import metrics

from hf_tl import InputError, load_metric


NAMES = ("accuracy", "balanced_accuracy", "macro_f1", "top_k_accuracy")


@pytest.fixture
def scored():
    generator = np.random.default_rng(0)
    return generator.normal(size=(80, 7)), generator.choice(7, 80, p=[0.4, 0.2, 0.1, 0.1, 0.1, 0.05, 0.05])


def expected(scores, truth):
    predicted = scores.argmax(axis=1)
    return {
        "accuracy": metrics.accuracy_score(truth, predicted),
        "balanced_accuracy": metrics.balanced_accuracy_score(truth, predicted),
        "macro_f1": metrics.f1_score(truth, predicted, average="macro"),
        "top_k_accuracy": metrics.top_k_accuracy_score(truth, scores, k=5, labels=range(7)),
    }


@pytest.mark.parametrize("name", NAMES)
def test_each_is_scikit_learns_from_classes_or_scores(scored, name):
    scores, truth = scored
    metric = load_metric(name)
    found = metric.compute(predictions=scores, references=truth)
    assert found == pytest.approx({name: expected(scores, truth)[name]})
    if name != "top_k_accuracy":
        assert metric.compute(predictions=scores.argmax(axis=1), references=truth) == found


def test_combined_and_in_batches(scored):
    scores, truth = scored
    combined = evaluate.combine([load_metric(name) for name in NAMES])
    for part in np.array_split(np.arange(80), 3):
        combined.add_batch(predictions=scores[part].tolist(), references=truth[part].tolist())
    assert combined.compute() == pytest.approx(expected(scores, truth))


def test_top_k_of_two_classes_and_of_another_k():
    scores = [[-3.0, -1.0], [4.0, 2.0], [0.1, 0.2]]
    top = load_metric("top_k_accuracy")
    assert top.compute(predictions=scores, references=[1, 1, 1], k=1) == pytest.approx({"top_k_accuracy": 2 / 3})
    assert top.compute(predictions=scores, references=[1, 1, 1], k=2) == {"top_k_accuracy": 1.0}


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(InputError, match="k should be 1 to 3, the number of classes, got 5"):
        load_metric("top_k_accuracy").compute(predictions=np.zeros((4, 3)), references=[0, 1, 2, 0])
    with pytest.raises(InputError, match="there is no metric 'f1'; choose one of accuracy, balanced_accuracy, macro"):
        load_metric("f1")
