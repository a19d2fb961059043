"""The same architecture from random weights: what pre-training is worth is the distance from here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hf_tl.policies import PolicyCallback
from hf_tl.strategies.fine_tuning import fine_tune, trainer_code
from hf_tl.strategies.strategy import Effort, Fitted
from hf_tl.strategies.transfer import Transfer


POLICY = "tune: all; reinit: all"


@dataclass(frozen=True)
class FromScratch:
    """All weights at one learning rate, from fresh random values.

    Attributes:
        name: of the strategy.
        rate: the first learning rate for a convolutional network, and for any other.
    """

    name: str = "from scratch"
    rate: tuple[float, float] = (3e-3, 3e-4)

    def fit(
        self, transfer: Transfer, train: np.ndarray, validation: np.ndarray, *, effort: Effort, seed: int
    ) -> Fitted:
        """See `Strategy.fit`."""
        return fine_tune(
            transfer,
            train,
            validation,
            adapt=lambda model, effort, seed: [PolicyCallback(POLICY, seed=seed)],
            rate=self.rate,
            effort=effort,
            seed=seed,
        )

    def code(self, transfer: Transfer, setting: str) -> str:
        """See `Strategy.code`."""
        return trainer_code(
            transfer, rate=setting, lines="", callbacks=f"PolicyCallback({POLICY!r})", imports=["PolicyCallback"]
        )
