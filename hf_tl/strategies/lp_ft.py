"""LP-FT: a linear probe first, so that the random head does not distort the features, then everything."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hf_tl.policies import Policy, PolicyCallback
from hf_tl.strategies.fine_tuning import fine_tune, trainer_code
from hf_tl.strategies.strategy import Effort, Fitted
from hf_tl.strategies.transfer import Transfer


PROBE = 0.3  # of the epochs
SLOWER = 0.1  # the rate of fine-tuning in units of the probe's, when it goes on from a head that knows the task


@dataclass(frozen=True)
class LinearProbeThenFineTuning:
    """The head alone, then all weights at a tenth of its learning rate (Kumar et al., ICLR 2022).

    Attributes:
        name: of the strategy.
        rate: the first learning rate of the head for a convolutional network, and for any other.
    """

    name: str = "LP-FT"
    rate: tuple[float, float] = (5e-3, 1e-3)

    def fit(
        self, transfer: Transfer, train: np.ndarray, validation: np.ndarray, *, effort: Effort, seed: int
    ) -> Fitted:
        """See `Strategy.fit`."""
        return fine_tune(
            transfer,
            train,
            validation,
            adapt=lambda model, effort, seed: [PolicyCallback(self.policy(effort.epochs), seed=seed)],
            rate=self.rate,
            effort=effort,
            seed=seed,
        )

    @staticmethod
    def policy(epochs: int) -> Policy:
        """The two phases."""
        return Policy.lp_ft(probe=f"{max(1, round(PROBE * epochs))} epochs", rate=SLOWER)

    def code(self, transfer: Transfer, setting: str) -> str:
        """See `Strategy.code`."""
        callback = f'PolicyCallback(Policy.lp_ft(probe="6 epochs", rate={SLOWER}))'
        return trainer_code(
            transfer,
            rate=setting,
            lines="",
            callbacks=callback,
            imports=["Policy", "PolicyCallback"],
        )
