"""A task before anything is learnt from it: copies, labels, balance, unreadable samples, what its test can show."""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hf_tl.analysis.contact_sheet import Strip, write_contact_sheet
from hf_tl.analysis.twins import Pair, Twins, find_twins
from hf_tl.data import Task
from hf_tl.dataset_check import find_bad_samples
from hf_tl.errors import InputError
from hf_tl.files import write_whole
from hf_tl.inputs import read_image
from hf_tl.intervals import paired_gain, wilson
from hf_tl.table import in_words


DISAGREEING = 0.1  # share of the test samples on which two classifiers differ, for the planned power
POWER = 2.8016  # quantiles of 97.5 % and 80 %: found in four of five cases, at the 5 % level
NEAR_EQUAL = 0.9  # similarity of two names of classes from which on one may be a misspelling of the other


@dataclass(frozen=True)
class Audit:
    """What was found.

    Attributes:
        findings: a sentence each; those that ask for action first.
        twins: the copies; `twins.groups` keeps them on one side of a split.
        leaked: (n_test,) bool, which test samples have a copy among the training samples.
        unreadable: split -> number of the sample -> why it cannot be read.
        smallest_difference: between two accuracies on the test samples, below which no difference can be clear; NaN
            where none can.
        task: what was audited.
        modality: of its samples.
    """

    findings: tuple[str, ...]
    twins: Twins
    leaked: np.ndarray
    unreadable: dict[str, dict[int, str]]
    smallest_difference: float
    task: Task
    modality: str

    def __str__(self) -> str:
        return "\n".join(f"- {finding}" for finding in self.findings)

    def draw_pairs(self, path: str | Path, *, title: str = "") -> Path:
        """Writes the pairs of images side by side as a PNG, those across splits first.

        Args:
            path: of the file.
            title: what stands above, such as the name of the dataset.

        Raises:
            InputError: no pairs, or a task without images.
        """
        if self.modality != "image":
            raise InputError(f"pairs of images can be drawn, these are samples of modality {self.modality!r}")
        splits = {samples.name: samples for samples in (self.task.train, self.task.test)}

        def strip(pair: Pair) -> Strip:
            ends = (pair.first, pair.second)
            caption = f"{pair.kind} {pair.similarity:.3f}: {' = '.join(f'{split} {i}' for split, i in ends)}"
            return Strip(caption, [read_image(splits[split][i]) for split, i in ends])

        ordered = sorted(self.twins.pairs, key=lambda pair: not pair.is_across)
        across = sum(pair.is_across for pair in ordered)
        said = f"{_pairs(len(ordered))} of copies, {across} of them across the splits"
        named = f"{title}: {said}" if title else said
        return write_contact_sheet(path, [strip(pair) for pair in ordered], title=named, columns=4)

    def write_pairs(self, path: str | Path) -> Path:
        """Writes a row a pair as csv, those across splits first: where both are, the kind and the similarity.

        Args:
            path: of the file.

        Raises:
            InputError: a disk that is full, a folder that may not be written.
        """
        rows = [["first split", "first row", "second split", "second row", "kind", "similarity"]]
        for pair in sorted(self.twins.pairs, key=lambda pair: not pair.is_across):
            ends = [str(end) for side in (pair.first, pair.second) for end in side]
            rows.append([*ends, pair.kind, f"{pair.similarity:.4f}"])
        lines = io.StringIO(newline="")
        csv.writer(lines, lineterminator="\n").writerows(rows)
        return write_whole(Path(path), lines.getvalue())


def audit(task: Task, *, modality: str) -> Audit:
    """Looks for whatever makes the figures of a task say less, or more, than they seem to.

    Args:
        task: from `load_task`.
        modality: of its samples: "image", "text" or "audio".

    Raises:
        InputError: `imagehash` or `datasketch` is not installed.
    """
    splits = (task.train, task.test)
    unreadable = {
        samples.name: find_bad_samples(samples.dataset, samples.input_column, modality=modality) for samples in splits
    }
    twins = find_twins(splits, modality=modality)
    leaked = twins.leaked(task.test.name, into=task.train.name)
    smallest, power = _smallest_difference(task, len(leaked) - int(leaked.sum()))
    findings = [
        *_about_twins(task, twins, leaked, modality),
        *_about_unreadable(unreadable),
        *_about_labels(task, twins),
        *task.notes,
        *_about_sizes(task),
        power,
    ]
    return Audit(tuple(findings), twins, leaked, unreadable, smallest, task, modality)


def _about_twins(task: Task, twins: Twins, leaked: np.ndarray, modality: str) -> list[str]:
    train, test = task.train.name, task.test.name
    said = []
    if leaked.any():
        said.append(
            f"LEAK: {int(leaked.sum())} of {len(leaked)} {test} samples ({leaked.mean():.1%}) have a copy among the "
            f"{train} samples; report the accuracy without them too: test {_numbers(np.flatnonzero(leaked))}"
        )
    for split in (train, test):
        inside = [pair for pair in twins.pairs if pair.first[0] == pair.second[0] == split]
        copies = [pair for pair in inside if pair.kind != "recoloured"]
        if copies:
            groups = Twins(tuple(copies), twins.sizes).groups[split]
            extra = len(groups) - len(np.unique(groups))
            said.append(
                f"{_pairs(len(copies))} of copies within the {len(groups)} {split} samples: {extra} of these "
                f"{'says' if extra == 1 else 'say'} nothing new; keep copies on one side of every fold, as hf-tl fit, "
                f"probe and rank do (groups=audit.twins.groups)"
            )
    recoloured = sum(pair.kind == "recoloured" for pair in twins.pairs)
    if recoloured:
        said.append(f"{_pairs(recoloured)} of the same picture in other colours, which are kept together too")
    if not twins.pairs:
        looked = {
            "image": "encoded, scaled, grey and mirrored ones looked for",
            "text": "case and small edits ignored",
        }
        said.append(f"no copies within or across the splits ({looked.get(modality, 'equal content looked for')})")
    return said


