"""What the one pass through the network shows beside the pilots: curve, zones and portrait, each if time allows."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from hf_tl import plots
from hf_tl.probes.learning_curve import LearningCurve, learning_curve
from hf_tl.strategies.draws import Draw
from hf_tl.strategies.portrait import (
    MOST_READ,
    Portrait,
    compare_blocks,
    draw_copies,
    draw_units,
    read_signs,
)
from hf_tl.strategies.timetable import Timetable
from hf_tl.strategies.transfer import Pace, Transfer
from hf_tl.strategies.zones import Zones, measure_zones, probe_layer


SPLITS = 3  # of the learning curve
SIGNS = 10  # forward passes that reading the source's signs takes as long as: statistics are in double precision


@dataclass
class Survey:
    """Looks at the network and the samples, part by part.

    Attributes:
        transfer: network and task.
        split: training samples, and those that are held out.
        groups: (n_samples,) equal numbers are copies.
        table: the time that there is.
        pace: of the network here.
        curve: of feature extraction, against samples per class.
        zones: which layers serve the task.
        portrait: what the network makes of the samples.
        left: parts that were not made yet.
    """

    transfer: Transfer
    split: Draw
    groups: np.ndarray
    table: Timetable
    pace: Pace
    curve: LearningCurve | None = None
    zones: Zones | None = None
    portrait: Portrait = field(default_factory=Portrait)
    left: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.left = [*self._parts]

    def look(self, *, share: float) -> None:
        """Makes the parts for which there is time within a share of the budget."""
        for name in list(self.left):
            make, expected = self._parts[name]
            if self.table.has_time_for(expected(), share=share):
                with self.table.stage(name, expected=expected()):
                    make()
                self.left.remove(name)

    @property
    def left_out(self) -> list[str]:
        """What there was no time for, in sentences."""
        return [f"{name}: not made, {self._parts[name][1]():.0f} s more would do" for name in self.left]

    @cached_property
    def figure_seconds(self) -> float:
        """What one figure of a report takes, as a picture beside the report and inside it, measured."""
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(2):  # the first one also looks for the fonts of this machine, which takes seconds
                begun = time.monotonic()
                for ending in ("png", "svg"):
                    with plots.picture(Path(folder) / f"figure.{ending}", title="figure") as (panel,):
                        plots.curve(panel, range(20), range(20), color=plots.BLUE, label="curve")
                        plots.legend(panel)
        return time.monotonic() - begun

    @cached_property
    def _fit_seconds(self) -> float:
        """What one linear SVM on the last layer takes, measured."""
        begun = time.monotonic()
        probe_layer(self.transfer, "last", self.split.train, self.split.validation)
        return time.monotonic() - begun

    @property
    def _parts(self) -> dict[str, tuple[Callable[[], None], Callable[[], float]]]:
        """Name -> what makes it, and the seconds that it is expected to take."""
        return {
            "which layers serve the task": (self._find_zones, self._seconds_of_layers),
            "accuracy with fewer samples per class": (self._draw_curve, lambda: 40 * self._fit_seconds),
            "which layers are alike": (self._compare, self._seconds_of_layers),
            "images that excite units most": (self._draw_units, lambda: 2 * self.figure_seconds),
            "copies": (self._draw_copies, lambda: 2 * self.figure_seconds),
            "how near the source is": (
                self._read_signs,
                lambda: self.pace.load + SIGNS * MOST_READ * self.pace.evaluate,
            ),
        }

    def _seconds_of_layers(self) -> float:
        """One fit on each block's last layer, as long as their columns are many."""
        raw = self.transfer.raw
        return self._fit_seconds * raw.values.shape[1] / raw.select("last").values.shape[1]

    def _find_zones(self) -> None:
        """On the samples that the pilots have."""
        self.zones = measure_zones(self.transfer, self.split.train, self.split.validation)

    def _draw_curve(self) -> None:
        """Feature extraction of the last layer with fewer samples per class."""
        train, held_out = self.split.train, self.split.validation
        fewest = int(np.unique(self.transfer.labels[train], return_counts=True)[1].min())
        shots = sorted({max(1, fewest // k) for k in (16, 8, 4, 2, 1)})
        last = self.transfer.raw.select("last")
        if len(shots) > 1:
            self.curve = learning_curve(
                last[train], last[held_out], shots=shots, n_splits=SPLITS, method="last layer", progress=False
            )

    def _compare(self) -> None:
        similarity = compare_blocks(self.transfer, self.split.train)
        self.portrait = replace(self.portrait, similarity=similarity)

    def _read_signs(self) -> None:
        self.portrait = replace(self.portrait, signs=read_signs(self.transfer, self.split.train))

    def _draw_units(self) -> None:
        found = draw_units(self.transfer, self.split.train, groups=self.groups)
        if found is not None:
            self.portrait = replace(self.portrait, units=found[0], units_of=found[1])

    def _draw_copies(self) -> None:
        self.portrait = replace(self.portrait, copies=draw_copies(self.transfer, groups=self.groups))
