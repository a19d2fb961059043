"""Layers below a split point stay, those above are tuned, those above a second one start anew."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hf_tl.policies import PolicyCallback, PrefixCache
from hf_tl.strategies.fine_tuning import fine_tune, trainer_code
from hf_tl.strategies.strategy import Effort, Fitted
from hf_tl.strategies.transfer import Transfer


@dataclass(frozen=True)
class SplitPoint:
    """Freeze, tune, reinitialise: what the frozen layers say of a sample is kept from the first epoch on.

    Attributes:
        policy: which layers, see `hf_tl.Policy`; the new head trains in any case.
        name: of the strategy; that of another policy should be another.
        rate: the first learning rate for a convolutional network, and for any other.
    """

    policy: str = "freeze: ..75%"
    name: str = "split"
    rate: tuple[float, float] = (1e-3, 1e-4)

    def fit(
        self, transfer: Transfer, train: np.ndarray, validation: np.ndarray, *, effort: Effort, seed: int
    ) -> Fitted:
        """See `Strategy.fit`."""
        return fine_tune(
            transfer,
            train,
            validation,
            adapt=lambda model, effort, seed: [PolicyCallback(self.policy, seed=seed, cache=PrefixCache())],
            rate=self.rate,
            effort=effort,
            seed=seed,
        )

    def code(self, transfer: Transfer, setting: str) -> str:
        """See `Strategy.code`."""
        callback = f"PolicyCallback({self.policy!r}, cache=PrefixCache())"
        return trainer_code(
            transfer, rate=setting, lines="", callbacks=callback, imports=["PolicyCallback", "PrefixCache"]
        )
