"""advise: what to do with a network and a task, found within a budget of time, on the training samples alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from hf_tl.analysis.footprint import Footprint
from hf_tl.data import Task
from hf_tl.embedding.fingerprint import fingerprint_json
from hf_tl.errors import InputError
from hf_tl.probes.heads import make_head
from hf_tl.probes.learning_curve import LearningCurve, learning_curve
from hf_tl.strategies.advice import Advice, Alternative, costs_to_settle
from hf_tl.strategies.compare import run_config, run_once
from hf_tl.strategies.decision import Decision, bootstrap, decide, samples_to_settle
from hf_tl.strategies.draws import Draw, draw, find_groups, usable_samples
from hf_tl.strategies.feature_extraction import FeatureExtraction
from hf_tl.strategies.ledger import Ledger, Run
from hf_tl.strategies.mistakes import find_mistakes
from hf_tl.strategies.portrait import Portrait, draw_portrait
from hf_tl.strategies.search import require_backend
from hf_tl.strategies.strategy import Effort, Strategy, find_strategies, in_seconds
from hf_tl.strategies.transfer import Pace, Transfer
from hf_tl.strategies.zones import Zones, find_zones, last_of_blocks


STRATEGIES = ("last layer", "full network", "linear probe", "split", "LP-FT", "full fine-tuning", "LoRA")
RUNGS = (3, 9, 27)  # epochs of pilots, the same number of samples seen for all; half of them go on
RESERVED = 0.05  # of the budget, for what comes behind the pilots
SAFETY = 1.3  # a pilot is begun if so many times its expected duration is left
LEDGER = "pilots.jsonl"


def advise(
    model: str,
    task: str | Task,
    *,
    budget: str | float = "10min",
    delta: float = 0.01,
    strategies: Sequence[str | Strategy] = STRATEGIES,
    image_size: int | None = None,
    out: str | Path = "runs/advise",
    effort: Effort | None = None,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> Advice:
    """Says which strategy to take: the cheapest within `delta` of the best, or that they cannot be told apart.

    Copies are looked for; one pass reads the network; feature extraction is fitted on what it says; the time that is
    left goes to pilots of the others, all with as many samples seen, of which the better half goes on to three times
    as many. A quarter of the training samples compares them; the test samples are not looked at.

    Args:
        model: name or folder of a pre-trained network.
        task: name of a dataset, or what `load_task` gave.
        budget: time that it may take, "10min"; the pass through the network is made in any case.
        delta: loss in accuracy that does not matter.
        strategies: that are considered.
        image_size: side of the square images in pixels, for all.
        out: folder of the ledger of pilots and of stored activations; a second call reuses both.
        effort: what a pilot may spend beside its epochs.
        groups: see `compare`.
        seed: of the samples that are held out, and of every fit.

    Raises:
        InputError: a task or a network that cannot be used, a class with fewer than four samples.
    """
    started = time.monotonic()
    limit, found = in_seconds(budget), find_strategies(strategies)
    if not 0 < delta < 1:
        raise InputError(f"delta should be a share of samples, such as 0.01 for one point, got {delta}")
    require_backend("grid" if effort is None else effort.search)
    transfer = Transfer.of(model, task, image_size=image_size, folder=Path(out))
    groups, notes = find_groups(transfer, groups)
    pool, counts = usable_samples(transfer.labels, n_train=transfer.n_train, groups=groups)
    fewest = int(counts.argmin())
    if counts[fewest] < 4:
        raise InputError(
            f"advice needs four training samples of each class or more, class {transfer.classes[fewest]!r} has "
            f"{counts[fewest]}"
        )
    split = draw(transfer.labels, pool, shots=len(pool), seed=seed)  # a quarter of each class is kept out
    pilots = _Pilots(
        transfer,
        held_out=split.validation,
        drawn=draw(transfer.labels, split.train, shots=len(pool), seed=seed + 1),
        ledger=Ledger(Path(out) / LEDGER),
        effort=replace(effort or Effort(trials=1, steps=1), deadline=started + (1 - RESERVED) * limit),
        seed=seed,
    )
    transfer.raw  # noqa: B018  the pass
    reading = time.monotonic() - started
    for strategy in (one for one in found if isinstance(one, FeatureExtraction)):
        pilots.run(strategy, epochs=1)
    is_early = time.monotonic() - started < limit / 2
    curve = _curve(transfer, split, pilots.effort) if is_early else None
    zones = _zones(transfer, split, pilots.effort) if is_early else None
    portrait = draw_portrait(transfer, split.train, groups=groups, effort=pilots.effort) if is_early else Portrait()
    pilots.halve([one for one in found if not isinstance(one, FeatureExtraction)])
    advice = _advice(transfer, found, pilots, curve, zones, delta, limit, reading, notes, started)
    return replace(advice, portrait=portrait, seconds=time.monotonic() - started)


@dataclass
class _Pilots:
    """Fits on a part of the training samples, compared on another part."""

    transfer: Transfer
    held_out: np.ndarray
    drawn: Draw
    ledger: Ledger
    effort: Effort
    seed: int
    done: dict[str, tuple[Run, int]] = field(default_factory=dict)  # strategy -> its longest run, epochs
    skipped: dict[str, str] = field(default_factory=dict)

    def halve(self, strategies: Sequence[Strategy]) -> None:
        """Runs all with few epochs, and the better half of those with more, as long as there is time."""
        left = list(strategies)
        for epochs in RUNGS:
            left = [one for one in left if self.run(one, epochs=epochs)]
            left = sorted(left, key=lambda one: -self.done[one.name][0].test_accuracy)[: max(1, (len(left) + 1) // 2)]

    def run(self, strategy: Strategy, *, epochs: int) -> bool:
        """One fit; whether there was time for it."""
        effort = replace(self.effort, epochs=epochs, patience=epochs)
        if isinstance(strategy, FeatureExtraction):
            effort = replace(effort, trials=3)  # which costs seconds
        samples = (self.drawn.train.tolist(), self.held_out.tolist())
        config = run_config(self.transfer, strategy, shots=0, seed=self.seed, effort=effort, samples=samples)
        key = fingerprint_json([strategy.name, config])[:16]
        known = self.ledger.read().get(key)
        if known is None:
            expected = self._seconds(strategy, epochs)
            if expected and time.monotonic() + SAFETY * expected > effort.deadline:
                self.skipped[strategy.name] = f"{epochs} epochs would take {expected:.0f} s, more than was left"
                return False
            cost = Footprint(strategy.name)
            known = run_once(
                self.transfer, strategy, self.drawn, key, config, 0, self.seed, effort, cost, evaluated=self.held_out
            )
            if known.stopped:
                self.skipped[strategy.name] = f"of {epochs} epochs, {known.stopped}"
                return False
            self.ledger.append(known)
        self.done[strategy.name] = known, epochs
        return True

    def seconds(self, name: str) -> float:
        """What the longest run of a strategy took."""
        return float(self.done[name][0].footprint["wall_seconds"]["value"])

    def _seconds(self, strategy: Strategy, epochs: int) -> float:
        if isinstance(strategy, FeatureExtraction):
            return 0.0  # the pass is made
        if strategy.name in self.done:
            return self.seconds(strategy.name) * epochs / self.done[strategy.name][1]
        n_train = len(self.drawn.train)
        trained = epochs * n_train * replace(self.effort, epochs=epochs).passes(n_train)
        evaluated = epochs * len(self.drawn.validation) + len(self.held_out)
        return 3 * self.pace.load + trained * self.pace.train + evaluated * self.pace.evaluate

    @cached_property
    def pace(self) -> Pace:
        """Measured once, before the first pilot."""
        return self.transfer.pace(self.effort.batch_size)


def _curve(transfer: Transfer, split: Draw, effort: Effort) -> LearningCurve | None:
    """Feature extraction of the last layer with fewer samples per class."""
    fewest = int(np.unique(transfer.labels[split.train], return_counts=True)[1].min())
    shots = sorted({max(1, fewest // k) for k in (16, 8, 4, 2, 1)})
    if len(shots) < 2 or effort.is_over:
        return None
    last = transfer.raw.select("last")
    return learning_curve(
        last[split.train], last[split.validation], shots=shots, n_splits=3, method="last layer", progress=False
    )


def _zones(transfer: Transfer, split: Draw, effort: Effort) -> Zones | None:
    """The last layer of each block alone, learnt and evaluated on the samples that the pilots have."""
    names, outcomes, labels = [], [], transfer.labels
    for block, layer in last_of_blocks(transfer.raw.layers).items():
        if effort.is_over:
            return None
        features = transfer.raw.select(layer)
        train, held_out = (np.asarray(features[part].values) for part in (split.train, split.validation))
        C = 10 / max(float(np.square(train, dtype=np.float64).sum(axis=1).mean()), 1e-12)
        head = make_head("svm", train.shape, C=C).fit(train, labels[split.train])
        names.append(block)
        outcomes.append(head.predict(held_out) == labels[split.validation])
    return find_zones(names, np.stack(outcomes).astype(np.int8)) if len(names) > 1 else None


def _rival(outcomes: dict[str, np.ndarray], decision: Decision) -> str:
    """The best of the strategies that were not chosen; "" where there is none."""
    return max((name for name in outcomes if name != decision.chosen), key=lambda n: outcomes[n].mean(), default="")


def _advice(
    transfer: Transfer,
    strategies: Sequence[Strategy],
    pilots: _Pilots,
    curve: LearningCurve | None,
    zones: Zones | None,
    delta: float,
    limit: float,
    reading: float,
    notes: Sequence[str],
    started: float,
) -> Advice:
    truth = transfer.labels[pilots.held_out]
    outcomes = {name: run.right(truth).astype(np.float64) for name, (run, _) in pilots.done.items()}
    if not outcomes:
        raise InputError("strategies has none that fits into the budget; add 'last layer', or give more time")
    accuracy = bootstrap(outcomes)
    costs = {name: pilots.seconds(name) for name in outcomes}
    decision = decide(accuracy, costs, delta=delta)
    alternatives = []
    for one in sorted(strategies, key=lambda one: costs.get(one.name, np.inf)):
        if one.name not in outcomes:
            why = pilots.skipped.get(one.name, "")
            alternatives.append(Alternative(one.name, None, None, None, None, f"not measured: {why}"))
            continue
        low, high = np.quantile(accuracy[one.name], [0.1, 0.9])
        frozen, epochs = isinstance(one, FeatureExtraction), pilots.done[one.name][1]
        how = "measured" if frozen else f"measured after {epochs} epochs"
        if one.name in pilots.skipped:
            how += f"; {pilots.skipped[one.name]}"
        alternatives.append(
            Alternative(one.name, float(accuracy[one.name].mean()), float(low), float(high), costs[one.name], how)
        )
    chosen = next(one for one in strategies if one.name == decision.chosen)
    rival = _rival(outcomes, decision)
    return Advice(
        title=f"{Path(transfer.model).name} on {Path(transfer.source).name}",
        decision=decision,
        alternatives=tuple(alternatives),
        code=chosen.code(transfer, pilots.done[chosen.name][0].setting),
        evidence=tuple(_evidence(transfer, pilots, outcomes, decision, curve, zones, reading)),
        would_change=tuple(_would_change(transfer, pilots, outcomes, costs, decision, curve)),
        notes=(*transfer.task.notes, *notes),
        seconds=time.monotonic() - started,
        budget=limit,
        runs=tuple(run for run, _ in pilots.done.values()),
        curve=curve,
        zones=zones,
        mistakes=()
        if not rival
        else find_mistakes(transfer, pilots.done[chosen.name][0], pilots.done[rival][0], evaluated=pilots.held_out),
    )


def _evidence(
    transfer: Transfer,
    pilots: _Pilots,
    outcomes: dict[str, np.ndarray],
    decision: Decision,
    curve: LearningCurve | None,
    zones: Zones | None,
    reading: float,
) -> list[str]:
    n_fit, n = len(pilots.drawn.train) + len(pilots.drawn.validation), len(pilots.held_out)
    said = [
        f"{n_fit} training samples were learnt from, {n} others compared the strategies; one more right is "
        f"{100 / n:.2g} points; the {len(transfer.test)} test samples were not looked at",
        f"copies looked for and every layer read, {len(transfer.labels)} samples: {reading:.0f} s",
    ]
    best, chosen = outcomes[decision.best], outcomes[decision.chosen]
    if decision.best != decision.chosen:
        said.append(
            f"{decision.best} is right on {int((best > chosen).sum())} samples that {decision.chosen} gets wrong, and "
            f"wrong on {int((best < chosen).sum())} that it gets right"
        )
    if zones is not None:
        said.append(zones.verdict)
    if curve is not None:
        low, high = 100 * curve.accuracy["last layer"].mean(axis=1)[[-2, -1]]
        said.append(
            f"the last layer alone gains {high - low:+.1f} points from {curve.shots[-2]} to {curve.shots[-1]} samples "
            f"per class"
        )
    return said


def _would_change(
    transfer: Transfer,
    pilots: _Pilots,
    outcomes: dict[str, np.ndarray],
    costs: dict[str, float],
    decision: Decision,
    curve: LearningCurve | None,
) -> list[str]:
    rival = _rival(outcomes, decision)
    said = []
    if rival:
        needed = samples_to_settle(outcomes[decision.chosen], outcomes[rival], delta=decision.delta)
        settles = costs_to_settle(
            needed,
            evaluated=len(pilots.held_out),
            available=transfer.n_train,
            seconds=[costs[decision.chosen], costs[rival]],
        )
        said.append(f"{decision.chosen} against {rival}: {settles}")
    law = None if curve is None else curve.law("last layer")
    if curve is not None and law is not None:
        n = 2 * curve.shots[-1]
        low, high = law.range_at(n)
        expected = f"{law.at(n):.2f} ({low:.2f} .. {high:.2f})"
        said.append(f"with {n} samples per class the last layer is expected at {expected}")
    said += [f"{name} was not measured to its end: {why}" for name, why in pilots.skipped.items()]
    return said or ["a strategy that was not considered"]
