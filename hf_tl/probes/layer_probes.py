"""Which layers to use: the accuracy of each layer, of every range of depth, and of all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from hf_tl import plots
from hf_tl.embedding.embedding import Embedding
from hf_tl.errors import InputError
from hf_tl.intervals import paired_gain, simultaneous_confidence, wilson
from hf_tl.probes.active_set import SampleSpace, solve, warn_if_inexact
from hf_tl.probes.gram import gram, labels_of_test, required_labels
from hf_tl.probes.grid_search import N_SPLITS, stratified_folds, usable_folds
from hf_tl.probes.labels import OneVsRest
from hf_tl.table import format_table


RELATIVE_C = 10.0  # C times the mean squared L2 norm of a sample: the same for a narrow and a wide layer
LAST = "last"  # the copy of the last layer that an embedding may hold for the usual baseline


@dataclass(frozen=True)
class Probed:
    """What one set of layers reaches.

    Attributes:
        name: the layer's name, or "first .. last" of a range.
        n_features: number of columns.
        right: (n_samples,) bool, which of the evaluated samples it got right.
        confidence: of its interval; more than 0.95 for the best of several, chosen on the same samples, whose interval
            holds in 95 % of cases only if those of all would.
    """

    name: str
    n_features: int
    right: np.ndarray
    confidence: float = 0.95

    @property
    def accuracy(self) -> float:
        """Share of samples that are right."""
        return float(self.right.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """Of the accuracy, 95 %."""
        return wilson(int(self.right.sum()), len(self.right), confidence=self.confidence)


@dataclass(frozen=True)
class LayerProbes:
    """Every layer evaluated on the same samples.

    Attributes:
        single: one a layer, from data to task.
        first_to: of the layers 0 .. i, for each i.
        to_last: of the layers i .. last, for each i.
        depths: (n_layers,) 0 for the layer nearest to the data, 1 for the one nearest to the task.
        chance: accuracy of always saying the most frequent class.
        evaluated_on: which samples, in words.
        untrained: the same layers of the same network with random weights, or None.
    """

    single: tuple[Probed, ...]
    first_to: tuple[Probed, ...]
    to_last: tuple[Probed, ...]
    depths: tuple[float, ...]
    chance: float
    evaluated_on: str
    untrained: LayerProbes | None = None

    @property
    def whole(self) -> Probed:
        """All layers."""
        return self.first_to[-1]

    @property
    def best_layer(self) -> Probed:
        """The single layer with the highest accuracy."""
        return _best(self.single)

    @property
    def best_range(self) -> Probed:
        """The range, or the whole, with the highest accuracy; the one with fewest features of several."""
        return _best(sorted((*self.first_to, *self.to_last), key=lambda probed: probed.n_features))

    def gains(self, *, simultaneous: bool = False) -> list[tuple[float, float, float]]:
        """For each single layer, what all layers have over it, with the paired 95 % interval.

        Args:
            simultaneous: whether all intervals hold at once in 95 % of cases, so that the layer may be chosen by them.
        """
        gained = self.whole.right - _outcomes(self.single)
        confidence = simultaneous_confidence(gained) if simultaneous else 0.95
        return [paired_gain(self.whole.right, probed.right, confidence=confidence) for probed in self.single]

    def table(self) -> str:
        """One row a layer: alone, with all before it, with all after it, and the whole's gain over it alone."""
        header = ["layer", "features", "alone", "95 %", "first .. here", "here .. last", "all - alone", "95 %"]
        rows = []
        for i, (probed, gain) in enumerate(zip(self.single, self.gains(), strict=True)):
            row = [
                probed.name,
                probed.n_features,
                probed.accuracy,
                _span(probed.interval),
                self.first_to[i].accuracy,
                self.to_last[i].accuracy,
                f"{gain[0]:+.3f}",
                _signed_span(gain[1:]),
            ]
            rows.append(row if self.untrained is None else [*row, self.untrained.single[i].accuracy])
        return format_table(header if self.untrained is None else [*header, "random weights"], rows)

    def __str__(self) -> str:
        whole, layer, best, n_layers = self.whole, self.best_layer, self.best_range, len(self.single)
        gains = self.gains(simultaneous=True)
        gain = gains[int(np.argmax([probed.accuracy for probed in self.single]))]
        lines = [
            f"all {n_layers} layers: {whole.accuracy:.3f} ({_span(whole.interval)}), "
            f"{whole.n_features:,} features; chance {self.chance:.3f}; {self.evaluated_on}",
            f"best single layer: {layer.name}, {layer.accuracy:.3f} ({_span(layer.interval)}); "
            f"all layers have {gain[0]:+.3f} ({_signed_span(gain[1:])}, paired) over it",
            f"best range: {best.name}, {best.accuracy:.3f} ({_span(best.interval)}), {best.n_features:,} features",
            f"all layers are above {sum(g[0] > 0 for g in gains)} of {n_layers} single layers, "
            f"clearly (the paired interval excludes 0) above {sum(low > 0 for _, low, _ in gains)}",
            f"the best is chosen on the same samples: its accuracy is an optimistic guess, its 95 % intervals are "
            f"wide enough for the choice among {n_layers}",
        ]
        if self.untrained is not None:
            lines.append(
                f"the same network with random weights: all layers {self.untrained.whole.accuracy:.3f}, "
                f"best single layer {self.untrained.best_layer.name}, {self.untrained.best_layer.accuracy:.3f}"
            )
        return "\n".join(lines)

    def plot(self, path: str | Path, *, title: str) -> None:
        """Draws accuracy against depth.

        Args:
            path: of the picture; its ending says which kind, ".png" or ".svg".
            title: above it.
        """
        at, alone = np.arange(len(self.single)), [probed.accuracy for probed in self.single]
        low, high = np.array([probed.interval for probed in self.single]).T
        caption = f"bands: 95 % intervals; linear SVM, C = {RELATIVE_C:g} / mean squared norm; {self.evaluated_on}"
        with plots.picture(path, title=title, size=(8, 5.2), caption=caption) as (panel,):
            plots.band(panel, at, low, high, color=plots.SKY)
            plots.curve(panel, at, alone, color=plots.BLUE, marker="o", label="one layer alone")
            for probes, color, label in (
                (self.first_to, plots.GREEN, "first layer .. this one"),
                (self.to_last, plots.ORANGE, "this layer .. last"),
            ):
                plots.curve(panel, at, [probed.accuracy for probed in probes], color=color, label=label)
            plots.level(panel, self.whole.accuracy, color="#1f3864", label="all layers", interval=self.whole.interval)
            if self.untrained is not None:
                accuracies = [probed.accuracy for probed in self.untrained.single]
                plots.curve(panel, at, accuracies, color=plots.GREY, label="one layer alone, random weights")
            plots.level(panel, self.chance, label="chance")
            best = int(np.argmax(alone))
            named = f"best alone: {self.single[best].name}, {alone[best]:.3f}"
            plots.curve(panel, [best], [alone[best]], color="#1f3864", marker="*", label=named)
            plots.axes(panel, x="layer, from data to task", y="accuracy", between=(0, 1), whole=True)
            plots.legend(panel)


