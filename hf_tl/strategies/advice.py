"""What advise says: what to take, the code for it, the evidence, each alternative, and what would change its mind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hf_tl.card import in_time
from hf_tl.files import write_json
from hf_tl.probes.learning_curve import LearningCurve
from hf_tl.strategies.decision import Decision
from hf_tl.strategies.ledger import Run
from hf_tl.strategies.mistakes import Mistake
from hf_tl.strategies.portrait import Portrait
from hf_tl.strategies.timetable import Stage
from hf_tl.strategies.zones import Zones
from hf_tl.table import format_table


@dataclass(frozen=True)
class Alternative:
    """One strategy, as far as it is known.

    Attributes:
        strategy: its name.
        accuracy: expected of new samples; None where nothing is known.
        low: lower end of the 80 % interval.
        high: upper end.
        seconds: that one fit takes here, measured or expected; None where nothing is known.
        how: how it is known, in words.
        measured: whether it was fitted here; else accuracy is what other tasks let expect.
    """

    strategy: str
    accuracy: float | None
    low: float | None
    high: float | None
    seconds: float | None
    how: str
    measured: bool = True


@dataclass(frozen=True, eq=False)
class Advice:
    """A recommendation with what it rests on.

    Attributes:
        title: network and task.
        decision: what was chosen, and how sure that is.
        alternatives: every strategy that was considered, the cheapest first.
        code: a script that does what is recommended.
        evidence: a sentence each, with numbers.
        would_change: what would lead to other advice, a sentence each.
        notes: what else there is to say.
        seconds: that it took.
        budget: seconds that it might take.
        runs: what was fitted.
        curve: of feature extraction, against samples per class; None where there was no time for it.
        zones: which layers serve the task; None where there was no time for it.
        mistakes: where the advised strategy and its nearest rival differ.
        portrait: what the network makes of the samples before any training.
        left_out: what there was no time for, in sentences.
        stages: where the time went.
    """

    title: str
    decision: Decision
    alternatives: tuple[Alternative, ...]
    code: str
    evidence: tuple[str, ...]
    would_change: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float
    budget: float
    runs: tuple[Run, ...] = ()
    curve: LearningCurve | None = None
    zones: Zones | None = None
    mistakes: tuple[Mistake, ...] = ()
    portrait: Portrait = field(default_factory=Portrait)
    left_out: tuple[str, ...] = ()
    stages: tuple[Stage, ...] = ()

    @property
    def verdict(self) -> str:
        """One sentence."""
        name, delta = self.decision.chosen, in_points(self.decision.delta)
        if not self.decision.is_sure:
            said = f"Not distinguishable within {delta}: {name} is the least risky choice of those that were measured"
        elif name == self.decision.best:
            said = f"Take {name}: the best that was measured, and nothing cheaper is within {delta} of it"
        else:
            said = f"Take {name}: the cheapest strategy within {delta} of the best, {self.decision.best}"
        unknown = [one.strategy for one in self.alternatives if not one.measured]
        return f"{said}; not measured: {', '.join(unknown)}" if unknown else said

    def table(self) -> str:
        """Every strategy: accuracy with its 80 % interval, seconds of a fit, risk, and how it is known."""
        return format_table(*self.cells())

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """The header and the rows of `table`."""
        rows = []
        for one in self.alternatives:
            known, about = one.accuracy is not None, "" if one.measured else "about "
            rows.append(
                [
                    one.strategy,
                    f"{about}{one.accuracy:.3f} ({one.low:.3f} .. {one.high:.3f})" if known else "-",
                    "-" if one.seconds is None else f"{about}{in_time(one.seconds)}",
                    f"{self.decision.risk[one.strategy]:.2f}" if one.strategy in self.decision.risk else "-",
                    one.how,
                ]
            )
        lost = f"P(more than {in_points(self.decision.delta)} worse)"
        return ["strategy", "accuracy (80 %)", "one fit", lost, "how it is known"], rows

    def __str__(self) -> str:
        parts = [
            f"{self.title}\n{self.verdict}.",
            self.table(),
            "\n".join(f"- {line}" for line in self.evidence),
            "what would change it:\n" + "\n".join(f"- {line}" for line in self.would_change),
            f"to run it:\n\n{self.code}",
            "\n".join(f"note: {note}" for note in (*self.notes, *self.left_out)),
            f"{self.seconds:.0f} s of {self.budget:.0f} s",
        ]
        return "\n\n".join(part for part in parts if part)

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON; of the runs their keys."""
        return {
            "title": self.title,
            "verdict": self.verdict,
            "decision": asdict(self.decision),
            "alternatives": [asdict(one) for one in self.alternatives],
            "code": self.code,
            "evidence": list(self.evidence),
            "would_change": list(self.would_change),
            "notes": list(self.notes),
            "seconds": round(self.seconds, 1),
            "budget": self.budget,
            "runs": [run.key for run in self.runs],
            "stages": [asdict(stage) for stage in self.stages],
            "left_out": list(self.left_out),
            "layers": None if self.zones is None else {"verdict": self.zones.verdict, "rows": self.zones.cells()[1]},
            "mistakes": [
                {"index": one.index, "class": one.truth, "right": one.right, "wrong": one.wrong, "said": one.said}
                for one in self.mistakes
            ],
        }

    def save(self, path: str | Path) -> Path:
        """Writes a JSON file."""
        return write_json(Path(path), self.to_dict())


def in_points(share: float) -> str:
    """A share of samples in points: "1 point", "0.5 points"."""
    return "1 point" if share == 0.01 else f"{100 * share:g} points"


def costs_to_settle(n_samples: float, *, evaluated: int, available: int, seconds: Sequence[float]) -> str:
    """What it would take to tell two strategies apart, in a sentence.

    Args:
        n_samples: evaluated samples that would do.
        evaluated: samples that each fit evaluates.
        available: labelled samples that there are.
        seconds: of one fit of each of the two.
    """
    if n_samples > available:
        return (
            f"about {n_samples:,.0f} evaluated samples would settle it, and there are {available:,}: more "
            f"labels would help, more computing would not"
        )
    fits = max(2, -(-int(n_samples) // evaluated))
    return (
        f"about {n_samples:,.0f} evaluated samples would settle it: {fits} fits of each on other folds, "
        f"{in_time(fits * sum(seconds))}"
    )
