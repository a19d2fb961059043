"""How sure a classifier may be: one temperature, fitted on samples that it was not trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from hf_tl.classifier.scorer import LinearHead
from hf_tl.classifier.target import cross_entropy
from hf_tl.embedding.embedding import Embedding
from hf_tl.probes.grid_search import stratified_folds, usable_folds
from hf_tl.probes.heads import Head, fit_head


WIDEST = 10.0  # of the logarithm of a temperature
NO_PROBABILITIES = "numbers have no probabilities"
UNCALIBRATED = "not calibrated: no samples were held out"


@dataclass(frozen=True)
class Calibration:
    """The temperature that divides the logits before the softmax, or the sigmoid (Guo et al., ICML 2017, eq. 9).

    It moves all probabilities and no decision.

    Attributes:
        temperature: above 1 makes a classifier less sure, below 1 more.
        how: what it was fitted on, in words.
        before: mean cross entropy of those samples in nats, at temperature 1; None where nothing was fitted.
        after: the same at this temperature.
    """

    temperature: float = 1.0
    how: str = UNCALIBRATED
    before: float | None = None
    after: float | None = None

    def __str__(self) -> str:
        if self.before is None:
            return self.how
        return (
            f"temperature {self.temperature:.3g}, fitted on {self.how}: "
            f"cross entropy {self.before:.3f} -> {self.after:.3f}"
        )


def calibrate(logits: np.ndarray, truth: np.ndarray, *, how: str) -> Calibration:
    """The temperature of the least cross entropy on held-out samples.

    A classifier that is right about all of them would become sure without limit; so the true class's target is
    (n + 1) / (n + k) rather than 1, with n samples and k classes, and the rest is shared, as Platt's method (1999,
    sec. 2.2) does for two classes. Of several classes a sample, each is one of two, there or not, by itself.

    Args:
        logits: (n, n_classes), of samples that the classifier was not trained on.
        truth: (n,) numbers of their classes, or (n, n_classes) of 0 and 1.
        how: what they are, in words.
    """
    n, k = logits.shape
    logits = logits.astype(np.float64)
    if truth.ndim == 2:
        targets = (truth * n + 1) / (n + 2)
    else:
        targets = np.full((n, k), 1 / (n + k))
        targets[np.arange(n), truth] = (n + 1) / (n + k)

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        if truth.ndim == 2:
            return cross_entropy(scaled, targets)
        return float(-(targets * log_softmax(scaled, axis=1)).sum(axis=1).mean())

    found = minimize_scalar(loss, bounds=(-WIDEST, WIDEST), method="bounded", options={"xatol": 1e-5})
    temperature = float(np.exp(found.x))
    return Calibration(temperature, how, cross_entropy(logits, truth), cross_entropy(logits / temperature, truth))


def calibrate_on_folds(
    train: Embedding,
    truth: np.ndarray,
    make: Callable[[tuple[int, int]], Head],
    *,
    n_outputs: int,
    groups: np.ndarray | None = None,
) -> Calibration:
    """The temperature by cross-validation: each fold's logits are of a head that was fitted on the others.

    Args:
        train: the training samples.
        truth: (n,) numbers of their classes, or (n, n_classes) of 0 and 1.
        make: shape of the samples -> a linear head.
        n_outputs: of the head.
        groups: (n,) samples of one number are in one fold.
    """
    strata = truth if truth.ndim == 1 else np.zeros(len(truth), dtype=int)
    n_folds = usable_folds(strata, groups=groups)
    if not n_folds:
        return Calibration(how="not calibrated: too few training samples a class to hold some out")
    fold = stratified_folds(strata, n_splits=n_folds, groups=groups)
    logits = np.full((len(train), n_outputs), np.nan)
    for k in range(n_folds):
        kept, out = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        if truth.ndim == 1 and len(np.unique(truth[kept])) < n_outputs:
            continue  # a class of one sample cannot be learnt here
        part = train[kept]
        inside = None if groups is None else groups[kept]
        fitted = fit_head(make(part.shape), part.values, truth[kept], groups=inside)
        logits[out] = LinearHead.of(fitted, n_outputs=n_outputs)(np.asarray(train[out].values))
    used = np.isfinite(logits).all(axis=1)
    if not used.any():
        return Calibration(how="not calibrated: a class has one training sample only")
    return calibrate(logits[used], truth[used], how=f"{n_folds} folds of the {len(train)} training samples")
