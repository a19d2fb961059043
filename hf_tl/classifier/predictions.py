"""Predictions one by one, and as a csv file that an interrupted run goes on with."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_tl.classifier.raw_samples import RawSamples
from hf_tl.data import Samples
from hf_tl.embedding.fingerprint import fingerprint_samples
from hf_tl.errors import InputError, in_one_line
from hf_tl.files import make_folder, writing_to


if TYPE_CHECKING:
    from hf_tl.classifier.classifier import Classifier

MARK = "# unfinished "
JOINED = "; "  # between the classes of one input


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of one input.

    Attributes:
        name: of the input: its file, or the number of its row.
        top: the most probable classes with their probabilities, the first one first; empty for an input that could
            not be read, and for a number.
        problem: why it could not; "" where it could.
        classes: all that it has, where a sample may have several.
        value: the number, where it is one that is predicted.
    """

    name: str
    top: tuple[tuple[str, float], ...] = ()
    problem: str = ""
    classes: tuple[str, ...] | None = None
    value: float | None = None

    @property
    def class_name(self) -> str:
        """The most probable class; "" where the input could not be read."""
        return self.top[0][0] if self.top else ""

    @property
    def probability(self) -> float:
        """Of that class."""
        return self.top[0][1] if self.top else float("nan")


@dataclass(frozen=True)
class PredictionFile:
    """What was written.

    Attributes:
        path: the csv file.
        n: how many inputs were predicted.
        counts: predicted class -> how many inputs, the most frequent first; empty for numbers.
        quantiles: lowest, median and highest of predicted numbers; empty for classes.
        unreadable: inputs that could not be read, with the reason; they are not in the file.
        left_out: files of the folder that are of another kind by their ending.
        resumed: how many inputs an earlier run had done.
    """

    path: Path
    n: int
    counts: Mapping[str, int]
    quantiles: Sequence[float]
    unreadable: Mapping[str, str]
    left_out: Sequence[str]
    resumed: int


def write_predictions(classifier: Classifier, inputs: object, out: str | Path, *, top: int = 3) -> PredictionFile:
    """Writes file (or row), class, probability, and the next classes with theirs; what cannot be read is left out.

    Where an input may have several classes, all that it has stand before them in "classes", joined by "; ". For
    numbers there is one column, "value".

    Until it is finished the file is called `out` and ".part". A run on the same inputs with the same classifier goes
    on behind the last batch in it.

    Args:
        classifier: what predicts.
        inputs: as for `Classifier.predict`.
        out: a .csv file.
        top: how many classes each.

    Raises:
        InputError: nothing to predict, or a file that cannot be written.
    """
    path = Path(out)
    if path.suffix.lower() != ".csv":
        raise InputError(f"predictions are written to a .csv file, got {str(out)!r}")
    if top < 1:
        raise InputError(f"top must be at least 1, got {top}")
    raw = classifier.read(inputs)
    top = min(top, len(classifier.class_names))
    header = [raw.kind, *_columns(classifier, top)]
    part = path.with_name(f"{path.name}.part")
    mark = MARK + _digest(classifier, raw, header)
    make_folder(path.parent)
    with writing_to(path):
        rows = _read_part(part, mark, n_cells=len(header) + 1)
        n_done = len(rows)
        with part.open("w", newline="", encoding="utf-8") as file:
            file.write(f"{mark}\n")
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows(rows)
            for batch in batches_in_order(classifier, raw, start=n_done, top=top):
                new = [_row(prediction, n_cells=len(header)) for prediction in batch]
                writer.writerows(new)
                file.flush()
                rows += new
        with part.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([header, *(row[:-1] for row in rows if not row[-1])])
        os.replace(part, path)
    done = [row for row in rows if not row[-1]]
    unreadable = {row[0]: row[-1] for row in rows if row[-1]}
    counts, quantiles = Counter[str](), list[float]()
    if classifier.problem == "regression":
        quantiles = np.quantile([float(row[1]) for row in done], (0, 0.5, 1)).tolist() if done else []
    elif classifier.problem == "multilabel":
        counts = Counter(
            {name: sum(name in _split(row[1], classifier) for row in done) for name in classifier.class_names}
        )
    else:
        counts = Counter(row[1] for row in done)
    return PredictionFile(path, len(done), dict(counts.most_common()), quantiles, unreadable, raw.left_out, n_done)


