"""Low-rank adapters beside frozen weights: LoRA and DoRA."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import nn

from hf_tl.lora import LoraConfig, add_lora
from hf_tl.strategies.strategy import Effort, Fitted
from hf_tl.strategies.transfer import Transfer
from hf_tl.strategies.trials import train_trials, trainer_code


R, ALPHA = 8, 16
TOP = "70%.."  # of convolutional networks: as accurate as adapters everywhere, at less than half the processor time


@dataclass(frozen=True)
class LowRank:
    """Adapters of one rank on layers of the usual kind; the new head trains in full.

    Of a convolutional network, those in its last layers get one, and batch norms go on collecting statistics: with the
    old ones, adapters learn half as much.

    Attributes:
        name: of the strategy.
        use_dora: whether norms are learnt apart from directions.
        layers: which layers get one, "50%.."; None for all of a transformer, and the last 30 % of any other network.
        rate: the first learning rate for a convolutional network, and for any other.
    """

    name: str
    use_dora: bool = False
    layers: str | None = None
    rate: tuple[float, float] = (3e-3, 1e-3)

    def fit(
        self, transfer: Transfer, train: np.ndarray, validation: np.ndarray, *, effort: Effort, seed: int
    ) -> Fitted:
        """See `Strategy.fit`."""

        def adapt(model: nn.Module, effort: Effort, seed: int) -> list:
            add_lora(model, self._config(transfer.is_convolutional(model)), running_statistics="save")
            return []

        return train_trials(
            transfer, train, validation, adapt=adapt, rate=self.rate, effort=effort, seed=seed, name=self.name
        )

    def code(self, transfer: Transfer, setting: str) -> str:
        """See `Strategy.code`."""
        config = self._config(transfer.is_convolutional(transfer.network().model))
        said = ", ".join(
            f"{name}={value!r}"
            for name, value in vars(config).items()
            if name in ("r", "lora_alpha", "target_modules", "use_dora", "layers") and value not in (None, False)
        )
        lines = f'add_lora(network.model, LoraConfig({said}), running_statistics="save")\n'
        return trainer_code(transfer, rate=setting, lines=lines, callbacks="", imports=["LoraConfig", "add_lora"])

    def _config(self, convolutional: bool) -> LoraConfig:
        targets, layers = (None, self.layers or TOP) if convolutional else ("all-linear", self.layers)
        return LoraConfig(r=R, lora_alpha=ALPHA, target_modules=targets, use_dora=self.use_dora, layers=layers)


def lora() -> LowRank:
    """LoRA (Hu et al., ICLR 2022)."""
    return LowRank("LoRA")


def dora() -> LowRank:
    """DoRA (Liu et al., ICML 2024)."""
    return LowRank("DoRA", use_dora=True)
