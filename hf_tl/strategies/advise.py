"""advise: what to do with a network and a task, found within a budget of time, on the training samples alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from hf_tl.data import Task
from hf_tl.errors import InputError
from hf_tl.probes.learning_curve import LearningCurve
from hf_tl.strategies.advice import Advice, Alternative, costs_to_settle
from hf_tl.strategies.compare import settle
from hf_tl.strategies.comparison import FROZEN
from hf_tl.strategies.decision import Decision, bootstrap, decide, samples_to_settle
from hf_tl.strategies.draws import draw, find_groups, usable_samples
from hf_tl.strategies.feature_extraction import FeatureExtraction
from hf_tl.strategies.ledger import Ledger
from hf_tl.strategies.mistakes import find_mistakes
from hf_tl.strategies.pilots import RUNGS, Pilots, in_epochs
from hf_tl.strategies.prior import expect
from hf_tl.strategies.reporting import Reporting
from hf_tl.strategies.search import require_backend
from hf_tl.strategies.strategy import Effort, Strategy, find_strategies, in_seconds
from hf_tl.strategies.survey import Survey
from hf_tl.strategies.timetable import Timetable
from hf_tl.strategies.transfer import Transfer


STRATEGIES = (
    "last layer", "full network", "linear probe", "split", "measured cut", "LP-FT", "full fine-tuning", "LoRA"
)  # fmt: skip
LEDGER = "pilots.jsonl"
FIGURES = 10  # of a report, for which time is kept


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
    since: float | None = None,
    report_to: str | Sequence[str] = (),
) -> Advice:
    """Says which strategy to take: the cheapest within `delta` of the best, or that they cannot be told apart.

    Copies are looked for; one pass reads the network; feature extraction is fitted on what it says; the time that is
    left goes to pilots of the others, all with as many samples seen, of which the better half goes on to three times
    as many; where not one epoch of each fits, they are run on a quarter of the samples first. A quarter of the
    training samples compares them; the test samples are not looked at. Trainings use the layout and the precision that
    a few steps show to be fastest here.

    Args:
        model: name or folder of a pre-trained network.
        task: name of a dataset, or what `load_task` gave.
        budget: time that it may take, "10min", with a report that is written of it; the search for copies and the
            pass through the network are made in any case.
        delta: loss in accuracy that does not matter.
        strategies: that are considered.
        image_size: side of the square images in pixels, for all.
        out: folder of the ledger of pilots and of stored activations; a second call reuses both.
        effort: what a pilot may spend beside its epochs.
        groups: see `compare`.
        seed: of the samples that are held out, and of every fit.
        since: reading of `time.monotonic` from which the budget counts; None for now.
        report_to: see `compare`; pilots are named by their samples and epochs. The pass through the network, and what
            is fitted on it, have no Trainer.

    Raises:
        InputError: a task or a network that cannot be used, a class with fewer than four samples.
    """
    table = Timetable(in_seconds(budget), time.monotonic() if since is None else since)
    found = find_strategies(strategies)
    if not 0 < delta < 1:
        raise InputError(f"delta should be a share of samples, such as 0.01 for one point, got {delta}")
    if seed < 0:
        raise InputError(f"seed should be 0 or more, got {seed}")
    require_backend("grid" if effort is None else effort.search)
    reporting = Reporting.of(report_to, folder=Path(out))
    with table.stage("copies looked for"):
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
    with table.stage("every layer read"):
        transfer.raw  # noqa: B018  the pass
    effort = replace(effort or Effort(trials=1, steps=1, bf16="auto"), reporting=reporting)
    with table.stage("pace measured"):
        effort, measured = settle(effort, transfer, found)
        pace = transfer.pace(effort.batch_size, bf16=effort.bf16 is True)
        survey = Survey(transfer, split, groups, table, pace)
        table.reserved = pace.load + FIGURES * survey.figure_seconds
    notes = (*notes, *measured)
    pilots = Pilots(
        transfer,
        held_out=split.validation,
        drawn=draw(transfer.labels, split.train, shots=len(pool), seed=seed + 1),
        ledger=Ledger(Path(out) / LEDGER),
        effort=effort,
        table=table,
        pace=pace,
        seed=seed,
    )
    for strategy in (one for one in found if isinstance(one, FeatureExtraction)):
        pilots.run(strategy, epochs=1)
    survey.look(share=0.5)
    pilots.halve([one for one in found if not isinstance(one, FeatureExtraction)])
    survey.look(share=1.0)
    with table.stage("decision"):
        advice = _advice(transfer, found, pilots, survey, delta, notes)
    return replace(advice, seconds=table.elapsed, stages=tuple(table.stages))


def _rival(outcomes: dict[str, np.ndarray], decision: Decision) -> str:
    """The best of the strategies that were not chosen; "" where there is none."""
    return max((name for name in outcomes if name != decision.chosen), key=lambda n: outcomes[n].mean(), default="")


def _advice(
    transfer: Transfer,
    strategies: Sequence[Strategy],
    pilots: Pilots,
    survey: Survey,
    delta: float,
    notes: Sequence[str],
) -> Advice:
    truth = transfer.labels[pilots.held_out]
    outcomes = {name: one.run.right(truth).astype(np.float64) for name, one in pilots.done.items()}
    if not outcomes:
        raise InputError("strategies has none that fits into the budget; add 'last layer', or give more time")
    accuracy = bootstrap(outcomes)
    costs = {name: pilots.done[name].seconds for name in outcomes}
    decision = decide(accuracy, costs, delta=delta)
    alternatives = []
    for one in sorted(strategies, key=lambda one: costs.get(one.name, np.inf)):
        if one.name not in outcomes:
            alternatives.append(_unmeasured(one, transfer, pilots, accuracy))
            continue
        low, high = np.quantile(accuracy[one.name], [0.1, 0.9])
        frozen, pilot = isinstance(one, FeatureExtraction), pilots.done[one.name]
        how = "measured" if frozen else f"measured after {in_epochs(pilot.epochs, pilot.share)}"
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
        code=chosen.code(transfer, pilots.done[chosen.name].run.setting),
        evidence=tuple(_evidence(transfer, pilots, outcomes, decision, survey)),
        would_change=tuple(_would_change(transfer, pilots, outcomes, costs, decision, survey.curve)),
        notes=(*transfer.task.notes, *notes),
        seconds=pilots.table.elapsed,
        budget=pilots.table.budget,
        runs=tuple(pilot.run for pilot in pilots.done.values()),
        curve=survey.curve,
        zones=survey.zones,
        portrait=survey.portrait,
        left_out=tuple(survey.left_out),
        mistakes=()
        if not rival
        else find_mistakes(transfer, pilots.done[chosen.name].run, pilots.done[rival].run, evaluated=pilots.held_out),
    )


def _unmeasured(
    strategy: Strategy, transfer: Transfer, pilots: Pilots, accuracy: dict[str, np.ndarray]
) -> Alternative:
    """What is expected of a strategy for which there was no time: by what it was worth elsewhere."""
    frozen = [accuracy[one].mean() for one in FROZEN if one in accuracy]
    shots = (len(pilots.drawn.train) + len(pilots.drawn.validation)) / len(transfer.classes)
    prior = expect(strategy.name, frozen=float(max(frozen)), shots=shots) if frozen else None
    seconds, how = pilots.expected(strategy, RUNGS[0]), f"not measured: {pilots.skipped.get(strategy.name, '')}"
    if prior is None:
        return Alternative(strategy.name, None, None, None, seconds or None, how, measured=False)
    how = f"from {prior.n_tasks} other tasks; {how}"
    return Alternative(strategy.name, prior.accuracy, prior.low, prior.high, seconds, how, measured=False)


def _evidence(
    transfer: Transfer,
    pilots: Pilots,
    outcomes: dict[str, np.ndarray],
    decision: Decision,
    survey: Survey,
) -> list[str]:
    n_fit, n = len(pilots.drawn.train) + len(pilots.drawn.validation), len(pilots.held_out)
    said = [
        f"{n_fit} training samples were learnt from, {n} others compared the strategies; one more right is "
        f"{100 / n:.2g} points; the {len(transfer.test)} test samples were not looked at",
    ]
    best, chosen = outcomes[decision.best], outcomes[decision.chosen]
    if decision.best != decision.chosen:
        said.append(
            f"{decision.best} is right on {int((best > chosen).sum())} samples that {decision.chosen} gets wrong, and "
            f"wrong on {int((best < chosen).sum())} that it gets right"
        )
    curve = survey.curve
    if survey.zones is not None:
        said.append(survey.zones.verdict)
    cut, split = pilots.done.get("measured cut"), pilots.done.get("split")
    if cut is not None and split is not None and cut.seen == split.seen:
        policy, here, there = cut.run.setting.partition(", ")[2], outcomes["measured cut"], outcomes["split"]
        gains, losses = int((here > there).sum()), int((here < there).sum())
        said.append(
            f"{policy!r}, where the blocks say to cut, against the first three quarters frozen, "
            f"{in_epochs(cut.epochs)} of each: right on {gains} samples that those get wrong, wrong on {losses} that "
            f"they get right"
        )
    if curve is not None:
        low, high = 100 * curve.accuracy["last layer"].mean(axis=1)[[-2, -1]]
        said.append(
            f"the last layer alone gains {high - low:+.1f} points from {curve.shots[-2]} to {curve.shots[-1]} samples "
            f"per class"
        )
    return said


def _would_change(
    transfer: Transfer,
    pilots: Pilots,
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
    by_reason: dict[str, list[str]] = {}
    for name, why in pilots.skipped.items():
        by_reason.setdefault(why, []).append(name)
    said += [f"not measured to the end: {', '.join(names)}; {why}" for why, names in by_reason.items()]
    return said or ["a strategy that was not considered"]