def layer_probes(
    embedding: Embedding,
    test: Embedding | None = None,
    *,
    untrained: tuple[Embedding, Embedding | None] | None = None,
    relative_C: float = RELATIVE_C,
    n_splits: int = N_SPLITS,
    progress: bool = True,
) -> LayerProbes:
    """Evaluates a linear SVM on each layer, on each range that starts at the first or ends at the last, and on all.

    The Gram matrix of several layers is the sum of theirs, so the ranges cost no products of features. A layer
    called "last" beside others is a copy of one of them, for the usual baseline, and is left out.

    Args:
        embedding: training samples with labels.
        test: samples to evaluate on; None to evaluate each training sample by a fit without its fold.
        untrained: the same for the same network with random weights: training samples, and test samples or
            None.
        relative_C: C times the mean squared L2 norm of a sample, one for all layers: none is favoured by a search.
        n_splits: folds, at most so many; without `test` only.
        progress: whether a progress bar is drawn.

    Raises:
        InputError: no labels, layers that differ between the samples, or too few samples for folds.
    """
    if not relative_C > 0:
        raise InputError(f"relative_C must be above 0, got {relative_C}")
    evaluate = _Evaluation(embedding, test, relative_C, n_splits)
    baseline = None
    if untrained is not None:
        if [span.name for span in untrained[0].layers] != [span.name for span in embedding.layers]:
            raise InputError(
                f"the untrained network has other layers: {len(untrained[0].layers)} against {len(embedding.layers)}; "
                f"embed the same architecture with the same taps"
            )
        if (untrained[1] is None) != (test is None):
            raise InputError("give test samples of the untrained network if and only if there are test samples")
        baseline = layer_probes(
            untrained[0], untrained[1], relative_C=relative_C, n_splits=n_splits, progress=progress
        )
    n_layers = len(evaluate.spans)
    single, first_to, to_last = [], [], []
    with tqdm(total=3 * n_layers, desc="layers", unit="probe", disable=not progress) as bar:
        before = after = None
        for i, (own, backward) in enumerate(zip(evaluate.grams(), evaluate.grams(reverse=True), strict=True)):
            single.append(evaluate(own, [i], narrow=True))
            before = own if before is None else _add(before, own)
            first_to.append(evaluate(before, range(i + 1)))
            after = backward if after is None else _add(after, backward)
            to_last.append(evaluate(after, range(n_layers - 1 - i, n_layers)))
            bar.update(3)
    return LayerProbes(
        single=tuple(single),
        first_to=tuple(first_to),
        to_last=tuple(reversed(to_last)),
        depths=tuple(span.depth for span in evaluate.spans),
        chance=evaluate.chance,
        evaluated_on=evaluate.evaluated_on,
        untrained=baseline,
    )


