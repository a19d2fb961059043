"""Which layers to use: the score of each layer, of every range of depth, and of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from hf_tl import plots
from hf_tl.embedding.embedding import Embedding
from hf_tl.errors import InputError
from hf_tl.intervals import mean_interval, paired_gain, simultaneous_confidence
from hf_tl.probes.evaluation import METRICS
from hf_tl.probes.gram_probe import GramProbe, Grams
from hf_tl.probes.grid_search import N_SPLITS
from hf_tl.table import as_html, format_table


RELATIVE_C = 10.0  # C times the mean squared L2 norm of a sample: the same for a narrow and a wide layer


@dataclass(frozen=True)
class Probed:
    """What one set of layers reaches.

    Attributes:
        name: the layer's name, or "first .. last" of a range.
        n_features: number of columns.
        outcomes: (n_samples,) what each evaluated sample adds to the score, 1 where its class is right.
        confidence: of its interval; more than 0.95 for the best of several, chosen on the same samples, whose interval
            holds in 95 % of cases only if those of all would.
    """

    name: str
    n_features: int
    outcomes: np.ndarray
    confidence: float = 0.95

    @property
    def score(self) -> float:
        """The mean outcome: the accuracy of classes, F1 of several classes a sample, R2 of numbers."""
        return float(self.outcomes.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """Of the score, 95 %."""
        return mean_interval(self.outcomes, confidence=self.confidence)


@dataclass(frozen=True)
class LayerProbes:
    """Every layer evaluated on the same samples.

    Attributes:
        single: one a layer, from data to task.
        first_to: of the layers 0 .. i, for each i.
        to_last: of the layers i .. last, for each i.
        depths: (n_layers,) 0 for the layer nearest to the data, 1 for the one nearest to the task.
        chance: the score of always saying the most frequent class or classes, or the mean.
        evaluated_on: which samples, in words.
        metric: what is measured: "accuracy", "F1" or "R2".
        untrained: the same layers of the same network with random weights, or None.
        places: of each layer in the network, see `LayerColumns.place`; empty where they are not known.
    """

    single: tuple[Probed, ...]
    first_to: tuple[Probed, ...]
    to_last: tuple[Probed, ...]
    depths: tuple[float, ...]
    chance: float
    evaluated_on: str
    metric: str = "accuracy"
    untrained: LayerProbes | None = None
    places: tuple[str, ...] = ()

    @property
    def whole(self) -> Probed:
        """All layers."""
        return self.first_to[-1]

    @property
    def best_layer(self) -> Probed:
        """The single layer with the highest score."""
        return _best(self.single)

    @property
    def best_range(self) -> Probed:
        """The range, or the whole, with the highest score; the one with fewest features of several."""
        return _best(sorted((*self.first_to, *self.to_last), key=lambda probed: probed.n_features))

    def gains(self, *, simultaneous: bool = False) -> list[tuple[float, float, float]]:
        """For each single layer, what all layers have over it, with the paired 95 % interval.

        Args:
            simultaneous: whether all intervals hold at once in 95 % of cases, so that the layer may be chosen by them.
        """
        gained = self.whole.outcomes - _outcomes(self.single)
        confidence = simultaneous_confidence(gained) if simultaneous else 0.95
        return [paired_gain(self.whole.outcomes, probed.outcomes, confidence=confidence) for probed in self.single]

    def table(self) -> str:
        """One row a layer: alone, with all before it, with all after it, and the whole's gain over it alone."""
        header = ["layer", "features", "alone", "95 %", "first .. here", "here .. last", "all - alone", "95 %"]
        rows = []
        for i, (probed, gain) in enumerate(zip(self.single, self.gains(), strict=True)):
            row = [
                probed.name,
                probed.n_features,
                probed.score,
                _span(probed.interval),
                self.first_to[i].score,
                self.to_last[i].score,
                f"{gain[0]:+.3f}",
                _signed_span(gain[1:]),
            ]
            rows.append(row if self.untrained is None else [*row, self.untrained.single[i].score])
        return format_table(header if self.untrained is None else [*header, "random weights"], rows)

    def __str__(self) -> str:
        whole, layer, best, n_layers = self.whole, self.best_layer, self.best_range, len(self.single)
        gains = self.gains(simultaneous=True)
        gain = gains[int(np.argmax([probed.score for probed in self.single]))]
        lines = [
            f"all {n_layers} layers: {self.metric} {whole.score:.3f} ({_span(whole.interval)}), "
            f"{whole.n_features:,} features; chance {self.chance:.3f}; {self.evaluated_on}",
            f"best single layer: {layer.name}, {layer.score:.3f} ({_span(layer.interval)}); "
            f"all layers have {gain[0]:+.3f} ({_signed_span(gain[1:])}, paired) over it",
            f"best range: {best.name}, {best.score:.3f} ({_span(best.interval)}), {best.n_features:,} features",
            f"all layers are above {sum(g[0] > 0 for g in gains)} of {n_layers} single layers, "
            f"clearly (the paired interval excludes 0) above {sum(low > 0 for _, low, _ in gains)}",
            f"the best is chosen on the same samples: its {self.metric} is an optimistic guess, its 95 % intervals "
            f"are wide enough for the choice among {n_layers}",
        ]
        if self.untrained is not None:
            lines.append(
                f"the same network with random weights: all layers {self.untrained.whole.score:.3f}, "
                f"best single layer {self.untrained.best_layer.name}, {self.untrained.best_layer.score:.3f}"
            )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return as_html(f"{self.table()}\n\n{self}")

    def plot(self, path: str | Path, *, title: str, level: Literal["block", "layer"] = "block") -> None:
        """Draws the score against depth.

        Args:
            path: of the picture; its ending says which kind, ".png" or ".svg".
            title: above it.
            level: "block" for the last layer of each block, with all up to and all from that block on; or "layer".
        """
        blocks = _blocks(self.places) if level == "block" else []
        what = "block" if blocks else "layer"
        blocks = blocks or [(str(i), i, i) for i in range(len(self.single))]
        at = np.arange(len(blocks))
        last, first = [end for _, _, end in blocks], [start for _, start, _ in blocks]
        alone = [self.single[i].score for i in last]
        low, high = np.array([self.single[i].interval for i in last]).T
        kind = "ridge regression, 1 / alpha" if self.metric == "R2" else "linear SVM, C"
        caption = f"bands: 95 % intervals; {kind} = {RELATIVE_C:g} / mean squared norm; {self.evaluated_on}"
        with plots.picture(path, title=title, size=(8, 5.4), caption=caption) as (panel,):
            plots.band(panel, at, low, high, color=plots.SKY)
            one = "last layer of one block" if what == "block" else "one layer alone"
            plots.curve(panel, at, alone, color=plots.BLUE, marker="o", label=one)
            below, above = [self.first_to[i].score for i in last], [self.to_last[i].score for i in first]
            plots.curve(panel, at, below, color=plots.GREEN, style="dashed", label=f"first {what} .. this one")
            plots.curve(panel, at, above, color=plots.ORANGE, style="dashdot", label=f"this {what} .. last")
            plots.level(panel, self.whole.score, color="#1f3864", label="all layers", interval=self.whole.interval)
            if self.untrained is not None:
                scores = [self.untrained.single[i].score for i in last]
                plots.curve(panel, at, scores, color=plots.DARK_GREY, style="dotted", label=f"{one}, random weights")
            plots.level(panel, self.chance, color=plots.DARK_GREY, label="chance")
            best, lowest = int(np.argmax(alone)), max(-1.0, min(0.0, *alone))
            named = f"best alone: {self.single[last[best]].name}, {alone[best]:.3f}"
            plots.curve(panel, [best], [alone[best]], color="#1f3864", marker="*", label=named)
            names = [name for name, _, _ in blocks] if what == "block" else []
            plots.axes(
                panel,
                x=f"{what}, from data to task",
                y=self.metric,
                x_names=names,
                between=(lowest, 1),
                whole=what == "layer",
            )
            plots.legend(panel)


