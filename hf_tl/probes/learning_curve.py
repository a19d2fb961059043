"""Test accuracy against training samples per class, for several methods on the same draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from hf_tl.embedding.embedding import Embedding
from hf_tl.errors import InputError
from hf_tl.intervals import half_width
from hf_tl.probes.gram import required_labels
from hf_tl.probes.heads import HeadMaker, make_head
from hf_tl.table import format_table


SHOTS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 75, 100)
N_SPLITS = 5
HELD_OUT = 4  # one row in so many is judged where no test rows are given
Prepare = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
FEWEST = 4  # points for three parameters and a residual
EXPONENTS = np.geomspace(0.05, 3, 60)
LEAST_ERROR = 2e-3  # of a mean accuracy: draws that agree by chance are not that sure
CHI_SQUARE = 3.841  # 95 % quantile, one degree of freedom
STYLES = (("#1f4e8c", "D"), ("#d1752b", "^"), ("#3f8f5f", "v"), ("#8e5ea2", "P"), ("#5b9bd5", "o"), ("#8c8c8c", "s"))
KNOWN = {"full network": STYLES[0], "last layer": STYLES[1], "from scratch": STYLES[4], "raw pixels": STYLES[5]}


@dataclass(frozen=True)
class LearningCurve:
    """What each method reaches with how many training samples.

    Attributes:
        shots: training samples per class, ascending.
        accuracy: method -> (shots, draws) test accuracies; a draw's rows are the same for every method.
        chance: the accuracy of guessing.
        metric: what is measured, in words.
    """

    shots: tuple[int, ...]
    accuracy: dict[str, np.ndarray]
    chance: float
    metric: str = "test accuracy"

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
        return replace(self, accuracy={**self.accuracy, **other.accuracy})

    def law(self, method: str) -> PowerLaw | None:
        """a - b n^-c through a method's means; None for fewer than four shots."""
        accuracy = self.accuracy[method]
        return fit_power_law(self.shots, accuracy) if len(self.shots) >= FEWEST else None

    def outlook(self) -> str:
        """What twice the samples would give each method, in sentences, with the range that the fits leave open."""
        lines = []
        for method in self.accuracy:
            law = self.law(method)
            if law is not None:
                n = 2 * self.shots[-1]
                low, high = law.range_at(n)
                said = f"{law.at(n):.2f} ({low:.2f} .. {high:.2f})"
                lines.append(f"{method}: {law}; with {n} samples per class it leads one to expect {said}")
        return "\n".join(lines)

    def table(self) -> str:
        """Mean and 95 % interval, one row a method, one column a number of samples per class."""
        rows = [
            [method, *(f"{draws.mean():.2f} ± {half_width(draws):.2f}" for draws in accuracy)]
            for method, accuracy in self.accuracy.items()
        ]
        return format_table(["samples per class", *(str(n) for n in self.shots)], rows)

    def compare(self, first: str, second: str) -> str:
        """Where one method beats another, in a sentence.

        A difference counts where the 95 % interval of its mean over the draws, paired, excludes 0.

        Args:
            first: a method, by its name in `accuracy`.
            second: another.
        """
        ahead: dict[str, list[int]] = {first: [], second: [], "neither": []}
        for n_samples, a, b in zip(self.shots, self.accuracy[first], self.accuracy[second], strict=True):
            gap, margin = float((a - b).mean()), half_width(a - b)
            ahead[first if gap > margin else second if gap < -margin else "neither"].append(n_samples)
        parts = [
            f"{winner} beats {loser} at {_listed(ahead[winner])}"
            for winner, loser in ((first, second), (second, first))
            if ahead[winner]
        ]
        if ahead["neither"]:
            parts.append(f"no clear difference between {first} and {second} at {_listed(ahead['neither'])}")
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
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.2, 4.6), layout="constrained", dpi=150)
        axes = figure.add_subplot()
        shots, middle = np.asarray(self.shots), (len(self.accuracy) - 1) / 2
        for i, (method, accuracy) in enumerate(self.accuracy.items()):
            colour, marker = KNOWN.get(method, STYLES[i % len(STYLES)])  # a method looks the same in every plot
            axes.errorbar(
                shots * (1 + 0.02 * (i - middle)),  # side by side, so that no interval hides another
                accuracy.mean(axis=1),
                yerr=[half_width(draws) for draws in accuracy],
                color=colour,
                marker=marker,
                markersize=5,
                capsize=3,
                linewidth=1.8,
                elinewidth=1,
                label=method,
            )
            law = self.law(method) if extrapolate else None
            if law is not None:
                ahead = np.geomspace(shots[0], 2 * shots[-1], 60)
                axes.plot(ahead, law.at(ahead), color=colour, linewidth=1, linestyle="--")
                beyond = np.geomspace(shots[-1], 2 * shots[-1], 12)
                spans = np.array([law.range_at(n) for n in beyond])
                axes.fill_between(beyond, spans[:, 0], spans[:, 1], color=colour, alpha=0.18, linewidth=0)
        axes.axhline(self.chance, color="black", linewidth=0.8, linestyle=":", label="chance")
        axes.set_xscale("log")
        axes.set_xticks(shots, [str(n) for n in self.shots])
        axes.minorticks_off()
        axes.set_ylim(0, 1)
        axes.set_xlabel("training samples per class")
        axes.set_ylabel(self.metric)
        axes.set_title(title, fontsize=11, loc="left")
        axes.grid(axis="y", linewidth=0.4, alpha=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="upper left", fontsize=9)
        n_draws = next(iter(self.accuracy.values())).shape[1]
        caption = f"mean and 95 % interval of {n_draws} draws" + (f"; {note}" if note else "")
        figure.supxlabel(caption, fontsize=8, color="#555555")
        figure.savefig(path)