Grams = tuple[np.ndarray, np.ndarray | None]
"""Inner products of the training samples, and of test with training samples."""


class _Evaluation:
    """Fits and evaluates one set of layers after another, on the same samples."""

    def __init__(self, embedding: Embedding, test: Embedding | None, relative_C: float, n_splits: int):
        labels = required_labels(embedding, "training")
        self.spans = [span for span in embedding.layers if span.name != LAST] or list(embedding.layers)
        self.train, self.test = embedding.values, None if test is None else test.values
        self.relative_C, self.columns = relative_C, OneVsRest.of(labels)
        self.signs = self.columns.signs.astype(np.float64)
        if test is None:
            n_folds = usable_folds(labels, n_splits=n_splits)
            if n_folds == 0:
                raise InputError(f"{len(labels)} samples, about one a class, cannot be split; give test samples")
            self.fold, self.truth = stratified_folds(self.columns.strata, n_splits=n_folds), labels
            self.evaluated_on = f"{len(labels)} training samples, each by a fit without its fold of {n_folds}"
        else:
            if [span.name for span in test.layers] != [span.name for span in embedding.layers]:
                raise InputError(
                    f"training and test samples have different layers: {len(embedding.layers)} and "
                    f"{len(test.layers)}; use the same network and layers for both"
                )
            self.fold, self.truth = np.zeros(0, dtype=int), labels_of_test(test, embedding)
            self.evaluated_on = f"{len(self.truth)} test samples, {len(labels)} training samples"
        values, counts = np.unique(labels, return_counts=True)
        self.chance = float((self.truth == values[counts.argmax()]).mean())

    def grams(self, *, reverse: bool = False) -> Iterator[Grams]:
        """Of each layer."""
        for span in reversed(self.spans) if reverse else self.spans:
            own = np.asarray(self.train[:, span.start : span.stop])
            across = None
            if self.test is not None:
                across = gram(np.asarray(self.test[:, span.start : span.stop]), own)
            yield gram(own), across

    def __call__(self, grams: Grams, layers: Sequence[int], *, narrow: bool = False) -> Probed:
        spans = [self.spans[i] for i in layers]
        among, across = grams[0] + 1, grams[1]
        n_features = sum(span.stop - span.start for span in spans)
        one_layer = narrow and n_features < len(among)
        space = SampleSpace(among, self.train[:, spans[0].start : spans[0].stop] if one_layer else None)
        curvature = np.full(self.signs.shape, 2 * self.relative_C / among.diagonal().mean())
        whole = solve(space, self.signs, curvature)
        warn_if_inexact(whole)
        if across is not None:
            values = (across + 1) @ whole.alpha
        else:
            values = np.empty(self.signs.shape)
            for k in range(self.fold.max() + 1):
                out = self.fold == k
                part = solve(space, self.signs, curvature * ~out[:, None], start=whole.active)
                values[out] = part.values[out]
        right = self.columns.decide(values) == self.truth
        name = spans[0].name if len(spans) == 1 else f"{spans[0].name} .. {spans[-1].name}"
        return Probed(name, n_features, right)


def _add(first: Grams, second: Grams) -> Grams:
    return first[0] + second[0], None if first[1] is None else first[1] + second[1]


def _best(probes: Sequence[Probed]) -> Probed:
    """The first with the highest accuracy; its interval allows for the choice."""
    best = max(probes, key=lambda probed: probed.accuracy)
    return replace(best, confidence=simultaneous_confidence(_outcomes(probes)))


def _outcomes(probes: Sequence[Probed]) -> np.ndarray:
    return np.array([probed.right for probed in probes], dtype=np.float64)


def _span(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.3f} .. {interval[1]:.3f}"


def _signed_span(interval: tuple[float, float]) -> str:
    return f"{interval[0]:+.3f} .. {interval[1]:+.3f}"
