"""What compare found: curves over samples per class, paired differences, the crossover, and what it all cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hf_tl.analysis.footprint import Footprint
from hf_tl.classifier import Classifier
from hf_tl.errors import InputError
from hf_tl.files import write_json
from hf_tl.probes.learning_curve import LearningCurve
from hf_tl.strategies.crossover import Crossover, find_crossover
from hf_tl.strategies.ledger import Run
from hf_tl.strategies.transfer import Transfer
from hf_tl.table import format_table


FROZEN = ("last layer", "full network", "linear probe")  # strategies whose network does not train


@dataclass(frozen=True, eq=False)
class Comparison:
    """Runs of several strategies on the same samples.

    Attributes:
        runs: in the order in which they ended.
        labels: (n_test,) numbers of the classes of the evaluated samples.
        classes: their names.
        counts: (n_classes,) training samples that could be drawn.
        planned: runs that there will be.
        title: network and task, in words.
        notes: what there is to say, in sentences.
        fit: name of a strategy -> a classifier that it learns from all samples that could be drawn; None where the
            samples are not at hand.
    """

    runs: tuple[Run, ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    counts: np.ndarray
    planned: int
    title: str = ""
    notes: tuple[str, ...] = ()
    fit: Callable[[str], Classifier] | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        runs: Sequence[Run],
        transfer: Transfer,
        *,
        counts: np.ndarray,
        planned: int,
        notes: Sequence[str] = (),
        fit: Callable[[str], Classifier] | None = None,
    ) -> Comparison:
        """That of runs on a task."""
        title = f"{Path(transfer.model).name} on {Path(transfer.source).name}"
        truth = transfer.labels[transfer.test]
        return cls(tuple(runs), truth, transfer.classes, counts, planned, title, tuple(notes), fit)

    @property
    def best(self) -> str:
        """The strategy of the highest mean accuracy with the most samples.

        Raises:
            InputError: fewer than two seeds are complete.
        """
        curve = self.curve
        return max(self.strategies, key=lambda name: float(curve.accuracy[name][-1].mean()))

    def to_classifier(self, strategy: str | None = None) -> Classifier:
        """What a strategy learns from all samples that could be drawn, to save and to predict with.

        A quarter of them chooses the setting; the accuracy on the test samples is in its record.

        Args:
            strategy: its name; None for the best one.

        Raises:
            InputError: a strategy that was not compared, or that makes no classifier.
        """
        name = self.best if strategy is None else strategy
        if self.fit is None or name not in self.strategies:
            raise InputError(f"strategy should be one of {list(self.strategies)}, got {name!r}")
        return self.fit(name)

    @cached_property
    def strategies(self) -> tuple[str, ...]:
        """Their names, in the order of the first runs."""
        return tuple(dict.fromkeys(run.strategy for run in self.runs))

    @cached_property
    def block(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Samples per class, and seeds, for which every strategy has been run: those that can be compared in pairs."""
        done = {(run.strategy, run.shots, run.seed) for run in self.runs}
        shots, seeds = sorted({run.shots for run in self.runs}), sorted({run.seed for run in self.runs})
        whole = {n: [s for s in seeds if all((name, n, s) in done for name in self.strategies)] for n in shots}
        best: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
        for k in range(2, len(seeds) + 1):
            kept = tuple(n for n in shots if len(whole[n]) >= k)
            common = [s for s in seeds if all(s in whole[n] for n in kept)] if kept else []
            if len(common) >= 2 and len(kept) * len(common) >= len(best[0]) * len(best[1]):
                best = kept, tuple(common)
        return best

    def outcomes(self, strategy: str) -> np.ndarray:
        """(shots, seeds, n_test) 1 where a test sample is right, of the block."""
        shots, seeds = self.block
        found = {(run.shots, run.seed): run for run in self.runs if run.strategy == strategy}
        return np.array([[found[n, s].right(self.labels) for s in seeds] for n in shots], dtype=np.int8)

    @cached_property
    def curve(self) -> LearningCurve:
        """Mean per-class accuracy against samples per class, of the block.

        Raises:
            InputError: fewer than two seeds are complete.
        """
        shots, _ = self.block
        if not shots:
            raise InputError(
                f"{len(self.runs)} of {self.planned} runs are done, and no number of samples has two seeds of every "
                f"strategy; the same call of compare goes on"
            )
        outcomes = {name: self.outcomes(name) for name in self.strategies}
        values = np.unique(self.labels)
        n_seeds = len(self.block[1])
        return LearningCurve(
            shots=shots,
            accuracy={
                name: np.mean([right[:, :, self.labels == value].mean(axis=2) for value in values], axis=0)
                for name, right in outcomes.items()
            },
            chance=1 / len(values),
            metric="mean per-class test accuracy",
            overlap=tuple(float(np.minimum(n / self.counts, 1).mean()) for n in shots),
            outcomes=outcomes,
            labels=np.repeat(self.labels[None], n_seeds, axis=0),
        )

    def crossover(self, first: str, second: str) -> Crossover:
        """From how many samples on the second is ahead of the first."""
        shots, _ = self.block
        return find_crossover(
            self.outcomes(first), self.outcomes(second), names=(first, second), shots=shots, labels=self.labels
        )

    def differences(self, reference: str) -> str:
        """Each strategy's mean accuracy less that of one of them, paired, with 95 % intervals; in points."""
        curve, rows = self.curve, []
        for name in self.strategies:
            if name == reference:
                continue
            gaps = 100 * (curve.accuracy[name] - curve.accuracy[reference]).mean(axis=1)
            halves = 100 * curve.half_widths(name, over=reference)
            rows.append([name, *(_signed(gap, half) for gap, half in zip(gaps, halves, strict=True))])
        return format_table([f"less {reference}", *(str(n) for n in curve.shots)], rows)

    def footprint(self, strategy: str) -> Footprint:
        """What all runs of a strategy cost, the search counted."""
        found = [Footprint.from_dict(run.footprint) for run in self.runs if run.strategy == strategy]
        return sum(found[1:], found[0])

    def costs(self) -> list[dict[str, Any]]:
        """The course's table: accuracies at the largest number of samples, power, time, energy, CO2, experiments."""
        rows = []
        largest = max(run.shots for run in self.runs)
        for name in self.strategies:
            cost = self.footprint(name)
            last = [run for run in self.runs if run.strategy == name and run.shots == largest]
            seconds = None if cost.wall_seconds is None else cost.wall_seconds.value
            joules = None if cost.energy_joules is None else cost.energy_joules.value
            rows.append(
                {
                    "strategy": name,
                    "validation": _mean([run.validation_accuracy for run in last]),
                    "test": _mean([run.test_accuracy for run in last]),
                    "watts": None if joules is None or not seconds else joules / seconds,
                    "hours": None if seconds is None else seconds / 3600,
                    "cpu_hours": None if cost.cpu_seconds is None else cost.cpu_seconds.value / 3600,
                    "watt_hours": None if joules is None else joules / 3600,
                    "grams_co2": None if cost.co2_grams is None else cost.co2_grams.value,
                    "teraflop": None if cost.flops is None else cost.flops.value / 1e12,
                    "experiments": cost.experiments,
                    "human_minutes": cost.human_minutes,
                    "estimated": cost.energy_joules is not None and cost.energy_joules.method == "estimated",
                }
            )
        return rows

    def table(self) -> str:
        """Curves, differences, crossover and cost, as plain text."""
        lines = [f"{self.title}: {len(self.runs)} of {self.planned} runs"]
        if self.block[0]:
            reference = self.reference
            lines += ["", self.curve.table(), "", self.differences(reference), "", *self.crossovers()]
        header = ["strategy", "validation", "test", "W", "h", "CPU h", "Wh", "g CO2", "TFLOP", "runs", "min of people"]
        rows = [
            [row["strategy"], *(_said(row[name]) for name in ("validation", "test", "watts", "hours", "cpu_hours",
             "watt_hours", "grams_co2", "teraflop")), row["experiments"], _said(row["human_minutes"])]
            for row in self.costs()
        ]  # fmt: skip
        largest = max((run.shots for run in self.runs), default=0)
        lines += ["", f"accuracies with {largest} samples per class; cost of all runs, the search counted:"]
        return "\n".join([*lines, format_table(header, rows), *(f"note: {note}" for note in self.notes)])

    __str__ = table

    @property
    def reference(self) -> str:
        """The strategy that others are compared with: one whose network stays frozen, if there is one."""
        return next((name for name in FROZEN if name in self.strategies), self.strategies[0])

    def crossovers(self) -> list[str]:
        """Where each strategy that trains the network overtakes the reference, in sentences."""
        trained = [name for name in self.strategies if name not in (*FROZEN, self.reference)]
        return [str(self.crossover(self.reference, name)) for name in trained]

    def to_dict(self) -> dict[str, Any]:
        """All figures, for JSON; the runs are in the ledger."""
        said: dict[str, Any] = {"title": self.title, "runs": len(self.runs), "planned": self.planned}
        if self.block[0]:
            curve = self.curve
            said["shots"], said["seeds"] = list(curve.shots), list(self.block[1])
            said["accuracy"] = {name: values.round(4).tolist() for name, values in curve.accuracy.items()}
            said["half_widths"] = {name: _finite(curve.half_widths(name)) for name in curve.accuracy}
            said["crossovers"] = self.crossovers()
        return {**said, "costs": self.costs(), "notes": list(self.notes)}

    def save(self, path: str | Path) -> Path:
        """Writes a JSON file."""
        return write_json(Path(path), self.to_dict())


def _signed(gap: float, half: float) -> str:
    return f"{gap:+.1f} ± {'?' if np.isinf(half) else f'{half:.1f}'}"


def _mean(values: Sequence[float]) -> float | None:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else None


def _said(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _finite(values: np.ndarray) -> list[float | None]:
    return [round(float(value), 4) if np.isfinite(value) else None for value in values]
