"""Test accuracy against training samples per class, for several methods on the same draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hf_tl.table import format_table


STYLES = (("#8c8c8c", "s"), ("#d1752b", "^"), ("#5b9bd5", "o"), ("#1f4e8c", "D"), ("#3f8f5f", "v"), ("#8e5ea2", "P"))


@dataclass(frozen=True)
class LearningCurve:
    """What each method reaches with how many training samples.

    Attributes:
        shots: training samples per class, ascending.
        accuracy: method -> (shots, draws) test accuracies; a draw's rows are the same for every method.
        chance: the accuracy of guessing.
    """

    shots: tuple[int, ...]
    accuracy: dict[str, np.ndarray]
    chance: float

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

    def plot(self, path: str | Path, *, title: str, note: str = "") -> None:
        """Draws one curve a method, with 95 % intervals, into a PNG or SVG file."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.2, 4.6), layout="constrained", dpi=150)
        axes = figure.add_subplot()
        shots, middle = np.asarray(self.shots), (len(self.accuracy) - 1) / 2
        for i, (method, accuracy) in enumerate(self.accuracy.items()):
            colour, marker = STYLES[i % len(STYLES)]
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
        axes.axhline(self.chance, color="black", linewidth=0.8, linestyle=":", label="chance")
        axes.set_xscale("log")
        axes.set_xticks(shots, [str(n) for n in self.shots])
        axes.minorticks_off()
        axes.set_ylim(0, 1)
        axes.set_xlabel("training samples per class")
        axes.set_ylabel("test accuracy")
        axes.set_title(title, fontsize=11, loc="left")
        axes.grid(axis="y", linewidth=0.4, alpha=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="upper left", fontsize=9)
        n_draws = next(iter(self.accuracy.values())).shape[1]
        caption = f"mean and 95 % interval of {n_draws} draws" + (f"; {note}" if note else "")
        figure.supxlabel(caption, fontsize=8, color="#555555")
        figure.savefig(path)


def half_width(draws: np.ndarray) -> float:
    """Half the width of Student's 95 % interval of the mean of a few draws: (draws,) -> a number."""
    from scipy.stats import t

    return float(t.ppf(0.975, len(draws) - 1) * draws.std(ddof=1) / np.sqrt(len(draws)))


def _listed(numbers: Sequence[int]) -> str:
    words = [str(n) for n in numbers]
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
