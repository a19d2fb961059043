"""The time of a budget: what is not expected to end within it is not begun, and what was left out is said."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


SAFETY = 1.3  # a stage is begun if so many times its expected duration is left


@dataclass(frozen=True)
class Stage:
    """A part of the work.

    Attributes:
        name: what was done, in words.
        seconds: that it took.
        expected: seconds that it was expected to take; None where nothing was known yet.
    """

    name: str
    seconds: float
    expected: float | None = None


@dataclass
class Timetable:
    """Stages within a budget of seconds, by `time.monotonic`.

    Attributes:
        budget: seconds that all may take.
        started: the reading of the clock from which they count.
        reserved: seconds at the end that no stage may use: for what comes last in any case.
        stages: those that ended.
    """

    budget: float
    started: float
    reserved: float = 0.0
    stages: list[Stage] = field(default_factory=list)

    @property
    def elapsed(self) -> float:
        """Seconds since it started."""
        return time.monotonic() - self.started

    def deadline(self, *, rest: float = 0.0) -> float:
        """The reading of the clock at which something has to stop for a rest of so many seconds to end in time."""
        return self.started + self.budget - self.reserved - SAFETY * rest

    def has_time_for(self, expected: float, *, share: float = 1.0) -> bool:
        """Whether a stage is expected to end in time, or within a share of the budget."""
        end = min(self.started + share * self.budget, self.deadline())
        return time.monotonic() + SAFETY * expected <= end

    @contextmanager
    def stage(self, name: str, *, expected: float | None = None) -> Iterator[None]:
        """Takes down how long something takes."""
        begun = time.monotonic()
        yield
        self.stages.append(Stage(name, time.monotonic() - begun, expected))
