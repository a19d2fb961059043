"""The metrics against scikit-learn, offline, alone and combined."""

import evaluate
import numpy as np
import pytest
from sklearn import metrics

from hf_tl import Accuracy, InputError, MacroF1, MeanPerClassAccuracy, TopKAccuracy


@pytest.fixture
def judged():
    generator = np.random.default_rng(0)
    return generator.normal(size=(80, 7)), generator.choice(7, 80, p=[0.4, 0.2, 0.1, 0.1, 0.1, 0.05, 0.05])


def expected(scores, truth):
    predicted = scores.argmax(axis=1)
    return {
        "accuracy": metrics.accuracy_score(truth, predicted),
        "mean_per_class_accuracy": metrics.balanced_accuracy_score(truth, predicted),
        "macro_f1": metrics.f1_score(truth, predicted, average="macro"),
        "top_5": metrics.top_k_accuracy_score(truth, scores, k=5, labels=range(7)),
    }


def test_each_is_scikit_learns_from_classes_or_scores(judged):
    scores, truth = judged
    for metric in (Accuracy(), MeanPerClassAccuracy(), MacroF1(), TopKAccuracy()):
        found = metric.compute(predictions=scores, references=truth)
        assert found == pytest.approx({name: expected(scores, truth)[name] for name in found})
        if not isinstance(metric, TopKAccuracy):
            assert metric.compute(predictions=scores.argmax(axis=1), references=truth) == found
    assert list(TopKAccuracy().compute(predictions=scores, references=truth, k=2)) == ["top_2"]


def test_combined_and_in_batches(judged):
    scores, truth = judged
    combined = evaluate.combine([Accuracy(), MeanPerClassAccuracy(), MacroF1(), TopKAccuracy()])
    for part in np.array_split(np.arange(80), 3):
        combined.add_batch(predictions=scores[part].tolist(), references=truth[part].tolist())
    assert combined.compute() == pytest.approx(expected(scores, truth))


def test_top_k_of_too_few_classes_is_refused():
    with pytest.raises(InputError, match="k should be 1 to 3, the number of classes, got 5"):
        TopKAccuracy().compute(predictions=np.zeros((4, 3)), references=[0, 1, 2, 0])