def _blocks(places: Sequence[str]) -> list[tuple[str, int, int]]:
    """(name, its first layer, its last) of each block, in order; empty where places are unknown or all are one."""
    blocks: list[tuple[str, int, int]] = []
    for i, place in enumerate(places):
        name = place.partition("/")[0] or (blocks[-1][0] if blocks else "stem")
        if blocks and blocks[-1][0] == name:
            blocks[-1] = (name, blocks[-1][1], i)
        else:
            blocks.append((name, i, i))
    return blocks if len(blocks) > 1 else []


def layer_probes(
    embedding: Embedding,
    test: Embedding | None = None,
    *,
    untrained: tuple[Embedding, Embedding | None] | None = None,
    relative_C: float = RELATIVE_C,
    n_splits: int = N_SPLITS,
    groups: np.ndarray | None = None,
    progress: bool = True,
) -> LayerProbes:
    """Evaluates a linear SVM on each layer, on each range that starts at the first or ends at the last, and on all.

    Of labels that are numbers, ridge regression takes its place.

    The Gram matrix of several layers is the sum of theirs, so the ranges cost no products of features. A layer
    called "last" beside others is a copy of one of them, for the usual baseline, and is left out.

    Args:
        embedding: training samples with labels.
        test: samples to evaluate on; None to evaluate each training sample by a fit without its fold.
        untrained: the same for the same network with random weights: training samples, and test samples or
            None.
        relative_C: C times the mean squared L2 norm of a sample, one for all layers: none is favoured by a search.
        n_splits: folds, at most so many; without `test` only.
        groups: (n_samples,) training samples of one number, such as copies, stay in one fold; without `test` only.
        progress: whether a progress bar is drawn.

    Raises:
        InputError: no labels, layers that differ between the samples, or too few samples for folds.
    """
    if not relative_C > 0:
        raise InputError(f"relative_C must be above 0, got {relative_C}")
    probe = GramProbe(embedding, test, relative_C=relative_C, n_splits=n_splits, groups=groups)
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
            untrained[0], untrained[1], relative_C=relative_C, n_splits=n_splits, groups=groups, progress=progress
        )
    n_layers = len(probe.spans)
    single, first_to, to_last = [], [], []

    def evaluated(grams: Grams, layers: range) -> Probed:
        spans = [probe.spans[i] for i in layers]
        name = spans[0].name if len(spans) == 1 else f"{spans[0].name} .. {spans[-1].name}"
        outcomes = probe.evaluate(grams, layer=layers[0] if len(spans) == 1 else None)
        return Probed(name, sum(span.stop - span.start for span in spans), outcomes)

    with tqdm(total=3 * n_layers, desc="layers", unit="probe", disable=not progress) as bar:
        before = after = None
        for i, (own, backward) in enumerate(zip(probe.grams(), probe.grams(reverse=True), strict=True)):
            single.append(evaluated(own, range(i, i + 1)))
            before = own if before is None else _add(before, own)
            first_to.append(evaluated(before, range(i + 1)))
            after = backward if after is None else _add(after, backward)
            to_last.append(evaluated(after, range(n_layers - 1 - i, n_layers)))
            bar.update(3)
    return LayerProbes(
        single=tuple(single),
        first_to=tuple(first_to),
        to_last=tuple(reversed(to_last)),
        depths=tuple(span.depth for span in probe.spans),
        chance=probe.chance,
        evaluated_on=probe.evaluated_on,
        metric=METRICS[probe.problem],
        untrained=baseline,
        places=tuple(getattr(span, "place", "") for span in probe.spans),  # features of one's own lie nowhere
    )


def _add(first: Grams, second: Grams) -> Grams:
    return first[0] + second[0], None if first[1] is None else first[1] + second[1]


def _best(probes: Sequence[Probed]) -> Probed:
    """The first with the highest accuracy; its interval allows for the choice."""
    best = max(probes, key=lambda probed: probed.score)
    return replace(best, confidence=simultaneous_confidence(_outcomes(probes)))


def _outcomes(probes: Sequence[Probed]) -> np.ndarray:
    return np.array([probed.outcomes for probed in probes], dtype=np.float64)


def _span(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.3f} .. {interval[1]:.3f}"


def _signed_span(interval: tuple[float, float]) -> str:
    return f"{interval[0]:+.3f} .. {interval[1]:+.3f}"