def learning_curve(
    embedding: Embedding,
    test: Embedding | None = None,
    *,
    shots: Sequence[int] = SHOTS,
    n_splits: int = N_SPLITS,
    head: str | HeadMaker = "svm",
    C: float | Sequence[float] | Literal["auto"] = "auto",
    prepare: Prepare | None = None,
    method: str = "full network",
    random_state: int = 0,
    progress: bool = True,
) -> LearningCurve:
    """What a classifier reaches with few samples per class: mean per-class accuracy.

    The samples of a split are nested: five contain the two that two contain. Whatever is chosen, such as C, is chosen
    on the samples themselves; no further rows help.

    Args:
        embedding: rows with labels, from which samples are drawn.
        test: rows to judge by; None to hold out a quarter of each class, another in each split.
        shots: samples per class, ascending; numbers that the smallest class cannot give are left out.
        n_splits: draws, 2 or more.
        head: see `make_head`.
        C: see `make_head`.
        prepare: (values of the samples, values of the test rows) -> their features, for features that are scaled
            with statistics of the samples alone; None to take the values as they are.
        method: what the curve is called.
        random_state: decides the draws; the same for the same labels, so that curves can be compared in pairs.
        progress: whether a progress bar is drawn.

    Raises:
        InputError: no labels, fewer than two splits, or no number of samples that every class has.
    """
    labels = required_labels(embedding, "training")
    if n_splits < 2:
        raise InputError(f"n_splits must be 2 or more, for an interval, got {n_splits}")
    classes, counts = np.unique(labels, return_counts=True)
    fewest = int(counts.min()) if test is not None else int(counts.min() - np.ceil(counts.min() / HELD_OUT))
    used = tuple(sorted({int(n) for n in shots if 1 <= n <= fewest}))
    if not used or len(classes) < 2:
        raise InputError(
            f"expected two classes or more with at least {min(shots, default=1)} samples each, got {len(classes)} "
            f"classes, the smallest with {fewest} to draw from; give more rows, or fewer shots"
        )
    accuracy = np.zeros((len(used), n_splits))
    with tqdm(total=accuracy.size, desc=f"learning curve, {method}", unit="fit", disable=not progress) as bar:
        for j in range(n_splits):
            pool, judged, truth = _split(embedding, test, labels, random_state=random_state + j)
            order = np.random.default_rng((random_state, j)).permutation(pool)
            for i, n in enumerate(used):
                rows = np.sort(np.concatenate([order[labels[order] == value][:n] for value in classes]))
                values = np.asarray(embedding.values[rows])
                features, others = prepare(values, judged) if prepare is not None else (values, judged)
                fitted = make_head(head, features.shape, C=C, random_state=random_state).fit(features, labels[rows])
                accuracy[i, j] = per_class_accuracy(truth, fitted.predict(others))
                bar.update()
    return LearningCurve(used, {method: accuracy}, 1 / len(classes), "mean per-class accuracy")


def per_class_accuracy(truth: np.ndarray, predicted: np.ndarray) -> float:
    """The mean over the classes in `truth` of the share of their rows that is right: (rows,), (rows,) -> a number."""
    return float(np.mean([(predicted[truth == value] == value).mean() for value in np.unique(truth)]))


def _split(
    embedding: Embedding, test: Embedding | None, labels: np.ndarray, *, random_state: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows to draw from, and the values and labels of the rows to judge by."""
    if test is not None:
        return np.arange(len(labels)), np.asarray(test.values), required_labels(test, "test")
    out = np.zeros(len(labels), dtype=bool)
    generator = np.random.default_rng(random_state)
    for value in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == value))
        out[rows[: int(np.ceil(len(rows) / HELD_OUT))]] = True
    return np.flatnonzero(~out), np.asarray(embedding.values[np.flatnonzero(out)]), labels[out]


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


def fit_power_law(shots: Sequence[int], accuracy: np.ndarray) -> PowerLaw:
    """Weighted least squares, the exponent by profile likelihood.

    For each exponent, a and b are a linear fit; the exponents whose fit is not significantly worse than the best
    stay in the range. Where the points scatter more than their errors allow, all errors are widened to match. Errors
    of different shots are taken as independent, which nested samples are not quite.

    Args:
        shots: samples per class, four numbers or more.
        accuracy: (shots, draws).
    """
    n, means = np.asarray(shots, dtype=np.float64), accuracy.mean(axis=1)
    error = np.maximum(accuracy.std(axis=1, ddof=1) / np.sqrt(accuracy.shape[1]), LEAST_ERROR)
    laws, misfits, errors = [], [], []
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
        errors.append(covariance)
    best = int(np.argmin(misfits))
    widened = max(1.0, misfits[best] / (len(n) - 3))
    kept = np.asarray(misfits) <= misfits[best] + CHI_SQUARE * widened
    return PowerLaw(*map(float, laws[best]), np.asarray(laws)[kept], np.asarray(errors)[kept] * widened)
