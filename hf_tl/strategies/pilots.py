"""Pilots: short fits of every strategy, equal in samples seen; the better half goes on to three times as many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from hf_tl.analysis.footprint import Footprint
from hf_tl.embedding.fingerprint import fingerprint_json
from hf_tl.strategies.compare import run_config, run_once
from hf_tl.strategies.draws import Draw
from hf_tl.strategies.feature_extraction import FeatureExtraction
from hf_tl.strategies.ledger import Ledger, Run
from hf_tl.strategies.strategy import Effort, Strategy
from hf_tl.strategies.timetable import Timetable
from hf_tl.strategies.transfer import Pace, Transfer


RUNGS = (3, 9, 27)  # epochs of pilots, the same number of samples seen for all; half of them go on
PART = 0.25  # of the samples, for those of which not one epoch seems to fit


@dataclass(frozen=True)
class Pilot:
    """A fit, and what it saw.

    Attributes:
        run: its outcome and cost.
        epochs: of it.
        share: of the samples that there are to learn from.
    """

    run: Run
    epochs: int
    share: float = 1.0

    @property
    def seconds(self) -> float:
        """What it took."""
        return float(self.run.footprint["wall_seconds"]["value"])

    @property
    def seen(self) -> float:
        """In epochs over all samples."""
        return self.epochs * self.share


@dataclass
class Pilots:
    """Fits on a part of the training samples, compared on another part.

    Attributes:
        transfer: network and task.
        held_out: (n,) indices of the samples that compare them.
        drawn: samples that they learn from.
        ledger: of those that were made, now or by an earlier call.
        effort: what one may spend beside its epochs.
        table: the time that there is.
        pace: of training here, measured.
        seed: of every fit.
        done: strategy -> its longest fit.
        skipped: strategy -> why it was not measured to its end, in words.
        slowness: how many times as long as its pace says the latest strategy took, 1 at least: others use the machine.
    """

    transfer: Transfer
    held_out: np.ndarray
    drawn: Draw
    ledger: Ledger
    effort: Effort
    table: Timetable
    pace: Pace
    seed: int
    done: dict[str, Pilot] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    slowness: float = 1.0

    def halve(self, strategies: Sequence[Strategy]) -> None:
        """Runs all with few epochs, and the better half of those with more, as long as there is time.

        Where the first rung seems too long for all of them, each is run for one epoch before, which shows what an
        epoch of it really takes; where that seems too long too, for one on a quarter of the samples before.
        """
        left = list(strategies)
        for epochs, share in ((1, PART), (1, 1.0)):
            following = RUNGS[0] if share == 1 else 1
            if not self.table.has_time_for(sum(self.expected(one, following) for one in left)):
                left = self._best_first([one for one in left if self.run(one, epochs=epochs, share=share)])
        for epochs in RUNGS:
            left = self._best_first([one for one in left if self.run(one, epochs=epochs)])
            left = left[: max(1, (len(left) + 1) // 2)]

    def _best_first(self, strategies: Sequence[Strategy]) -> list[Strategy]:
        return sorted(strategies, key=lambda one: -self.done[one.name].run.test_accuracy)

    def run(self, strategy: Strategy, *, epochs: int, share: float = 1.0) -> bool:
        """One fit, on a share of the samples; whether there was time for it."""
        expected, drawn = self.expected(strategy, epochs, share), self.drawn.part(share, self.transfer.labels)
        said = f"{strategy.name}, {len(drawn.train)} samples, {in_epochs(epochs)}, seed {self.seed}"
        effort = replace(
            self.effort,
            epochs=epochs,
            patience=epochs,
            trials=3 if isinstance(strategy, FeatureExtraction) else self.effort.trials,  # which costs seconds
            deadline=self.table.deadline(rest=self._after_training),
            reporting=self.effort.reporting.named(said, model=self.transfer.model, source=self.transfer.source),
        )
        samples = (drawn.train.tolist(), self.held_out.tolist())
        config = run_config(self.transfer, strategy, shots=0, seed=self.seed, effort=effort, samples=samples)
        key = fingerprint_json([strategy.name, config])[:16]
        known = self.ledger.read().get(key)
        if known is None:
            if expected and not self.table.has_time_for(expected):
                left_out = f"{in_epochs(epochs, share)} would take {expected:.0f} s, more than was left"
                self.skipped[strategy.name] = left_out
                return False
            frozen = isinstance(strategy, FeatureExtraction)
            name = strategy.name if frozen else f"{strategy.name}, {in_epochs(epochs, share)}"
            with self.table.stage(name, expected=expected or None):
                cost = Footprint(strategy.name)
                known = run_once(
                    self.transfer, strategy, drawn, key, config, 0, self.seed, effort, cost,
                    evaluated=self.held_out,
                )  # fmt: skip
            if not frozen and strategy.name not in self.done:
                self.slowness = max(1.0, self.slowness * self.table.stages[-1].seconds / expected)
            if known.stopped:
                self.skipped[strategy.name] = f"of {in_epochs(epochs, share)}, {known.stopped}"
                return False
            self.ledger.append(known)
        self.done[strategy.name] = Pilot(known, epochs, share)
        self.skipped.pop(strategy.name, None)
        return True

    def expected(self, strategy: Strategy, epochs: int, share: float = 1.0) -> float:
        """Seconds that a fit will take; of one that was not run yet, as many as of full fine-tuning."""
        if isinstance(strategy, FeatureExtraction):
            fitted = [stage.seconds for stage in self.table.stages if stage.name in self.done]
            return 4 * max(fitted, default=0.0)  # the pass is made; the first of them is fitted in any case
        before_and_after = self.slowness * (3 * self.pace.load + len(self.held_out) * self.pace.evaluate)
        known = self.done.get(strategy.name)
        if known is not None:
            fixed = min(before_and_after, known.seconds / 2)
            return fixed + (known.seconds - fixed) * epochs * share / known.seen
        n_train, n_validation = share * len(self.drawn.train), share * len(self.drawn.validation)
        passes = replace(self.effort, epochs=epochs).passes(round(n_train))
        trained = epochs * (n_train * passes * self.pace.train + n_validation * self.pace.evaluate)
        return before_and_after + self.slowness * self.effort.trials * trained

    @property
    def _after_training(self) -> float:
        """Seconds from the last step of a training to the end of its run."""
        n = len(self.drawn.validation) + len(self.held_out)
        return self.slowness * (2 * self.pace.load + n * self.pace.evaluate)


def in_epochs(epochs: int, share: float = 1.0) -> str:
    """ "1 epoch", "3 epochs", "1 epoch of 25 % of the samples"."""
    said = "1 epoch" if epochs == 1 else f"{epochs} epochs"
    return said if share == 1 else f"{said} of {share:.0%} of the samples".replace("%", " %")