def batches_in_order(
    classifier: Classifier, raw: RawSamples, *, start: int = 0, top: int
) -> Iterator[list[Prediction]]:
    """The predictions of each batch, in the order of the inputs, those that could not be read among them."""
    samples = raw.samples
    if start == len(samples):
        return
    if start:
        samples = replace(samples, dataset=_Rest(samples.dataset, start), labels=None)
    for indices, logits, skipped in classifier.batches(samples):
        said = {i: Prediction(raw.names[start + i], (), _why_not(classifier, samples, i)) for i in skipped.tolist()}
        for i, row in zip(indices.tolist(), logits, strict=True):
            said[i] = _predicted(classifier, raw.names[start + i], row, top)
        yield [said[i] for i in sorted(said)]


def _predicted(classifier: Classifier, name: str, logits: np.ndarray, top: int) -> Prediction:
    """What the logits (n_outputs,) of an input say."""
    if classifier.problem == "regression":
        return Prediction(name, value=float(logits[0]))
    shares = classifier.target.probabilities(logits[None] / classifier.calibration.temperature)[0]
    order = np.argsort(-shares, kind="stable")[:top]
    likely = tuple((classifier.class_names[k], float(shares[k])) for k in order)
    if classifier.problem == "classification":
        return Prediction(name, likely)
    return Prediction(name, likely, classes=classifier.named(classifier.target.decide(logits[None])[0]))


class _Rest(Sequence[Mapping]):
    """The samples of a dataset from one on."""

    def __init__(self, dataset: Sequence[Mapping], start: int):
        self._dataset, self._start = dataset, start

    def __len__(self) -> int:
        return len(self._dataset) - self._start

    def __getitem__(self, index: int) -> Mapping:  # type: ignore[override]  # nobody asks for a slice
        return self._dataset[self._start + index]


def _columns(classifier: Classifier, top: int) -> list[str]:
    """What stands behind the name of an input."""
    if classifier.problem == "regression":
        return ["value"]
    later = [f"{word}_{i}" for i in range(2, top + 1) for word in ("class", "probability")]
    several = ["classes"] if classifier.problem == "multilabel" else []
    return [*several, "class", "probability", *later]


def _row(prediction: Prediction, *, n_cells: int) -> list[str]:
    """A line of the unfinished file: the name, what was predicted, and why nothing was."""
    cells = [] if prediction.value is None else [f"{prediction.value:.6g}"]
    cells += [] if prediction.classes is None else [JOINED.join(prediction.classes)]
    cells += [word for name, share in prediction.top for word in (name, f"{share:.6f}")]
    return [prediction.name, *(cells or [""] * (n_cells - 1)), prediction.problem]


def _split(joined: str, classifier: Classifier) -> set[str]:
    """The classes in a cell; a name may hold what joins them."""
    rest = f"{JOINED}{joined}{JOINED}"
    return {name for name in classifier.class_names if f"{JOINED}{name}{JOINED}" in rest}


def _why_not(classifier: Classifier, samples: Samples, index: int) -> str:
    """Why a sample was left out, found by reading it once more."""
    try:
        classifier.network.prepare([samples[index]])
    except Exception as error:  # a foreign file may break its decoder in any way
        return in_one_line(error)
    return "its features are not finite"


def _read_part(part: Path, mark: str, *, n_cells: int) -> list[list[str]]:
    """The rows that an interrupted run of the same work wrote whole."""
    try:
        text = part.read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError):
        return []
    first, _, rest = text.partition("\n")
    if first != mark:
        return []
    whole = rest[: rest.rfind("\n") + 1]  # the last line may be half a line
    rows = list(csv.reader(io.StringIO(whole, newline="")))
    while rows and len(rows[-1]) != n_cells:
        rows.pop()
    return rows


def _digest(classifier: Classifier, raw: RawSamples, header: Sequence[str]) -> str:
    """What tells this work from another: the classifier, the names, and the files' sizes and times, or the rows."""
    digest = hashlib.sha256(repr([classifier.digest, list(raw.names), list(header)]).encode())
    if raw.kind == "file":
        for name in raw.files:
            try:
                status = os.stat(name)
                digest.update(f"{status.st_size} {status.st_mtime_ns},".encode())
            except OSError:
                digest.update(b"-,")
    else:
        digest.update(fingerprint_samples(raw.samples).encode())
    return digest.hexdigest()
