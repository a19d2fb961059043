"""The phases of a policy: each begins after epochs, after steps, or on a plateau of a metric."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hf_tl.errors import InputError
from hf_tl.layers import Layers
from hf_tl.policies.grammar import Clause, parse_policy


TIME = re.compile(r"\s*(?P<amount>\d{1,9}(?:\.\d+)?)\s*(?P<unit>epoch|step)s?\s*")
PLATEAU = re.compile(r"\s*plateau\s+(?P<metric>\S+)\s+(?P<patience>\d{1,9})(?:\s+(?P<mode>min|max))?\s*")
TOLERANCE = 1e-9  # of an epoch: Trainer counts them in fractions

Schedule = Callable[[Layers], Sequence[tuple[str, str]]]  # phases that are made for the layers of a network


@dataclass(frozen=True)
class PhaseStart:
    """When a phase begins.

    Attributes:
        when: as it was written.
        unit: "start", "epoch", "step" or "plateau".
        amount: epochs or steps since the start of training; evaluations without an improvement.
        metric: that is waited for, "" unless on a plateau.
        falls: whether the metric improves downwards.
    """

    when: str
    unit: str = "start"
    amount: float = 0.0
    metric: str = ""
    falls: bool = True


@dataclass(frozen=True)
class Phase:
    """What holds from a moment on."""

    start: PhaseStart
    clauses: tuple[Clause, ...] = ()


@dataclass(frozen=True)
class Progress:
    """How far training is.

    Attributes:
        step: optimizer steps that are done.
        epoch: epochs that are done, with their fraction.
        history: what was logged, oldest first: mappings with "step", "epoch" and metrics, as in Trainer's
            `state.log_history`.
    """

    step: int = 0
    epoch: float = 0.0
    history: Sequence[Mapping[str, float]] = ()


def parse_start(when: str) -> PhaseStart:
    """Reads "0", "2 epochs", "100 steps" or "plateau eval_loss 2".

    On a plateau, the metric has not improved for that many evaluations in a row, counted within the phase before. One
    with "loss" in its name improves downwards, any other upwards; "min" or "max" behind it says otherwise.

    Raises:
        InputError: a moment that is written otherwise.
    """
    if when.strip() == "0":
        return PhaseStart(when)
    if time := TIME.fullmatch(when):
        return PhaseStart(when, time["unit"], float(time["amount"]))
    plateau = PLATEAU.fullmatch(when)
    if plateau is None or int(plateau["patience"]) == 0:
        raise InputError(f"a phase begins at '0', '2 epochs', '100 steps' or 'plateau eval_loss 2', got {when!r}")
    falls = plateau["mode"] == "min" if plateau["mode"] else "loss" in plateau["metric"]
    return PhaseStart(when, "plateau", float(plateau["patience"]), plateau["metric"], falls)


def parse_phases(phases: Sequence[tuple[str, str]]) -> tuple[Phase, ...]:
    """Reads pairs of when a phase begins and the clauses that hold from then on.

    Raises:
        InputError: something else than pairs, phases out of order, a clause that is malformed.
    """
    if not all(isinstance(pair, tuple | list) and [type(part) for part in pair] == [str, str] for pair in phases):
        raise InputError(f"phases should be pairs like ('2 epochs', 'tune: all'), got {phases!r}")
    found = tuple(Phase(parse_start(when), parse_policy(text)) for when, text in phases)
    if found and found[0].start.unit != "start":
        raise InputError(
            f"the first phase should begin at '0', got {found[0].start.when!r}; put ('0', 'tune: ...') in front"
        )
    latest: dict[str, PhaseStart] = {}
    for phase in found:
        start = phase.start
        before = latest.get(start.unit)
        if before is not None and start.unit != "plateau" and start.amount <= before.amount:
            raise InputError(f"phases should be in the order of time, but {start.when!r} comes after {before.when!r}")
        latest[start.unit] = start
    return found


def phase_at(starts: Sequence[PhaseStart], progress: Progress) -> int:
    """The number of the phase that holds now: a function of what was done and logged, and so the same after a resume.

    Raises:
        InputError: a plateau of a metric that evaluations do not report.
    """
    current, since = 0, 0  # since: the step at which the current phase began, as far as evaluations can tell
    for number, start in enumerate(starts[1:], 1):
        began = _began(start, progress, since)
        if began is None:
            break
        current, since = number, began
    return current


def _began(start: PhaseStart, progress: Progress, since: int) -> int | None:
    """The step at which a phase began, None if it has not."""
    if start.unit == "step":
        return int(start.amount) if progress.step >= start.amount else None
    if start.unit == "epoch":
        if progress.epoch < start.amount - TOLERANCE:
            return None
        earlier = [entry for entry in progress.history if entry.get("epoch", 0.0) <= start.amount + TOLERANCE]
        return max((int(entry.get("step", 0)) for entry in earlier), default=0)
    return _plateau(start, progress, since)


def _plateau(start: PhaseStart, progress: Progress, since: int) -> int | None:
    evaluations = [entry for entry in progress.history if entry.get("step", 0) > since]
    reports = [entry for entry in evaluations if start.metric in entry]
    names = {name for entry in evaluations for name in entry if name.startswith("eval_")}
    if names and not reports:
        raise InputError(
            f"phase {start.when!r} waits for {start.metric!r}, which evaluations do not report; "
            f"they report {', '.join(sorted(names))}"
        )
    best, waited = float("inf"), 0
    for entry in reports:
        value = entry[start.metric] if start.falls else -entry[start.metric]
        best, waited = (value, 0) if value < best else (best, waited + 1)
        if waited >= start.amount:
            return int(entry["step"])
    return None


def unfreeze_gradually(layers: Layers, *, every: int, unit: str, blocks: int) -> list[tuple[str, str]]:
    """The phases of gradual unfreezing; in a network of several towers, the last to run is unfrozen first."""
    after = _after_blocks(layers)
    selections = [", ".join(after)] if "head" in after else []
    done: list[str] = []
    for tower in reversed(layers.towers or ("",)):
        count = sum(layer.kind == "block" and layer.tower == tower for layer in layers)
        prefix = f"{tower}." if tower else ""
        selections += [", ".join([f"{prefix}-{k}..", *done, *after]) for k in range(blocks, count, blocks)]
        if count:
            done.append(f"{prefix}0..")
            selections.append(", ".join([*done, *after]))
    amounts = [i * every for i in range(1, len(selections) + 1)]
    starts = ["0", *(f"{amount} {unit}{'s' * (amount > 1)}" for amount in amounts)]
    return [(when, f"tune: {selection}") for when, selection in zip(starts, [*selections, "all"], strict=True)]


def tune_top(layers: Layers, *, k: int) -> list[tuple[str, str]]:
    """One phase, in which the last `k` blocks and what follows them train.

    Raises:
        InputError: a network of several towers, or of fewer blocks.
    """
    if len(layers.towers) > 1:
        raise InputError(
            f"top_k is for one tower, and the network has {', '.join(layers.towers)}; "
            f"write 'tune: {layers.towers[-1]}.-{k}..'"
        )
    count = sum(layer.kind == "block" for layer in layers)
    if k > count:
        raise InputError(f"k should be at most {count}, the number of blocks, got {k}")
    return [("0", f"tune: {', '.join([f'-{k}..'] * bool(k) + _after_blocks(layers))}")]


def _after_blocks(layers: Layers) -> list[str]:
    return [kind for kind in ("norm", "head") if any(layer.kind == kind for layer in layers)]
