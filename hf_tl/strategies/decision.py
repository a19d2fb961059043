"""Which of several strategies to take: the cheapest that is not worse than the best by more than a tolerance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


RISK = 0.2  # of being worse by more than the tolerance, at most


@dataclass(frozen=True)
class Decision:
    """What to take, and how sure that is.

    Attributes:
        chosen: name of the strategy.
        best: the one with the highest expected accuracy.
        risk: strategy -> the probability that it is worse than the best by more than the tolerance.
        delta: the tolerance.
        is_sure: whether the risk of the chosen one is small enough.
    """

    chosen: str
    best: str
    risk: dict[str, float]
    delta: float
    is_sure: bool


def decide(
    accuracy: Mapping[str, np.ndarray], costs: Mapping[str, float], *, delta: float, risk: float = RISK
) -> Decision:
    """The cheapest strategy whose risk is small; where there is none, the cheapest of those with the smallest risk.

    Args:
        accuracy: strategy -> (n_draws,) what its accuracy may be, draw by draw together with that of the others: a
            bootstrap over samples that all were evaluated on, or samples of a posterior.
        costs: strategy -> what it costs, in whatever unit.
        delta: the loss in accuracy that does not matter.
        risk: the probability of a larger loss that is taken.
    """
    names = sorted(accuracy, key=lambda name: costs[name])
    values = np.stack([accuracy[name] for name in names])
    lost = values.max(axis=0) - values > delta
    risks = {name: float(row.mean()) for name, row in zip(names, lost, strict=True)}
    fine = [name for name in names if risks[name] <= risk]
    chosen = fine[0] if fine else min(names, key=lambda name: risks[name])
    best = names[int(values.mean(axis=1).argmax())]
    return Decision(chosen, best, risks, delta, bool(fine))


def bootstrap(outcomes: Mapping[str, np.ndarray], *, seed: int = 0, n_draws: int = 4000) -> dict[str, np.ndarray]:
    """Accuracies that other evaluated samples of the same kind would give: strategy -> (n_draws,).

    A Bayesian bootstrap: weights of the samples from a flat Dirichlet distribution, the same for every strategy, so
    that what samples have in common cancels. One sample that all get right and one that all get wrong are added: a
    strategy without an error is not free of them.

    Args:
        outcomes: strategy -> (n_samples,), 1 where a sample is right; shares for several fits.
        seed: of the weights.
        n_draws: how many.
    """
    names = list(outcomes)
    values = np.stack([np.concatenate([outcomes[name], [1.0, 0.0]]) for name in names])
    weights = np.random.default_rng(seed).dirichlet(np.ones(values.shape[1]), size=n_draws)
    return dict(zip(names, values @ weights.T, strict=True))


def samples_to_settle(first: np.ndarray, second: np.ndarray, *, delta: float) -> float:
    """How many evaluated samples would tell two strategies apart by `delta`, at 80 % power and 5 % error.

    Args:
        first: (n_samples,) outcomes.
        second: of the same samples.
        delta: the difference in accuracy that matters.
    """
    gain = second.astype(np.float64) - first
    variance = max(float(gain.var()), 1 / (len(gain) + 2))  # samples without a difference do not rule one out
    return (1.96 + 0.84) ** 2 * variance / delta**2
