"""What a strategy that was not tried is worth elsewhere: its error beside that of frozen features on other tasks."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
from scipy import stats


FEWEST = 3  # tasks from which an interval is said
SHARE = 0.8  # of intervals


@dataclass(frozen=True)
class Experience:
    """What a strategy did on one task.

    Attributes:
        task: its name.
        shots: training samples per class.
        log_ratio: logarithm of its error over that of the best strategy whose network is frozen.
    """

    task: str
    shots: int
    log_ratio: float


@dataclass(frozen=True)
class Prior:
    """An accuracy that is expected, and how often it was seen.

    Attributes:
        accuracy: expected.
        low: lower end of the 80 % interval.
        high: upper end.
        n_tasks: that it is known from.
    """

    accuracy: float
    low: float
    high: float
    n_tasks: int


@cache
def known() -> Mapping[str, tuple[Experience, ...]]:
    """Strategy -> its experiences, of the ledgers in recipes/results/strategies.

    `python recipes/benchmarks/bench_strategies.py --prior` writes them.
    """
    said = json.loads(files("hf_tl.strategies").joinpath("prior.json").read_text(encoding="utf-8"))
    return {name: tuple(Experience(*row) for row in rows) for name, rows in said.items()}


def expect(
    strategy: str,
    *,
    frozen: float,
    shots: float,
    experiences: Mapping[str, Sequence[Experience]] | None = None,
) -> Prior | None:
    """The accuracy of a strategy that was not tried, where that of frozen features is known; None without experience.

    The ratio of the two errors is taken to vary between tasks as a logarithmic normal distribution: the interval is
    that of one more task, of Student's t distribution. Each task counts with the number of samples next to the one
    that is asked for.

    Args:
        strategy: its name.
        frozen: accuracy of the best strategy whose network is frozen.
        shots: training samples per class.
        experiences: None for those that hf_tl comes with.
    """
    rows = (known() if experiences is None else experiences).get(strategy, ())
    nearest: dict[str, Experience] = {}
    for row in rows:
        best = nearest.get(row.task)
        if best is None or _distance(row.shots, shots) < _distance(best.shots, shots):
            nearest[row.task] = row
    if len(nearest) < FEWEST:
        return None
    ratios = np.array([row.log_ratio for row in nearest.values()])
    spread = float(ratios.std(ddof=1)) * math.sqrt(1 + 1 / len(ratios))
    reach = float(stats.t.ppf((1 + SHARE) / 2, len(ratios) - 1)) * spread
    high, middle, low = (
        1 - min(1.0, (1 - frozen) * math.exp(float(ratios.mean()) + sign * reach)) for sign in (-1, 0, 1)
    )
    return Prior(middle, low, high, len(ratios))


def _distance(first: float, second: float) -> float:
    return abs(math.log(first / second))
