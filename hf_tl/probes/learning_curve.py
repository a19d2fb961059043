"""What a head reaches with few training samples, for several methods on the same draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from hf_tl import plots
from hf_tl.embedding.embedding import Embedding
from hf_tl.errors import InputError
from hf_tl.intervals import half_width
from hf_tl.labels import Problem, find_problem
from hf_tl.probes.evaluation import chance, label_table, paired_labels, score_samples
from hf_tl.probes.grid_search import Cost, check_groups
from hf_tl.probes.heads import HeadMaker, default_head, make_head
from hf_tl.probes.power_law import PowerLaw, fit_power_law
from hf_tl.table import as_html, format_table, in_words


SHOTS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 75, 100)  # samples per class
TOTALS = (10, 20, 30, 50, 75, 100, 150, 200, 300, 500, 750, 1000)  # samples, where they have not one class each
PER_CLASS, IN_ALL = "samples per class", "training samples"
N_SPLITS = 5
HELD_OUT = 0.25  # of the samples are evaluated where no test samples are given
Prepare = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
FEWEST = 4  # points for three parameters and a residual
SINGLE = "intervals at 1 sample per class hold 85 to 98 %, not 95: single samples differ more than five draws show"
METRICS: dict[Problem, str] = {"classification": "mean per-class accuracy", "multilabel": "F1", "regression": "R2"}
KNOWN = {
    "full network": 0,
    "last layer": 1,
    "fine-tuned": 2,
    "full fine-tuning": 2,
    "adapters": 3,
    "LoRA": 3,
    "from scratch": 4,
    "raw pixels": 5,
    "linear probe": 5,
    "split": 6,
    "LP-FT": 7,
    "DoRA": 8,
    "measured cut": 9,
}  # method -> its style in every plot


@dataclass(frozen=True)
class LearningCurve:
    """What each method reaches with how many training samples.

    Attributes:
        shots: training samples per class, or in all, ascending.
        accuracy: method -> (shots, draws) test scores, 1 at best; a draw's samples are the same for every method.
        chance: the score of guessing.
        metric: what is measured, in words.
        overlap: for each number of samples, the share of them that a draw has in common with another; empty for
            draws that have none.
        outcomes: method -> (shots, draws, n_test) what each test sample adds to the score, such as 1 where it is
            right, where that is known.
        labels: (draws, n_test) their classes; the score is the mean over the classes of the mean outcome.
        test_overlap: the share of its test samples that a draw has in common with another.
        unit: of `shots`.
        notes: what there is to say, in sentences.
    """

    shots: tuple[int, ...]
    accuracy: dict[str, np.ndarray]
    chance: float
    metric: str = "test accuracy"
    overlap: tuple[float, ...] = ()
    outcomes: dict[str, np.ndarray] = field(default_factory=dict)
    labels: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    test_overlap: float = 1.0
    unit: str = PER_CLASS
    notes: tuple[str, ...] = ()

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
                outcomes = outcomes - self.outcomes[over] if over in self.outcomes else None
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
                lines.append(f"{method}: {law}; with {n} {self.unit} it leads one to expect {expected}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return as_html(f"{self.metric}\n\n{self.table()}\n\n{self.best()}")

    def table(self) -> str:
        """Mean and 95 % interval, one row a method, one column a number of samples."""
        widths = {method: self.half_widths(method) for method in self.accuracy}
        rows = [
            [method, *(_with_interval(row.mean(), half) for row, half in zip(draws, widths[method], strict=True))]
            for method, draws in self.accuracy.items()
        ]
        table = format_table([self.unit, *(str(n) for n in self.shots)], rows)
        if any(np.isinf(half).any() for half in widths.values()):
            table += "\n± ?: all draws are the same samples, so they say nothing about others"
        return "\n".join([table, *self.notes])

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
        return f"{text[0].upper()}{text[1:]} {self.unit}."

    def best(self) -> str:
        """The method with the highest mean where samples are most, in a sentence."""
        means = {method: float(accuracy[-1].mean()) for method, accuracy in self.accuracy.items()}
        method = max(means, key=means.__getitem__)
        return f"With {self.shots[-1]} {self.unit} the highest mean is that of {method}: {means[method]:.2f}."

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
        fits = "dashed: fitted power laws and their range" if extrapolate else ""
        caption = "; ".join(filter(None, [f"mean and 95 % interval of {n_draws} draws", fits, note]))
        with plots.picture(path, title=title, size=(7.2, 4.6), caption=caption) as (panel,):
            for i, (method, accuracy) in enumerate(self.accuracy.items()):
                color, marker, style = find_style(method, i)
                beside = shots * (1 + 0.02 * (i - middle))  # so that no interval hides another
                errors = self.half_widths(method)
                errors[np.isinf(errors)] = np.nan
                means = accuracy.mean(axis=1)
                plots.curve(panel, beside, means, color=color, label=method, marker=marker, style=style, errors=errors)
                law = self.law(method) if extrapolate else None
                if law is not None:
                    ahead = np.geomspace(shots[0], 2 * shots[-1], 60)
                    plots.curve(panel, ahead, law.at(ahead), color=color, style="dashed", label=f"{method}, fitted")
                    beyond = np.geomspace(shots[-1], 2 * shots[-1], 12)
                    low, high = np.array([law.range_at(n) for n in beyond]).T
                    plots.band(panel, beyond, low, high, color=color)
            plots.level(panel, self.chance, label="chance")
            lowest = max(-1.0, min(0.0, *(float(draws.mean(axis=1).min()) for draws in self.accuracy.values())))
            plots.axes(panel, x=self.unit, y=self.metric, x_at=self.shots, log="x", between=(lowest, 1))
            plots.legend(panel)

    def _test_variance(self, outcomes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What the choice of test samples adds to the variance of each draw alone, and of all alike: two of (shots,).

        Of the mean over the classes; a quarter is added to the squares of a class: no error is no certainty.
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


def find_style(method: str, index: int) -> tuple[str, str, plots.Style]:
    """Colour, marker and line of a method: those that it has in every plot, or those of its place among others."""
    number = KNOWN.get(method, index % len(plots.SERIES))
    return *plots.SERIES[number], plots.STYLES[number]


def learning_curve(
    embedding: Embedding,
    test: Embedding | None = None,
    *,
    shots: Sequence[int] | None = None,
    n_splits: int = N_SPLITS,
    head: str | HeadMaker | None = None,
    C: Cost = "auto",
    prepare: Prepare | None = None,
    method: str = "full network",
    groups: np.ndarray | None = None,
    random_state: int = 0,
    progress: bool = True,
) -> LearningCurve:
    """What a head reaches with few samples: mean per-class accuracy, F1 of each sample's classes, or R2.

    The samples of a draw are nested: five contain the two that two contain. Whatever is chosen, such as C, is chosen
    on the samples themselves; no further ones help.

    Args:
        embedding: features with labels, from which samples are drawn.
        test: samples to evaluate on; None to hold out a quarter of each class, another in each draw.
        shots: samples per class, or in all where samples have several classes or numbers; more than half of the
            classes have are left out, and a class of fewer gives all that it has.
        n_splits: draws, 2 or more.
        head: see `make_head`; None for "svm", or for numbers "ridge".
        C: see `make_head`.
        prepare: (values of the samples, values of the test samples) -> their features, for features that are scaled
            with statistics of the samples alone; None to take the values as they are.
        method: what the curve is called.
        groups: (n_samples,) of samples of one number, such as copies (`find_twins(...).groups`), a draw has one at
            most, and none of those that are held out.
        random_state: decides the draws; the same for the same labels, so that curves can be compared in pairs.
        progress: whether a progress bar is drawn.

    Raises:
        InputError: no labels, fewer than two draws, or no number of samples that the classes have.
    """
    notes: list[str] = []
    if test is None:
        taught = label_table(embedding, "training")
    else:
        taught, tested, notes = paired_labels(embedding, test)
    problem = find_problem(taught.labels)
    if n_splits < 2:
        raise InputError(f"n_splits must be 2 or more, for an interval, got {n_splits}")
    strata = taught.labels if problem == "classification" else np.zeros(len(taught.labels), dtype=int)
    groups = check_groups(groups, len(strata))
    drawable = np.arange(len(strata)) if groups is None else np.unique(groups, return_index=True)[1]
    classes, counts = np.unique(strata[drawable], return_counts=True)
    if test is None:
        counts = counts - np.ceil(counts * HELD_OUT).astype(int)
    shots = shots or (SHOTS if problem == "classification" else TOTALS)
    used = tuple(sorted({int(n) for n in shots if 1 <= n <= np.median(counts)}))
    if not used or (problem == "classification" and len(classes) < 2):
        raise InputError(
            f"expected two classes or more with at least {min(shots, default=1)} samples each, got {len(classes)} "
            f"classes, the median with {np.median(counts):g} to draw from; give more samples, or fewer shots"
        )
    if used[0] == 1 and problem == "classification":
        notes.append(SINGLE)
    few = [taught.name_of(value) for value in classes[counts < used[-1]].tolist()]
    if few:
        notes.append(f"classes with fewer than {used[-1]} samples give all that they have: {in_words(few)}")
    scores, outcomes, test_strata = np.zeros((len(used), n_splits)), [], []
    with tqdm(total=scores.size, desc=f"learning curve, {method}", unit="fit", disable=not progress) as bar:
        for j in range(n_splits):
            if test is None:
                pool, held_out = _split(strata, groups, random_state=random_state + j)
                evaluated, truth = np.asarray(embedding.values[held_out]), taught.labels[held_out]
            else:
                pool, evaluated, truth = np.arange(len(strata)), np.asarray(test.values), tested.labels
            order = np.random.default_rng((random_state, j)).permutation(pool)
            if groups is not None:
                order = order[np.sort(np.unique(groups[order], return_index=True)[1])]
            test_strata.append(truth if problem == "classification" else np.zeros(len(truth), dtype=int))
            outcomes.append(np.zeros((len(used), len(truth))))
            for i, n in enumerate(used):
                samples = np.sort(np.concatenate([order[strata[order] == value][:n] for value in classes]))
                values = np.asarray(embedding.values[samples])
                features, others = prepare(values, evaluated) if prepare is not None else (values, evaluated)
                made = make_head(
                    head or default_head(problem), features.shape, C=C, problem=problem, random_state=random_state
                )
                predicted = np.asarray(made.fit(features, taught.labels[samples]).predict(others))
                outcomes[j][i] = score_samples(truth, predicted)
                scores[i, j] = _mean_of_classes(outcomes[j][i], test_strata[j])
                bar.update()
    return LearningCurve(
        shots=used,
        accuracy={method: scores},
        chance=chance(taught.labels),
        metric=METRICS[problem],
        overlap=tuple(float(np.minimum(n / counts, 1).mean()) for n in used),
        outcomes={method: np.stack(outcomes, axis=1)},
        labels=np.array(test_strata),
        test_overlap=HELD_OUT if test is None else 1.0,
        unit=PER_CLASS if problem == "classification" else IN_ALL,
        notes=tuple(notes),
    )


def _split(strata: np.ndarray, groups: np.ndarray | None, *, random_state: int) -> tuple[np.ndarray, np.ndarray]:
    """The samples to draw from, and those to evaluate on."""
    generator, out = np.random.default_rng(random_state), np.zeros(len(strata), dtype=bool)
    for value in np.unique(strata):  # StratifiedShuffleSplit may leave a small class untested, or take half of it
        mine = generator.permutation(np.flatnonzero(strata == value))
        out[mine[: int(np.ceil(len(mine) * HELD_OUT))]] = True
    if groups is not None:  # the copies of what is held out go with it, into neither
        return np.flatnonzero(~np.isin(groups, groups[out])), np.flatnonzero(out)
    return np.flatnonzero(~out), np.flatnonzero(out)


def _mean_of_classes(outcomes: np.ndarray, strata: np.ndarray) -> float:
    return float(np.mean([outcomes[strata == value].mean() for value in np.unique(strata)]))


def _with_interval(mean: float, half: float) -> str:
    return f"{mean:.2f} ± {'?' if np.isinf(half) else f'{half:.2f}'}"


def _listed(numbers: Sequence[int]) -> str:
    words = [str(n) for n in numbers]
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
