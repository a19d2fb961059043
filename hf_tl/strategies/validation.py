"""The rules of `advise` on results that are known: what following them loses, beside any fixed strategy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_tl.errors import InputError
from hf_tl.files import write_json
from hf_tl.strategies.advice import in_points
from hf_tl.strategies.decision import RISK, decide
from hf_tl.strategies.published import Cell
from hf_tl.table import format_table


N_DRAWS = 2000
SAME_PASS = 1.05  # strategies that cost so many times the cheapest one at most read the same pass
PILOTS, SCREENED, EXPECTED, AVERAGE = (
    "advise, one run of each",
    "advise, one run of what may win",
    "advise, frozen network only",
    "best on the others",
)
ADVICE = (PILOTS, SCREENED, EXPECTED)
ORDER = (*ADVICE, AVERAGE)


@dataclass(frozen=True)
class Choice:
    """What a rule took in one cell, knowing one seed.

    Attributes:
        rule: its name.
        cell: index of the cell.
        strategy: that it took.
        best: the one that is best on the other seeds.
        regret: points that the best has more than the one taken, on the other seeds.
        spent: share of the cost of trying everything, every seed, that the advice took.
        held: of the 80 % intervals that it gave, share that hold the truth; NaN without any.
    """

    rule: str
    cell: int
    strategy: str
    best: str
    regret: float
    spent: float
    held: float = float("nan")


@dataclass(frozen=True, eq=False)
class Validation:
    """The record of the rules.

    Attributes:
        cells: that were decided.
        choices: of each rule in each cell, once for each seed that can be the known one.
        delta: loss in points that does not matter.
    """

    cells: tuple[Cell, ...]
    choices: tuple[Choice, ...]
    delta: float

    @property
    def rules(self) -> list[str]:
        """Those of `advise` first."""
        found = list(dict.fromkeys(choice.rule for choice in self.choices))
        return [*(name for name in ORDER if name in found), *sorted(name for name in found if name not in ORDER)]

    def regrets(self, rule: str, *, benchmark: str | None = None, winner: str | None = None) -> np.ndarray:
        """(n_cells,) mean regret in points, of a benchmark's cells, or of those that one strategy wins."""
        kept: dict[int, list[float]] = {}
        for choice in self.choices:
            fits = benchmark is None or self.cells[choice.cell].benchmark == benchmark
            if choice.rule == rule and fits and (winner is None or self.winners[choice.cell] == winner):
                kept.setdefault(choice.cell, []).append(choice.regret)
        return np.array([np.mean(values) for values in kept.values()])

    @property
    def winners(self) -> list[str]:
        """The best strategy of each cell, by the mean of all seeds."""
        return [max(cell.results, key=lambda name: cell.results[name].mean()) for cell in self.cells]

    def summary(self) -> list[dict[str, Any]]:
        """Of each rule: mean regret by benchmark, over all cells, and alike over cells that different ones win."""
        benchmarks = list(dict.fromkeys(cell.benchmark for cell in self.cells))
        rows = []
        for rule in self.rules:
            own = [choice for choice in self.choices if choice.rule == rule]
            everywhere = len({choice.cell for choice in own}) == len(self.cells)
            by_winner = [self.regrets(rule, winner=name) for name in sorted(set(self.winners))]
            all_cells = self.regrets(rule)
            held = [choice.held for choice in own if not np.isnan(choice.held)]
            rows.append(
                {
                    "rule": rule,
                    "spent": float(np.mean([choice.spent for choice in own])),
                    **{name: _mean(self.regrets(rule, benchmark=name)) for name in benchmarks},
                    "all cells": _mean(all_cells) if everywhere else None,
                    "by winner": float(np.mean([v.mean() for v in by_winner if len(v)])) if everywhere else None,
                    "90 % of cells": float(np.quantile(all_cells, 0.9)) if everywhere else None,
                    "within delta": float(np.mean(all_cells <= self.delta)) if everywhere else None,
                    "coverage": float(np.mean(held)) if held else None,
                }
            )
        return rows

    def losses(self, rule: str) -> list[dict[str, Any]]:
        """Every cell in which a rule loses more than delta, the largest loss first."""
        found = []
        for index, cell in enumerate(self.cells):
            own = [choice for choice in self.choices if choice.rule == rule and choice.cell == index]
            regret = float(np.mean([choice.regret for choice in own])) if own else 0.0
            if regret > self.delta:
                worst = max(own, key=lambda choice: choice.regret)
                found.append(
                    {"benchmark": cell.benchmark, "dataset": cell.dataset, "network": cell.network,
                     "taken": worst.strategy, "best": worst.best, "regret": round(regret, 2)}
                )  # fmt: skip
        return sorted(found, key=lambda row: -row["regret"])

    def table(self) -> str:
        """The summary, and the losses of the rules of `advise`."""
        rows = self.summary()
        header = [*rows[0]]
        shown = [[row["rule"], *(_said(row[name], name) for name in header[1:])] for row in rows]
        n_won = {name: self.winners.count(name) for name in sorted(set(self.winners))}
        lines = [
            f"{len(self.cells)} cells; mean regret in points, each dataset decided from the others",
            format_table(header, shown),
            "cells won: " + ", ".join(f"{name} {n}" for name, n in n_won.items()),
        ]
        for rule in (name for name in self.rules if name in ADVICE):
            lost = self.losses(rule)
            lines.append(f"\n{rule}: {len(lost)} cells lose more than {in_points(self.delta / 100)}")
            if lost:
                lines.append(format_table([*lost[0]], [[str(value) for value in row.values()] for row in lost]))
        return "\n".join(lines)

    __str__ = table

    def save(self, path: str | Path) -> Path:
        """Writes the summary and all losses as JSON."""
        rounded = [{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in self.summary()]
        said = {
            "cells": len(self.cells),
            "delta": self.delta,
            "won": {name: self.winners.count(name) for name in sorted(set(self.winners))},
            "summary": rounded,
            "losses": {rule: self.losses(rule) for rule in self.rules},
        }
        return write_json(Path(path), said)


def validate(cells: Sequence[Cell], *, delta: float = 1.0, seed: int = 0) -> Validation:
    """What following the rules of `advise` would have lost, without training anything.

    One seed of a cell is what the rule knows, the others are what it is judged by; each seed is the known one in turn.
    What a number is worth, and what other strategies are expected to give, is taken from the cells of other datasets
    of the same benchmark. The best strategy is the best of the very seeds that judge, so every regret is a little too
    large.

    - One run of each: all strategies are known by one seed; needs two seeds or more.
    - Frozen network only: those that read one pass are known; the others are expected from the best of them, linearly.
    - One run of what may win: of the others, those are run that are expected to win by more than delta at a chance of
      more than a fifth.
    - Best on the others: the strategy with the highest mean on other datasets; nothing is measured.
    - A strategy's name: always that one.

    Args:
        cells: of `read_published` and `read_ledgers`.
        delta: loss in points that does not matter.
        seed: of the draws.

    Raises:
        InputError: a benchmark of fewer than two datasets.
    """
    if not delta > 0:
        raise InputError(f"delta should be above 0 points, got {delta}")
    choices: list[Choice] = []
    for index, cell in enumerate(cells):
        others = [one for one in cells if one.benchmark == cell.benchmark and one.dataset != cell.dataset]
        others = [one for one in others if set(one.results) >= set(cell.results)]
        if not others:
            raise InputError(f"{cell.benchmark} has no dataset beside {cell.dataset} with the same strategies")
        rng = np.random.default_rng((seed, index))
        for known in range(cell.n_seeds):
            choices += _decide_cell(index, cell, others, known, delta, rng)
    return Validation(tuple(cells), tuple(choices), delta)


def _decide_cell(
    index: int, cell: Cell, others: Sequence[Cell], known: int, delta: float, rng: np.random.Generator
) -> list[Choice]:
    """The choice of every rule that can be followed here."""
    truth = {name: _unseen(values, known) for name, values in cell.results.items()}
    best = max(truth, key=lambda name: truth[name])
    cheapest = min(cell.costs, key=lambda name: cell.costs[name])
    everything = cell.n_seeds * sum(cell.costs.values())

    def choice(rule: str, strategy: str, spent: float = 0.0, held: float = float("nan")) -> Choice:
        return Choice(rule, index, strategy, best, truth[best] - truth[strategy], spent, held)

    average = {name: np.mean([one.results[name].mean() for one in others]) for name in truth}
    made = [choice(name, name) for name in truth]
    made.append(choice(AVERAGE, max(average, key=lambda name: average[name])))
    frozen = [name for name in cell.costs if cell.costs[name] <= SAME_PASS * cell.costs[cheapest]]
    expected = _expected(cell, others, known, frozen, rng)
    rules = {EXPECTED: (expected, cell.costs[cheapest])}
    if cell.n_seeds > 1:
        first = max(frozen, key=lambda name: cell.results[name][known])
        gains = {name: expected[name] - expected[first] for name in truth if name not in frozen}
        may_win = [name for name, gain in gains.items() if np.mean(gain > delta) > RISK]
        measured = _measured(cell, others, known, rng)
        spent = cell.costs[cheapest] + sum(cell.costs[name] for name in may_win)
        rules[SCREENED] = {name: measured[name] for name in (*frozen, *may_win)}, spent
        rules[PILOTS] = measured, sum(cell.costs.values())
    for rule, (draws, spent) in rules.items():
        ends = {name: np.quantile(values, [0.1, 0.9]) for name, values in draws.items()}
        judged = [name for name in draws if cell.n_seeds > 1 or name != cheapest]  # one number cannot judge itself
        held = float(np.mean([ends[name][0] <= truth[name] <= ends[name][1] for name in judged]))
        made.append(choice(rule, decide(draws, cell.costs, delta=delta).chosen, spent / everything, held))
    return made


def _unseen(values: np.ndarray, known: int) -> float:
    """The mean of the seeds that are not known; of one number that number."""
    return float(values.mean() if len(values) == 1 else np.delete(values, known).mean())


def _measured(cell: Cell, others: Sequence[Cell], known: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """One seed of each, and how far one seed is from the mean of others elsewhere."""
    return {name: values[known] + rng.choice(_errors(others, name), N_DRAWS) for name, values in cell.results.items()}


def _expected(
    cell: Cell, others: Sequence[Cell], known: int, frozen: Sequence[str], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """One seed of those that read one pass; for others a straight line through their gains over the best elsewhere."""
    value = max(cell.results[name][known] for name in frozen)
    draws = {name: cell.results[name][known] + rng.choice(_errors(others, name), N_DRAWS) for name in frozen}
    x = np.array([max(one.results[name].mean() for name in frozen) for one in others])
    for name in cell.results:
        if name in frozen:
            continue
        gain = np.array([one.results[name].mean() for one in others]) - x
        design = np.stack([np.ones(len(x)), x], axis=1)
        weights = np.linalg.lstsq(design, gain, rcond=None)[0]
        hat = (design @ np.linalg.pinv(design)).diagonal()
        left_out = (gain - design @ weights) / np.maximum(1 - hat, 0.1)  # what each point is missed by without it
        draws[name] = value + weights @ [1.0, value] + rng.choice(left_out, N_DRAWS)
    return draws


def _errors(cells: Sequence[Cell], name: str) -> np.ndarray:
    """By how much one seed misses the mean of the others."""
    found = [
        np.delete(values, i).mean() - values[i]
        for values in (cell.results[name] for cell in cells)
        for i in range(len(values))
        if len(values) > 1
    ]
    return np.array(found or [0.0])


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _said(value: float | None, name: str) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.0f} %" if name in ("spent", "within delta", "coverage") else f"{value:.2f}"
