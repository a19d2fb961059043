"""`evaluate.Metric`s that need no Hub: accuracy, mean per-class accuracy, top-k accuracy, macro-averaged F1."""

from __future__ import annotations

import datasets
import evaluate
import numpy as np

from hf_tl.errors import InputError
from hf_tl.probes.learning_curve import per_class_accuracy


CLASSES = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
SCORES = datasets.Features(
    {"predictions": datasets.Sequence(datasets.Value("float64")), "references": datasets.Value("int64")}
)
INPUTS = """
Args:
    predictions: (rows,) classes, or (rows, classes) scores of the classes 0, 1, ...; TopKAccuracy needs scores.
    references: (rows,) true classes.
"""


class Accuracy(evaluate.Metric):
    """Share of rows that are right: {"accuracy": ...}."""

    def _info(self) -> evaluate.MetricInfo:
        return _info("accuracy", "Share of rows that are right.")

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        return {"accuracy": float(np.mean(_classes(predictions) == np.asarray(references)))}


class MeanPerClassAccuracy(evaluate.Metric):
    """The mean of the classes' accuracies, so that a rare class counts as much: {"mean_per_class_accuracy": ...}.

    Classes that have no reference are left out.
    """

    def _info(self) -> evaluate.MetricInfo:
        return _info("mean_per_class_accuracy", "The mean over the classes of the share of their rows that is right.")

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        return {"mean_per_class_accuracy": per_class_accuracy(np.asarray(references), _classes(predictions))}


class MacroF1(evaluate.Metric):
    """The mean of the classes' F1 scores, over classes that are predicted or true anywhere: {"macro_f1": ...}."""

    def _info(self) -> evaluate.MetricInfo:
        return _info("macro_f1", "The unweighted mean over the classes of the harmonic mean of precision and recall.")

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        from sklearn.metrics import f1_score

        return {"macro_f1": float(f1_score(references, _classes(predictions), average="macro", zero_division=0))}


class TopKAccuracy(evaluate.Metric):
    """Share of rows whose class has one of the k highest scores, k = 5 or as `compute` is told: {"top_5": ...}.

    Of equal scores the first classes come first.
    """

    def _info(self) -> evaluate.MetricInfo:
        return _info("top_k", "Share of rows whose class has one of the k highest scores.", features=[SCORES])

    def _compute(self, predictions: list, references: list, k: int = 5) -> dict[str, float]:
        scores, truth = np.asarray(predictions, dtype=np.float64), np.asarray(references)
        if not 1 <= k <= scores.shape[1]:
            raise InputError(f"k should be 1 to {scores.shape[1]}, the number of classes, got {k}")
        highest = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return {f"top_{k}": float((highest == truth[:, None]).any(axis=1).mean())}


def _info(name: str, description: str, features: list[datasets.Features] | None = None) -> evaluate.MetricInfo:
    return evaluate.MetricInfo(
        description=description,
        citation="",
        inputs_description=INPUTS,
        features=features or [CLASSES, SCORES],
        module_name=name,
    )


def _classes(predictions: list) -> np.ndarray:
    values = np.asarray(predictions)
    return values.argmax(axis=1) if values.ndim == 2 else values
