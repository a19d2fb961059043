"""`evaluate.Metric`s over scikit-learn's functions, which need no Hub."""

from __future__ import annotations

from collections.abc import Callable

import datasets
import evaluate
import numpy as np
from sklearn.metrics import accuracy_score, f1_score, recall_score

from hf_tl.errors import InputError


LABELS = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
SCORES = datasets.Features(
    {"predictions": datasets.Sequence(datasets.Value("float64")), "references": datasets.Value("int64")}
)
METRICS: dict[str, Callable[..., float]] = {
    "accuracy": accuracy_score,
    "balanced_accuracy": lambda truth, predicted: recall_score(
        truth, predicted, labels=np.unique(truth), average="macro", zero_division=0
    ),
    "macro_f1": lambda truth, predicted: f1_score(truth, predicted, average="macro", zero_division=0),
}
TOP_K = "top_k_accuracy"


def load_metric(name: str) -> evaluate.Metric:
    """A metric by name: "accuracy", "balanced_accuracy" (mean per-class accuracy), "macro_f1" or "top_k_accuracy".

    Its `compute(predictions=..., references=...)` gives {name: value}, and takes classes (n_samples,) or the scores
    (n_samples, n_classes) of the classes 0, 1, ...; "top_k_accuracy" needs scores, and takes k, 5 by default.

    Args:
        name: as above.

    Raises:
        InputError: another name.
    """
    if name not in (*METRICS, TOP_K):
        raise InputError(f"there is no metric {name!r}; choose one of {', '.join([*METRICS, TOP_K])}")
    return _Metric(name)


class _Metric(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        name = self.config_name
        features = [SCORES] if name == TOP_K else [LABELS, SCORES]
        return evaluate.MetricInfo(description=name, citation="", features=features, module_name=name)

    def _compute(self, predictions: list, references: list, k: int = 5) -> dict[str, float]:
        values, truth = np.asarray(predictions), np.asarray(references)
        if self.config_name != TOP_K:
            classes = values.argmax(axis=1) if values.ndim == 2 else values
            return {self.config_name: float(METRICS[self.config_name](truth, classes))}
        if not 1 <= k <= values.shape[1]:
            raise InputError(f"k should be 1 to {values.shape[1]}, the number of classes, got {k}")
        highest = np.argsort(-values, axis=1, kind="stable")[:, :k]  # scikit-learn's takes no scores of two classes
        return {TOP_K: float((highest == truth[:, None]).any(axis=1).mean())}
