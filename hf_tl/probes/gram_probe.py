"""Probes of sets of layers from inner products: the Gram matrix of several layers is the sum of theirs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hf_tl.embedding.embedding import Embedding
from hf_tl.errors import InputError
from hf_tl.labels import find_problem
from hf_tl.probes.active_set import SampleSpace, solve, warn_if_inexact
from hf_tl.probes.evaluation import chance, label_table, paired_labels, score_samples
from hf_tl.probes.gram import gram
from hf_tl.probes.grid_search import stratified_folds, usable_folds
from hf_tl.probes.one_vs_rest import OneVsRest


LAST = "last"  # the copy of the last layer that an embedding may hold for the usual baseline
Grams = tuple[np.ndarray, np.ndarray | None]
"""Inner products of the training samples, and of test with training samples."""


class GramProbe:
    """Fits and evaluates one set of layers after another, on the same samples.

    Args:
        embedding: training samples with labels.
        test: samples to evaluate on; None to evaluate each training sample by a fit without its fold.
        relative_C: C times the mean squared L2 norm of a sample.
        n_splits: folds, at most so many.
        groups: (n_samples,) training samples of one number stay in one fold.

    Raises:
        InputError: no labels, layers that differ between the samples, or too few samples for folds.

    Attributes:
        spans: the columns of each layer.
        truth: (n_evaluated,) or (n_evaluated, n_classes) labels.
        problem: what is learnt.
        chance: the score of always saying the same.
        evaluated_on: which samples, in words.
    """

    def __init__(
        self,
        embedding: Embedding,
        test: Embedding | None,
        *,
        relative_C: float,
        n_splits: int,
        groups: np.ndarray | None = None,
    ):
        self.spans = [span for span in embedding.layers if span.name != LAST] or list(embedding.layers)
        self.train, self.test = embedding.values, None if test is None else test.values
        self.relative_C, self.fold = relative_C, np.zeros(0, dtype=int)
        if test is None:
            taught = tested = label_table(embedding, "training")
            strata = taught.labels if find_problem(taught.labels) == "classification" else np.zeros(len(taught.labels))
            n_folds = usable_folds(strata, groups=groups, n_splits=n_splits)
            if n_folds == 0:
                raise InputError(f"{len(strata)} samples, about one a class, cannot be split; give test samples")
            self.fold = stratified_folds(strata, n_splits=n_folds, groups=groups)
            self.evaluated_on = f"{len(strata)} training samples, each by a fit without its fold of {n_folds}"
        else:
            if [span.name for span in test.layers] != [span.name for span in embedding.layers]:
                raise InputError(
                    f"training and test samples have different layers: {len(embedding.layers)} and "
                    f"{len(test.layers)}; use the same network and layers for both"
                )
            taught, tested, notes = paired_labels(embedding, test)
            n_test, n_train = len(tested.labels), len(taught.labels)
            self.evaluated_on = "; ".join([f"{n_test} test samples, {n_train} training samples", *notes])
        self.truth, self.problem, self.chance = tested.labels, find_problem(taught.labels), chance(taught.labels)
        if self.problem == "regression":
            self.numbers = taught.labels
            return
        self.columns = OneVsRest.of(taught.labels)
        self.signs = self.columns.signs.astype(np.float64)
        if self.problem == "classification":
            values, counts = np.unique(taught.labels, return_counts=True)
            self.chance = float((self.truth == values[counts.argmax()]).mean())

    def grams(self, *, reverse: bool = False) -> Iterator[Grams]:
        """Of each layer, from data to task or in reverse."""
        for span in reversed(self.spans) if reverse else self.spans:
            own = np.asarray(self.train[:, span.start : span.stop])
            across = None
            if self.test is not None:
                across = gram(np.asarray(self.test[:, span.start : span.stop]), own)
            yield gram(own), across

    def evaluate(self, grams: Grams, *, layer: int | None = None) -> np.ndarray:
        """What each evaluated sample adds to the score, (n_evaluated,): see `score_samples`.

        Args:
            grams: sums over the layers.
            layer: which layer it is, where it is one; of few features, these are faster than their products.
        """
        if self.problem == "regression":
            predicted = self._numbers(*grams)
        else:
            span = None if layer is None else self.spans[layer]
            few = span is not None and span.stop - span.start < len(grams[0])
            X = self.train[:, span.start : span.stop] if span is not None and few else None
            predicted = self.columns.decide(self._decision_values(*grams, X))
        return score_samples(self.truth, predicted)

    def _decision_values(self, among: np.ndarray, across: np.ndarray | None, X: np.ndarray | None) -> np.ndarray:
        """Of SVMs: (n_evaluated, n_columns)."""
        space = SampleSpace(among + 1, X)
        curvature = np.full(self.signs.shape, 2 * self.relative_C / space.gram.diagonal().mean())
        whole = solve(space, self.signs, curvature)
        warn_if_inexact(whole)
        if across is not None:
            return (across + 1) @ whole.alpha
        values = np.empty(self.signs.shape)
        for out in self._folds():
            values[out] = solve(space, self.signs, curvature * ~out[:, None], start=whole.active).values[out]
        return values

    def _numbers(self, among: np.ndarray, across: np.ndarray | None) -> np.ndarray:
        """Of ridge regression: (n_evaluated,)."""
        if across is not None:
            return _ridge(among, across, self.numbers, self.relative_C)
        predicted = np.empty(len(self.numbers))
        for out in self._folds():
            inner, outer = among[np.ix_(~out, ~out)], among[np.ix_(out, ~out)]
            predicted[out] = _ridge(inner, outer, self.numbers[~out], self.relative_C)
        return predicted

    def _folds(self) -> Iterator[np.ndarray]:
        return (self.fold == k for k in range(self.fold.max() + 1))


def _ridge(among: np.ndarray, across: np.ndarray, numbers: np.ndarray, relative_C: float) -> np.ndarray:
    """What ridge regression with a free intercept predicts, from inner products: (n_evaluated,)."""
    mean = among.mean(axis=0)
    centred = among - mean - mean[:, None] + mean.mean()
    alpha = max(among.diagonal().mean(), np.finfo(np.float64).tiny) / relative_C
    dual = np.linalg.solve(centred + alpha * np.eye(len(among)), numbers - numbers.mean())
    return (across - mean) @ dual + numbers.mean()  # the dual coefficients sum to 0
