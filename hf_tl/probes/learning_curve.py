"""Test accuracy against training samples per class, for several methods on the same draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from sklearn.metrics import recall_score
from tqdm import tqdm

from hf_tl import plots
from hf_tl.embedding.embedding import Embedding
from hf_tl.errors import InputError
from hf_tl.intervals import half_width
from hf_tl.probes.gram import labels_of_test, required_labels
from hf_tl.probes.grid_search import Cost
from hf_tl.probes.heads import HeadMaker, make_head
from hf_tl.table import format_table


SHOTS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 75, 100)
N_SPLITS = 5
HELD_OUT = 0.25  # of the samples are evaluated where no test samples are given
Prepare = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
FEWEST = 4  # points for three parameters and a residual
EXPONENTS = np.geomspace(0.05, 3, 60)
LEAST_ERROR = 2e-3  # of a mean accuracy: draws that agree by chance are not that sure
CHI_SQUARE = 3.841  # 95 % quantile, one degree of freedom
KNOWN = {"full network": 0, "last layer": 1, "from scratch": 4, "raw pixels": 5}  # method -> its style in every plot


@dataclass(frozen=True)
class LearningCurve:
    """What each method reaches with how many training samples.

    Attributes:
        shots: training samples per class, ascending.
        accuracy: method -> (shots, draws) test accuracies; a draw's samples are the same for every method.
        chance: the accuracy of guessing.
        metric: what is measured, in words.
        overlap: for each number of samples, the share of them that a draw has in common with another; empty for
            draws that have none.
        outcomes: method -> (shots, draws, n_test) bool, which test samples are right, where that is known.
        labels: (draws, n_test) their classes.
        test_overlap: the share of its test samples that a draw has in common with another.
    """

    shots: tuple[int, ...]
    accuracy: dict[str, np.ndarray]
    chance: float
    metric: str = "test accuracy"
    overlap: tuple[float, ...] = ()
    outcomes: dict[str, np.ndarray] = field(default_factory=dict)
    labels: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    test_overlap: float = 1.0

    def beside(self, other: LearningCurve) -> LearningCurve:
        """The methods of both, measured with the same shots, draws and metric.

        Args:
            other: the other curve; where both have a method of one name, its values count.

        Raises:
            InputError: curves that cannot be compared.
        """
        shapes = {np.shape(draws) for curve in (self, other) for draws in curve.accuracy.values()}
        if self.shots != other.shots or self.metric != other.metric or len(shapes) > 1:
            raise InputError(
                f"curves over the same shots, draws and metric can stand side by side, got {self.metric} at "
                f"{_listed(self.shots)} and {other.metric} at {_listed(other.shots)}"
            )
        outcomes = {**self.outcomes, **other.outcomes}
        return replace(self, accuracy={**self.accuracy, **other.accuracy}, outcomes=outcomes)

    def half_widths(self, method: str, *, over: str | None = None) -> np.ndarray:
        """Half the width of the 95 % interval of each mean, (shots,); infinite where all draws are the same samples.

        It is that of the accuracy expected of new samples: draws from the same samples, tested on the same samples,
        differ less than that.

        Args:
            method: by its name in `accuracy`.
            over: another method, for the interval of the difference.
        """
        draws, outcomes = self.accuracy[method], self.outcomes.get(method)
        if over is not None:
            draws = draws - self.accuracy[over]
            if outcomes is not None:
                outcomes = outcomes.astype(np.int8) - self.outcomes[over] if over in self.outcomes else None
        overlap = self.overlap or (0.0,) * len(self.shots)
        own, shared = (np.zeros(len(self.shots)),) * 2 if outcomes is None else self._test_variance(outcomes)
        return np.array(
            [half_width(row, overlap=overlap[i], own=own[i], shared=shared[i]) for i, row in enumerate(draws)]
        )

    def law(self, method: str) -> PowerLaw | None:
        """a - b n^-c through a method's means; None for fewer than four shots."""
        if len(self.shots) < FEWEST:
            return None
        return fit_power_law(self.shots, self.accuracy[method].mean(axis=1), self.half_widths(method) / 2)

    def outlook(self) -> str:
        """What twice the samples would give each method, in sentences, with the range that the fits leave open."""
        lines = []
        for method in self.accuracy:
            law = self.law(method)
            if law is not None:
                n = 2 * self.shots[-1]
                low, high = law.range_at(n)
                expected = f"{law.at(n):.2f} ({low:.2f} .. {high:.2f})"
                lines.append(f"{method}: {law}; with {n} samples per class it leads one to expect {expected}")
        return "\n".join(lines)

    def table(self) -> str:
        """Mean and 95 % interval, one row a method, one column a number of samples per class."""
        widths = {method: self.half_widths(method) for method in self.accuracy}
        rows = [
            [method, *(_with_interval(row.mean(), half) for row, half in zip(draws, widths[method], strict=True))]
            for method, draws in self.accuracy.items()
        ]
        table = format_table(["samples per class", *(str(n) for n in self.shots)], rows)
        if any(np.isinf(half).any() for half in widths.values()):
            table += "\n± ?: all draws are the same samples, so they say nothing about others"
        return table

    def compare(self, first: str, second: str) -> str:
        """Where one method beats another, in a sentence.

        A difference counts where its 95 % interval, paired by draws and test samples, excludes 0.

        Args:
            first: a method, by its name in `accuracy`.
            second: another.
        """
        ahead: dict[str, list[int]] = {first: [], second: [], "neither": [], "unknown": []}
        gaps = (self.accuracy[first] - self.accuracy[second]).mean(axis=1)
        for n_samples, gap, half in zip(self.shots, gaps, self.half_widths(first, over=second), strict=True):
            winner = first if gap > half else second if gap < -half else "neither" if np.isfinite(half) else "unknown"
            ahead[winner].append(n_samples)
        parts = [
            f"{winner} beats {loser} at {_listed(ahead[winner])}"
            for winner, loser in ((first, second), (second, first))
            if ahead[winner]
        ]
        if ahead["neither"]:
            parts.append(f"no clear difference between {first} and {second} at {_listed(ahead['neither'])}")
        if ahead["unknown"]:
            parts.append(f"nothing can be said (all draws are the same samples) at {_listed(ahead['unknown'])}")
        text = "; ".join(parts)
        return f"{text[0].upper()}{text[1:]} samples per class."

    def best(self) -> str:
        """The method with the highest mean where samples are most, in a sentence."""
        means = {method: float(accuracy[-1].mean()) for method, accuracy in self.accuracy.items()}
        method = max(means, key=means.__getitem__)
        return f"With {self.shots[-1]} samples per class the highest mean is that of {method}: {means[method]:.2f}."

    def plot(self, path: str | Path, *, title: str, note: str = "", extrapolate: bool = False) -> None:
        """Draws one curve a method, with 95 % intervals, into a PNG or SVG file.

        Args:
            path: the file.
            title: above the axes.
            note: below them.
            extrapolate: whether fitted power laws are drawn, up to twice the samples, with their range.
        """
        shots, middle = np.asarray(self.shots), (len(self.accuracy) - 1) / 2
        n_draws = next(iter(self.accuracy.values())).shape[1]
        caption = f"mean and 95 % interval of {n_draws} draws" + (f"; {note}" if note else "")
        with plots.picture(path, title=title, size=(7.2, 4.6), caption=caption) as (panel,):
            for i, (method, accuracy) in enumerate(self.accuracy.items()):
                color, marker = plots.SERIES[KNOWN.get(method, i % len(plots.SERIES))]
                beside = shots * (1 + 0.02 * (i - middle))  # so that no interval hides another
                errors = self.half_widths(method)
                errors[np.isinf(errors)] = np.nan
                means = accuracy.mean(axis=1)
                plots.curve(panel, beside, means, color=color, label=method, marker=marker, errors=errors)
                law = self.law(method) if extrapolate else None
                if law is not None:
                    ahead = np.geomspace(shots[0], 2 * shots[-1], 60)
                    plots.curve(panel, ahead, law.at(ahead), color=color, dashed=True)
                    beyond = np.geomspace(shots[-1], 2 * shots[-1], 12)
                    low, high = np.array([law.range_at(n) for n in beyond]).T
                    plots.band(panel, beyond, low, high, color=color)
            plots.level(panel, self.chance, label="chance")
            x = "training samples per class"
            plots.axes(panel, x=x, y=self.metric, x_at=self.shots, log="x", between=(0, 1))
            plots.legend(panel)

    def _test_variance(self, outcomes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What the choice of test samples adds to the variance of each draw alone, and of all alike: two of (shots,).

        Of the mean per-class accuracy; a quarter is added to the squares of a class: no error is no certainty.
        """
        if self.test_overlap == 1:
            outcomes = outcomes.mean(axis=1, keepdims=True)
        variance = np.zeros(outcomes.shape[:2])
        for j in range(outcomes.shape[1]):
            classes = np.unique(self.labels[j])
            for value in classes:
                mine = outcomes[:, j, self.labels[j] == value]
                n = mine.shape[1]
                squares = np.square(mine - mine.mean(axis=1, keepdims=True)).sum(axis=1)
                variance[:, j] += (squares + 0.25) / (n * (n + 1)) / len(classes) ** 2
        return (1 - self.test_overlap) * variance.mean(axis=1), self.test_overlap * variance.mean(axis=1)


def learning_curve(
    embedding: Embedding,
    test: Embedding | None = None,
    *,
    shots: Sequence[int] = SHOTS,
    n_splits: int = N_SPLITS,
    head: str | HeadMaker = "svm",
    C: Cost = "auto",
    prepare: Prepare | None = None,
    method: str = "full network",
    random_state: int = 0,
    progress: bool = True,
) -> LearningCurve:
    """What a classifier reaches with few samples per class: mean per-class accuracy.

    The samples of a draw are nested: five contain the two that two contain. Whatever is chosen, such as C, is chosen
    on the samples themselves; no further ones help.

    Args:
        embedding: features with labels, from which samples are drawn.
        test: samples to evaluate on; None to hold out a quarter of each class, another in each draw.
        shots: samples per class, ascending; numbers that the smallest class cannot give are left out.
        n_splits: draws, 2 or more.
        head: see `make_head`.
        C: see `make_head`.
        prepare: (values of the samples, values of the test samples) -> their features, for features that are scaled
            with statistics of the samples alone; None to take the values as they are.
        method: what the curve is called.
        random_state: decides the draws; the same for the same labels, so that curves can be compared in pairs.
        progress: whether a progress bar is drawn.

    Raises:
        InputError: no labels, fewer than two draws, or no number of samples that every class has.
    """
    labels = required_labels(embedding, "training")
    if n_splits < 2:
        raise InputError(f"n_splits must be 2 or more, for an interval, got {n_splits}")
    classes, counts = np.unique(labels, return_counts=True)
    fewest = int(counts.min()) if test is not None else int(counts.min() - np.ceil(counts.min() * HELD_OUT))
    used = tuple(sorted({int(n) for n in shots if 1 <= n <= fewest}))
    if not used or len(classes) < 2:
        raise InputError(
            f"expected two classes or more with at least {min(shots, default=1)} samples each, got {len(classes)} "
            f"classes, the smallest with {fewest} to draw from; give more samples, or fewer shots"
        )
    accuracy, right, truths = np.zeros((len(used), n_splits)), [], []
    with tqdm(total=accuracy.size, desc=f"learning curve, {method}", unit="fit", disable=not progress) as bar:
        for j in range(n_splits):
            pool, evaluated, truth = _split(embedding, test, labels, random_state=random_state + j)
            order = np.random.default_rng((random_state, j)).permutation(pool)
            truths.append(truth)
            right.append(np.zeros((len(used), len(truth)), dtype=bool))
            for i, n in enumerate(used):
                samples = np.sort(np.concatenate([order[labels[order] == value][:n] for value in classes]))
                values = np.asarray(embedding.values[samples])
                features, others = prepare(values, evaluated) if prepare is not None else (values, evaluated)
                fitted = make_head(head, features.shape, C=C, random_state=random_state).fit(features, labels[samples])
                predicted = fitted.predict(others)
                accuracy[i, j] = recall_score(truth, predicted, labels=np.unique(truth), average="macro")
                right[j][i] = predicted == truth
                bar.update()
    return LearningCurve(
        shots=used,
        accuracy={method: accuracy},
        chance=1 / len(classes),
        metric="mean per-class accuracy",
        overlap=tuple(float(np.mean(n / counts)) for n in used),
        outcomes={method: np.stack(right, axis=1)},
        labels=np.array(truths),
        test_overlap=HELD_OUT if test is None else 1.0,
    )


def _split(
    embedding: Embedding, test: Embedding | None, labels: np.ndarray, *, random_state: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The samples to draw from, and the values and labels of those to evaluate on."""
    if test is not None:
        return np.arange(len(labels)), np.asarray(test.values), labels_of_test(test, embedding)
    generator, out = np.random.default_rng(random_state), np.zeros(len(labels), dtype=bool)
    for value in np.unique(labels):  # StratifiedShuffleSplit may leave a small class untested, or take half of it
        mine = generator.permutation(np.flatnonzero(labels == value))
        out[mine[: int(np.ceil(len(mine) * HELD_OUT))]] = True
    return np.flatnonzero(~out), np.asarray(embedding.values[np.flatnonzero(out)]), labels[out]


def _with_interval(mean: float, half: float) -> str:
    return f"{mean:.2f} ± {'?' if np.isinf(half) else f'{half:.2f}'}"


def _listed(numbers: Sequence[int]) -> str:
    words = [str(n) for n in numbers]
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


@dataclass(frozen=True)
class PowerLaw:
    """Accuracy a - b n^-c after n samples per class.

    Attributes:
        a: where it leads.
        b: what is missing at n = 1.
        c: how fast it is made up for.
        plausible: (laws, 3) every (a, b, c) whose fit is not worse at the 5 % level: what the range is made of.
        errors: (laws, 2, 2) covariances of their (a, b).
    """

    a: float
    b: float
    c: float
    plausible: np.ndarray
    errors: np.ndarray

    def at(self, n: float | np.ndarray) -> float | np.ndarray:
        """The accuracy with n samples per class, 1 at most."""
        return np.minimum(self.a - self.b * np.asarray(n, dtype=np.float64) ** -self.c, 1.0)[()]

    def range_at(self, n: float) -> tuple[float, float]:
        """The lowest and highest accuracy that the plausible laws give, each with its own 95 % error, in [0, 1]."""
        a, b, c = self.plausible.T
        with_n = np.stack([np.ones_like(c), -(n**-c)], axis=1)
        middle = a - b * n**-c
        half = 1.96 * np.sqrt(np.einsum("li,lij,lj->l", with_n, self.errors, with_n))
        return float(np.clip((middle - half).min(), 0, 1)), float(np.clip((middle + half).max(), 0, 1))

    def __str__(self) -> str:
        low, high = self.range_at(1e9)
        return f"{self.a:.2f} - {self.b:.2f} n^-{self.c:.2f}, leading to {low:.2f} .. {high:.2f}"


def fit_power_law(shots: Sequence[int], accuracy: np.ndarray, errors: np.ndarray) -> PowerLaw:
    """Weighted least squares, the exponent by profile likelihood.

    For each exponent, a and b are a linear fit; the exponents whose fit is not significantly worse than the best
    stay in the range. Where the points scatter more than their errors allow, all errors are widened to match. Errors
    of different shots are taken as independent, which nested samples are not quite.

    Args:
        shots: samples per class, four numbers or more.
        accuracy: (shots,) means.
        errors: (shots,) their standard errors; infinite for a mean that does not count.
    """
    n, means, error = np.asarray(shots, dtype=np.float64), accuracy, np.maximum(errors, LEAST_ERROR)
    laws, misfits, covariances = [], [], []
    for c in EXPONENTS:
        design = np.stack([np.ones_like(n), -(n**-c)], axis=1) / error[:, None]
        covariance = np.linalg.pinv(design.T @ design)
        a, b = covariance @ (design.T @ (means / error))
        if b < 0:
            a, b = np.average(means, weights=error**-2.0), 0.0
        if a > 1:  # no accuracy leads beyond 1: the best b for a = 1
            a, missing = 1.0, design[:, 1]
            b = missing @ ((means - 1) / error) / (missing @ missing)
        laws.append((a, b, c))
        misfits.append(float((((a - b * n**-c - means) / error) ** 2).sum()))
        covariances.append(covariance)
    best = int(np.argmin(misfits))
    widened = max(1.0, misfits[best] / max(np.isfinite(error).sum() - 3, 1))
    kept = np.asarray(misfits) <= misfits[best] + CHI_SQUARE * widened
    a, b, c = laws[best]
    plausible = np.asarray(laws)[kept], np.asarray(covariances)[kept] * widened
    return PowerLaw(float(a), float(b), float(c), *plausible)