def _about_unreadable(unreadable: dict[str, dict[int, str]]) -> list[str]:
    bad = {split: reasons for split, reasons in unreadable.items() if reasons}
    if not bad:
        return ["all samples can be read"]
    return [
        f"{len(reasons)} {split} sample{'s' * (len(reasons) != 1)} cannot be read: {in_words(list(reasons.values()))}"
        for split, reasons in bad.items()
    ]


def _about_labels(task: Task, twins: Twins) -> list[str]:
    if task.problem != "classification":
        return []
    taught, tested = task.train.label_table, task.test.label_table
    names = taught.names or tuple(taught.name_of(value) for value in np.unique(taught.labels).tolist())
    said = []
    if taught.names is not None:
        empty = [names[i] for i in sorted(set(range(len(names))) - set(np.unique(taught.labels).tolist()))]
        if empty:
            said.append(f"{len(empty)} classes have no training sample: {in_words([repr(name) for name in empty])}")
    untested = [taught.name_of(value) for value in np.setdiff1d(taught.labels, tested.labels).tolist()]
    if untested:
        said.append(f"{len(untested)} classes are taught and never tested: {in_words([repr(n) for n in untested])}")
    alike = [f"{one!r} and {other!r}" for one, other in _alike(names)]
    if alike:
        said.append(f"names of classes that may be one: {in_words(alike)}")
    if any(not str(name).strip() for name in names):
        said.append("a class has an empty name")
    labels = {task.train.name: taught.labels, task.test.name: tested.labels}
    odd = [
        pair for pair in twins.pairs if labels[pair.first[0]][pair.first[1]] != labels[pair.second[0]][pair.second[1]]
    ]
    if odd:
        shown = [f"{p.first[0]} {p.first[1]} and {p.second[0]} {p.second[1]}" for p in odd]
        said.append(
            f"{_pairs(len(odd))} of copies with different labels, of which one has to be wrong: {in_words(shown)}"
        )
    return said


def _about_sizes(task: Task) -> list[str]:
    said = f"{len(task.train)} training and {len(task.test)} test samples"
    if task.problem == "classification":
        _, counts = np.unique(np.asarray(task.train.labels), return_counts=True)
        each = f"{counts[0]}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
        said += f", {len(counts)} classes, {each} training samples a class"
        if counts.min() != counts.max():
            said += f" (median {np.median(counts):g}, {counts.max() / counts.min():.1f} times as many in the largest)"
    return [said]


def _smallest_difference(task: Task, n: int) -> tuple[float, str]:
    """The least gain that a paired interval can tell from none, and what a usual comparison needs, in a sentence."""
    if task.problem == "regression" or n < 1:
        return float("nan"), f"{n} test samples without a copy in training"
    gained, least = np.zeros(n, dtype=bool), 0
    for k in range(1, n + 1):
        gained[:k] = True
        if paired_gain(gained, np.zeros(n, dtype=bool))[1] > 0:
            least = k
            break
    low, high = wilson(round(0.9 * n), n)
    usual = POWER * np.sqrt(DISAGREEING / n)
    known = f"{n} test sample{'s' * (n != 1)} without a copy in training: an accuracy of 90 % is known to "
    known += f"{50 * (high - low):.1f} points either way"
    if not least:
        return float("nan"), f"{known}; no difference between two classifiers can be clear, however large"
    return least / n, (
        f"{known}; no difference below {100 * least / n:.1f} points ({least} samples) can be clear, and one of "
        f"{100 * usual:.1f} points is found in four of five cases, between two classifiers that differ on "
        f"{DISAGREEING:.0%} of the samples"
    )


def _alike(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of names that differ in case, blanks, a plural, or a letter; numbers have to be the same."""
    bare = [re.sub(r"[\W_]+", " ", str(name)).casefold().strip() for name in names]
    found = []
    for i, one in enumerate(bare):
        for j in range(i + 1, len(bare)):
            other = bare[j]
            if re.findall(r"\d+", one) != re.findall(r"\d+", other) or not (one and other):
                continue
            match = difflib.SequenceMatcher(None, one, other)
            if one.rstrip("s") == other.rstrip("s") or (
                match.real_quick_ratio() >= NEAR_EQUAL
                and min(len(one), len(other)) > 4
                and match.ratio() >= NEAR_EQUAL
            ):
                found.append((str(names[i]), str(names[j])))
    return found


def _pairs(n: int) -> str:
    return "1 pair" if n == 1 else f"{n} pairs"


def _numbers(indices: np.ndarray) -> str:
    shown = ", ".join(str(i) for i in indices[:10])
    return shown + (", ..." if len(indices) > 10 else "")
