"""Strategies that train the network's own weights: each is a policy, a learning rate and a name."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from hf_tl.policies import Policy, PolicyCallback, PrefixCache
from hf_tl.strategies.strategy import Effort, Fitted
from hf_tl.strategies.transfer import Transfer
from hf_tl.strategies.trials import script_epochs, train_trials, trainer_code
from hf_tl.strategies.zones import measure_zones


SPLIT = "freeze: ..75%"
SLOWER = 0.1  # the rate behind the head's own phase, in units of the head's: what it goes on from knows the task


@dataclass(frozen=True)
class FineTuning:
    """Layers are frozen, tuned or reinitialised as a policy says; the new head trains in any case.

    Attributes:
        policy: which layers, see `hf_tl.Policy`.
        name: of the strategy; that of another policy should be another.
        rate: the first learning rate for a convolutional network, and for any other.
        head_first: share of the epochs in which the head trains alone; the policy follows at a tenth of its rate.
        cached: whether what frozen first layers say of a sample is kept from the first epoch on.
    """

    policy: str
    name: str
    rate: tuple[float, float] = (1e-3, 1e-4)
    head_first: float = 0.0
    cached: bool = False

    def fit(
        self, transfer: Transfer, train: np.ndarray, validation: np.ndarray, *, effort: Effort, seed: int
    ) -> Fitted:
        """See `Strategy.fit`."""
        return train_trials(
            transfer,
            train,
            validation,
            adapt=lambda model, effort, seed: [
                PolicyCallback(self._scheduled(effort.epochs), seed=seed, cache=PrefixCache() if self.cached else None)
            ],
            rate=self.rate,
            effort=effort,
            seed=seed,
            name=self.name,
        )

    def code(self, transfer: Transfer, setting: str) -> str:
        """See `Strategy.code`."""
        policy = f"Policy('', {self._phases(script_epochs(transfer))!r})" if self.head_first else repr(self.policy)
        cache = ", cache=PrefixCache()" if self.cached else ""
        names = ["PolicyCallback", *["Policy"] * bool(self.head_first), *["PrefixCache"] * self.cached]
        callback = f"PolicyCallback({policy}{cache})"
        return trainer_code(transfer, rate=setting, lines="", callbacks=callback, imports=names)

    def _phases(self, epochs: int) -> tuple[tuple[str, str], ...]:
        head = max(1, round(self.head_first * epochs))
        return ("0", "tune: head"), (f"{head} epochs", f"{self.policy}; lr: x{SLOWER}")

    def _scheduled(self, epochs: int) -> str | Policy:
        return Policy("", self._phases(epochs)) if self.head_first else self.policy


@dataclass(frozen=True)
class MeasuredCut:
    """Freezes, tunes and reinitialises where probes of the blocks say so, on the samples that it is given.

    Blocks up to the one that serves the task best alone stay frozen; those above it that are worse by more than a
    standard error, all up to the head, start anew. Without samples to choose by it is `split`.

    Attributes:
        name: of the strategy.
        otherwise: the policy where no cut was found.
    """

    name: str = "measured cut"
    otherwise: str = SPLIT

    def fit(
        self, transfer: Transfer, train: np.ndarray, validation: np.ndarray, *, effort: Effort, seed: int
    ) -> Fitted:
        """See `Strategy.fit`."""
        zones = measure_zones(transfer, train, validation) if len(validation) else None
        policy = (zones.policy if zones is not None else "") or self.otherwise
        tuning = FineTuning(policy, self.name, cached=True)
        fitted = tuning.fit(transfer, train, validation, effort=effort, seed=seed)
        return replace(fitted, setting=f"{fitted.setting}, {policy}")

    def code(self, transfer: Transfer, setting: str) -> str:
        """See `Strategy.code`."""
        rate, _, policy = setting.partition(", ")
        return FineTuning(policy or self.otherwise, self.name, cached=True).code(transfer, rate)


def full_fine_tuning() -> FineTuning:
    """All weights, from where pre-training left them."""
    return FineTuning("tune: all", "full fine-tuning")


def from_scratch() -> FineTuning:
    """The same architecture from random weights: what pre-training is worth is the distance from here."""
    return FineTuning("tune: all; reinit: all", "from scratch", rate=(3e-3, 3e-4))


def lp_ft() -> FineTuning:
    """A linear probe first, so that the random head does not distort the features (Kumar et al., ICLR 2022)."""
    return FineTuning("tune: all", "LP-FT", rate=(5e-3, 1e-3), head_first=0.3)


def split() -> FineTuning:
    """The first three quarters of the layers stay frozen, the others are tuned."""
    return FineTuning(SPLIT, "split", cached=True)


def measured_cut() -> MeasuredCut:
    """The cut is measured: frozen up to the block that serves the task best, worse ones reinitialised."""
    return MeasuredCut()
