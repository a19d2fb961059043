"""When one phase of a policy ends and the next begins: after epochs, after steps, or on a plateau of a metric."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hf_tl.errors import InputError


WHEN = re.compile(r"\s*(?P<amount>\d+(?:\.\d+)?)\s*(?P<unit>epochs?|steps?)\s*")
PLATEAU = re.compile(r"\s*plateau\s+(?P<metric>\S+)\s+(?P<patience>\d+)(?:\s+(?P<mode>min|max))?\s*")
TOLERANCE = 1e-9  # of an epoch: Trainer counts them in fractions


@dataclass(frozen=True)
class At:
    """A phase of a policy: what holds from a moment on.

    Attributes:
        when: "0"; "2 epochs" or "100 steps" since the start of training; or "plateau eval_loss 2", which is when
            that metric has not improved for 2 evaluations in a row, counted within the phase before. A metric with
            "loss" in its name improves downwards, any other upwards; "min" or "max" behind it says otherwise.
        text: the policy from then on.

    Raises:
        InputError: a moment that is written otherwise.
    """

    when: str
    text: str
    unit: str = field(init=False, default="start", repr=False)
    amount: float = field(init=False, default=0.0, repr=False)
    metric: str = field(init=False, default="", repr=False)
    falls: bool = field(init=False, default=True, repr=False)

    def __post_init__(self):
        if self.when.strip() == "0":
            return
        time, plateau = WHEN.fullmatch(self.when), PLATEAU.fullmatch(self.when)
        if time:
            values = {"unit": time["unit"].rstrip("s"), "amount": float(time["amount"])}
        elif plateau and int(plateau["patience"]) > 0:
            falls = plateau["mode"] == "min" if plateau["mode"] else "loss" in plateau["metric"]
            values = {"unit": "plateau", "amount": float(plateau["patience"])}
            values |= {"metric": plateau["metric"], "falls": falls}
        else:
            raise InputError(
                f"a phase begins at '0', '2 epochs', '100 steps' or 'plateau eval_loss 2', got {self.when!r}"
            )
        for name, value in values.items():
            object.__setattr__(self, name, value)


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


def check_order(phases: Sequence[At]) -> None:
    """Sees that there is a phase to begin with, and that none begins before an earlier one.

    Raises:
        InputError: otherwise.
    """
    if not phases or phases[0].unit != "start":
        first = phases[0].when if phases else "nothing"
        raise InputError(f"the first phase should begin at '0', got {first!r}; put At('0', ...) in front")
    latest: dict[str, At] = {}
    for phase in phases[1:]:
        before = latest.get(phase.unit)
        if phase.unit == "start" or (before and phase.unit != "plateau" and phase.amount <= before.amount):
            earlier = before.when if before else "0"
            raise InputError(f"phases should be in the order of time, but {phase.when!r} comes after {earlier!r}")
        latest[phase.unit] = phase


def phase_at(phases: Sequence[At], progress: Progress) -> int:
    """The number of the phase that holds now: a function of what was done and logged, and so the same after a resume.

    Raises:
        InputError: a plateau of a metric that evaluations do not report.
    """
    current, since = 0, 0  # since: the step at which the current phase began, as far as evaluations can tell
    for number, phase in enumerate(phases[1:], 1):
        began = _began(phase, progress, since)
        if began is None:
            break
        current, since = number, began
    return current


def _began(phase: At, progress: Progress, since: int) -> int | None:
    """The step at which a phase began, None if it has not."""
    if phase.unit == "step":
        return int(phase.amount) if progress.step >= phase.amount else None
    if phase.unit == "epoch":
        if progress.epoch < phase.amount - TOLERANCE:
            return None
        seen = [entry for entry in progress.history if entry.get("epoch", 0.0) <= phase.amount + TOLERANCE]
        return max((int(entry.get("step", 0)) for entry in seen), default=0)
    return _plateau(phase, progress, since)


def _plateau(phase: At, progress: Progress, since: int) -> int | None:
    evaluations = [entry for entry in progress.history if entry.get("step", 0) > since]
    reports = [entry for entry in evaluations if phase.metric in entry]
    names = {name for entry in evaluations for name in entry if name.startswith("eval_")}
    if names and not reports:
        raise InputError(
            f"phase {phase.when!r} waits for {phase.metric!r}, which evaluations do not report; "
            f"they report {', '.join(sorted(names))}"
        )
    best, waited = None, 0
    for entry in reports:
        value = entry[phase.metric] if phase.falls else -entry[phase.metric]
        improved = best is None or value < best
        best, waited = (value, 0) if improved else (best, waited + 1)
        if waited >= phase.amount:
            return int(entry["step"])
    return None
