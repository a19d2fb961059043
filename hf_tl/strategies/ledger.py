"""A ledger of runs: one line of JSON each, appended whole; safe to be killed, resumed and written by several."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hf_tl.analysis.training_change import TrainingChange
from hf_tl.errors import InputError
from hf_tl.files import make_folder


LARGEST = 10**9  # bytes


@dataclass(frozen=True)
class Run:
    """One fit of one strategy.

    Attributes:
        key: digest of what decides the result: network, samples, strategy, number of samples, seed, effort.
        strategy: its name.
        shots: samples per class.
        seed: of the draw and of the fit.
        config: all that the key is a digest of, in words.
        train: indices of the samples that were learnt from.
        validation: indices of those that the setting was chosen by.
        setting: the chosen one.
        trials: how many were tried; the footprint counts all.
        validation_accuracy: NaN where there were no samples to choose by.
        test_accuracy: share of the evaluated samples that are right.
        predicted: (n_evaluated,) numbers of classes.
        samples_seen: that went through the network while it learnt.
        stopped: why it ended before its time; "" where it did not.
        footprint: what it cost, of `hf_tl.analysis.footprint.Footprint`; the search is part of it.
        versions: of the packages that it ran on.
        change: of a network that was trained, layer -> (depth, relative change of its weights); see `TrainingChange`.
    """

    key: str
    strategy: str
    shots: int
    seed: int
    config: Mapping[str, Any]
    train: tuple[int, ...]
    validation: tuple[int, ...]
    setting: str
    trials: int
    validation_accuracy: float
    test_accuracy: float
    predicted: tuple[int, ...]
    samples_seen: int
    stopped: str = ""
    footprint: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    change: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def training_change(self) -> TrainingChange | None:
        """What training changed; None of a network that stayed frozen."""
        if not self.change:
            return None
        depths, relative = np.asarray([*self.change.values()], dtype=float).T
        return TrainingChange(tuple(self.change), depths, relative)

    def right(self, truth: np.ndarray) -> np.ndarray:
        """(n_evaluated,) bool: which samples of these classes it got right."""
        return np.asarray(self.predicted) == truth


class Ledger:
    """The runs in a file, in the order in which they ended.

    A line is written in one piece under a lock. A process that is killed while it writes leaves half a line at the
    end, which counts as a run that was not done and is cut off by the next one to write.

    Args:
        path: of the file, which need not be there yet.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def read(self) -> dict[str, Run]:
        """All runs, by key.

        Raises:
            InputError: a line that is no run, other than a last one that was not written to its end.
        """
        if not self.path.is_file():
            return {}
        if self.path.stat().st_size > LARGEST:
            raise InputError(f"{str(self.path)!r} has more than {LARGEST:,} bytes, which no ledger has")
        whole, _, _ = self.path.read_bytes().rpartition(b"\n")
        runs: dict[str, Run] = {}
        for number, line in enumerate(whole.split(b"\n") if whole else [], start=1):
            run = self._parse(line, number)
            runs.setdefault(run.key, run)
        return runs

    def append(self, run: Run) -> bool:
        """Writes a run, unless another process has written it meanwhile; whether it did."""
        line = json.dumps(_encoded(run), separators=(",", ":")).encode() + b"\n"
        make_folder(self.path.parent)
        try:
            with open(self.path, "a+b", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # released as the file closes, however that happens
                _cut_torn_line(file)
                if run.key in self.read():
                    return False
                written = file.write(line)
                if written != len(line):
                    raise OSError(f"{written} of {len(line)} bytes were written")
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"{str(self.path)!r} cannot be written: {error}") from error
        return True

    def _parse(self, line: bytes, number: int) -> Run:
        try:
            said = {"change": {}, **json.loads(line)}
            found = {part.name: said[part.name] for part in fields(Run)}
            for name in ("train", "validation", "predicted"):
                found[name] = tuple(map(int, found[name]))
            if found["validation_accuracy"] is None:
                found["validation_accuracy"] = float("nan")
            return Run(**found)
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"line {number} of {str(self.path)!r} is no run of a ledger: {error!r}; remove it, or give "
                f"another file"
            ) from error


def _encoded(run: Run) -> dict[str, Any]:
    said = asdict(run)
    if np.isnan(run.validation_accuracy):
        said["validation_accuracy"] = None  # JSON has no NaN
    return said


def _cut_torn_line(file: BinaryIO) -> None:
    """Cuts off what stands behind the last end of a line."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return
    file.seek(size - 1)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)
