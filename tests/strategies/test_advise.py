"""advise: right where the truth is known, silent about the test samples, on time; its report is whole in one file."""

import html
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser

import numpy as np
import pytest
from one_comparison import Guess, task

from hf_tl.errors import InputError
from hf_tl.strategies import Transfer, advise, compare, write_report
from hf_tl.strategies.pilots import RUNGS
from hf_tl.strategies.portrait import Portrait, compare_blocks, draw_copies, draw_units, read_signs
from hf_tl.strategies.strategy import in_seconds
from hf_tl.strategies.survey import Survey
from hf_tl.strategies.transfer import Pace


MANY = {"image_size": 32, "budget": "2min"}
POOR, GOOD, TWIN = Guess("poor", 0.3), Guess("good", 0.97), Guess("twin", 0.97)


def many():
    return task(n_train=40)


@pytest.fixture(scope="module")
def found(timm_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("advice")
    return advise(str(timm_folder), many(), strategies=("last layer", POOR, GOOD), out=out, **MANY), out


def test_the_better_one_is_advised_with_its_code(found):
    advice, _ = found
    assert advice.decision.best in ("good", "last layer")
    assert advice.decision.chosen != "poor"
    assert advice.decision.risk["poor"] > 0.9
    compile(advice.code, "code", "exec")
    text = str(advice)
    for words in ("what would change it", "to run it", "were not looked at", "how it is known"):
        assert words in text
    json.dumps(advice.to_dict(), allow_nan=False)


def test_the_test_samples_are_not_looked_at(found, timm_folder, tmp_path):
    advice, _ = found
    for run in advice.runs:
        assert max((*run.train, *run.validation)) < 120
        assert len(run.predicted) == 30  # a quarter of the training samples


@pytest.mark.slow
def test_equals_are_told_as_such_and_the_cheaper_is_taken(timm_folder, tmp_path):
    advice = advise(str(timm_folder), many(), strategies=(GOOD, TWIN), delta=0.2, out=tmp_path, **MANY)
    assert advice.decision.is_sure
    unclear = advise(
        str(timm_folder), task(n_train=8), strategies=(Guess("a", 0.6), Guess("b", 0.62)), out=tmp_path / "few", **MANY
    )
    if not unclear.decision.is_sure:
        assert "Not distinguishable within 1 point" in unclear.verdict
    assert any("would settle it" in line for line in unclear.would_change)


@dataclass(frozen=True)
class Slow(Guess):
    """Takes seconds of a clock that a test winds on, and stops at the deadline as a training does."""

    per_epoch: float = 1.0
    wind: Callable[[float], None] = field(default=lambda seconds: None, compare=False, repr=False)

    def fit(self, transfer, train, validation, *, effort, seed):
        left = effort.deadline - time.monotonic()
        self.wind(max(0.0, min(effort.epochs * self.per_epoch, left)))
        fitted = super().fit(transfer, train, validation, effort=effort, seed=seed)
        return replace(fitted, stopped="the time was over" if effort.epochs * self.per_epoch > left else "")


@pytest.fixture
def wind(monkeypatch):
    """Winds the clock on by some seconds."""
    skipped, real, precise = [0.0], time.monotonic, time.perf_counter
    monkeypatch.setattr(time, "monotonic", lambda: real() + skipped[0])
    monkeypatch.setattr(time, "perf_counter", lambda: precise() + skipped[0])

    def wind_on(seconds):
        skipped[0] += seconds

    return wind_on


@pytest.mark.parametrize(
    ("budget", "reached"),
    [pytest.param(1000, 27, marks=pytest.mark.slow), (150, 9), pytest.param(60, 3, marks=pytest.mark.slow)],
)
def test_it_ends_on_time_and_begins_no_pilot_that_would_not(timm_folder, tmp_path, wind, budget, reached):
    both = (Slow("good", 0.9, per_epoch=5, wind=wind), Slow("poor", 0.3, per_epoch=5, wind=wind))
    begun = time.monotonic()
    options = {**MANY, "budget": budget}
    advice = advise(str(timm_folder), many(), strategies=("last layer", *both), out=tmp_path, **options)
    assert time.monotonic() - begun <= 1.1 * budget
    good = next(one for one in advice.alternatives if one.strategy == "good")
    assert f"measured after {reached} epochs" in good.how
    assert ("more than was left" in good.how) == (reached < 27)


@dataclass(frozen=True)
class Unsteady(Guess):
    """Trains some times as long as its pace says, and is evaluated as fast as that says."""

    slowness: float = 1.0
    wind: Callable[[float], None] = field(default=lambda seconds: None, compare=False, repr=False)

    def fit(self, transfer, train, validation, *, effort, seed):
        step, left = effort.batch_size * PACE.train, effort.epochs * effort.passes(len(train)) * len(train)
        self.wind(2 * PACE.load)
        while left > 0 and not effort.is_over:
            self.wind(self.slowness * step)
            left -= effort.batch_size
        self.wind(PACE.evaluate * (len(validation) + 30))
        fitted = super().fit(transfer, train, validation, effort=effort, seed=seed)
        return replace(fitted, stopped="the time was over" if left > 0 else "")


PACE = Pace(load=2.0, train=0.2, evaluate=0.4)


@pytest.mark.parametrize(("budget", "slowness"), [(200, (1, 6, 1)), (200, (0.4, 0.4, 8)), (500, (5, 0.2, 3))])
def test_it_ends_on_time_whatever_a_pilot_takes(timm_folder, tmp_path, monkeypatch, wind, budget, slowness):
    monkeypatch.setattr(Transfer, "pace", lambda transfer, batch_size, bf16: PACE)
    monkeypatch.setattr(Survey, "look", lambda survey, share: None)
    begun = time.monotonic()
    several = [Unsteady(f"number {i}", 0.2 + 0.3 * i, slowness=s, wind=wind) for i, s in enumerate(slowness)]
    options = {**MANY, "budget": budget, "out": tmp_path}
    advice = advise(str(timm_folder), many(), strategies=("last layer", *several), **options)
    assert advice.seconds <= time.monotonic() - begun <= 1.05 * budget
    assert {stage.name for stage in advice.stages} >= {"copies looked for", "every layer read", "decision"}
    late = [one for one in advice.alternatives if "the time was over" in one.how or "more than was left" in one.how]
    assert late


def test_where_no_epoch_fits_a_quarter_of_the_samples_is_learnt_from(timm_folder, tmp_path, monkeypatch, wind):
    monkeypatch.setattr(Transfer, "pace", lambda transfer, batch_size, bf16: PACE)
    monkeypatch.setattr(Survey, "look", lambda survey, share: None)
    begun = time.monotonic()
    both = [Unsteady(f"number {i}", 0.4 + 0.3 * i, wind=wind) for i in (0, 1)]
    options = {**MANY, "budget": 90, "out": tmp_path}
    advice = advise(str(timm_folder), many(), strategies=("last layer", *both), **options)
    assert time.monotonic() - begun <= 1.05 * 90
    trained = [one for one in advice.alternatives if one.strategy != "last layer"]
    assert all("measured after 1 epoch of 25 % of the samples" in one.how for one in trained)
    truth = many().train.labels
    whole, *parts = sorted((run for run in advice.runs), key=lambda run: -len(run.train))
    for part in parts:
        assert set(part.train) < set(whole.train)
        assert set(part.validation) < set(whole.validation)
        for kind in ("train", "validation"):
            own, there = (np.bincount(truth[list(vars(run)[kind])]) for run in (part, whole))
            assert own.tolist() == [max(1, round(n / 4)) for n in there]


def test_the_measured_cut_is_paired_with_the_usual_one(timm_folder, tmp_path):
    several = (Guess("measured cut", 0.6), Guess("split", 0.3), GOOD, TWIN)  # the first two end on the same rung
    advice = advise(str(timm_folder), many(), strategies=several, out=tmp_path, **MANY)
    cut, split = (next(run for run in advice.runs if run.strategy == name) for name in ("measured cut", "split"))
    held_out = np.setdiff1d(np.arange(120), [*cut.train, *cut.validation])
    here, there = (run.right(many().train.labels[held_out]) for run in (cut, split))
    said = [line for line in advice.evidence if "where the blocks say to cut" in line]
    assert len(said) == 1
    gains, losses = int((here & ~there).sum()), int((there & ~here).sum())
    assert gains > losses
    assert said[0].endswith(f"right on {gains} samples that those get wrong, wrong on {losses} that they get right")


def test_what_there_was_no_time_for_is_said(timm_folder, tmp_path):
    advice = advise(str(timm_folder), many(), strategies=("last layer",), out=tmp_path, image_size=32, budget=0.01)
    assert advice.curve is advice.zones is advice.portrait.similarity is None
    assert len(advice.left_out) == 6
    path = write_report(advice, tmp_path / "report.html")
    check_page(path, n_figures=1)
    said = html.unescape(path.read_text())
    assert all(line in said for line in advice.left_out)
    assert "which layers are alike: not made" in said


def test_only_the_better_half_goes_on(found):
    _, out = found
    epochs = {}
    for line in (out / "pilots.jsonl").read_text().splitlines():
        run = json.loads(line)
        epochs.setdefault(run["strategy"], []).append(run["config"]["effort"]["epochs"])
    assert epochs["good"] == list(RUNGS)
    assert epochs["poor"] == [RUNGS[0]]


def test_a_budget_that_is_spent_leaves_alternatives_unmeasured(timm_folder, tmp_path):
    start = time.monotonic()
    several = ("last layer", "full fine-tuning", GOOD)
    advice = advise(str(timm_folder), many(), strategies=several, out=tmp_path, image_size=32, budget=0.01)
    assert time.monotonic() - start < 60
    unmeasured = next(one for one in advice.alternatives if one.strategy == "full fine-tuning")
    assert unmeasured.how.startswith("from 5 other tasks; not measured: 1 epoch of 25 % of the samples would take")
    assert not unmeasured.measured
    assert 0 < unmeasured.low < unmeasured.accuracy < unmeasured.high <= 1
    assert f"about {unmeasured.accuracy:.3f}" in advice.table()
    unknown = next(one for one in advice.alternatives if one.strategy == "good")
    assert unknown.accuracy is None
    assert unknown.how.startswith("not measured")
    assert "not measured: full fine-tuning, good" in advice.verdict
    check_page(write_report(advice, tmp_path / "report.html"), n_figures=1)
    assert advice.decision.chosen == "last layer"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delta": 0}, "delta should be a share"),
        ({"seed": -1}, "seed should be 0 or more, got -1"),
        ({"budget": "-1s"}, "a duration such as"),
        ({"strategies": ("nothing",)}, "there is no strategy 'nothing'"),
    ],
)
def test_what_cannot_be_advised_is_refused(timm_folder, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        advise(str(timm_folder), many(), out=tmp_path, **{**MANY, **options})
    with pytest.raises(InputError, match="four training samples of each class or more, class 'cat' has 3"):
        advise(str(timm_folder), task(n_train=3), out=tmp_path, **MANY)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10min", 600), ("1.5h", 5400), (12, 12), ("2 m", 120), (" 7 ", 7)]
)
def test_durations(text, seconds):
    assert in_seconds(text) == seconds


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.seen, self.links = [], [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "xlink:href") and value]
        if tag not in ("meta", "br", "img", "path", "use", "rect", "line"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                pytest.fail(f"{tag} is closed over another one")


def check_page(path, *, n_figures):
    """It is whole, has its figures inside, and asks nothing of a network."""
    page, text = Page(), path.read_text()
    page.feed(text)
    assert page.open == []
    assert page.seen.count("figure") == n_figures
    assert page.seen.count("svg") == n_figures
    assert "script" not in page.seen
    assert "width=device-width" in text
    assert "@media print" in text
    assert all(link.startswith(("#", "data:image/")) for link in page.links)
    assert not re.search(r"url\((?!#)", text)
    json.loads(path.with_suffix(".json").read_text(), parse_constant=pytest.fail)
    assert len(list(path.parent.glob("*.png"))) == n_figures


def test_the_report_of_advice(found, tmp_path):
    advice, _ = found
    path = write_report(advice, tmp_path / "report.html")
    check_page(path, n_figures=5)
    text = path.read_text()
    assert advice.decision.chosen in text
    assert advice.zones is not None
    assert advice.zones.verdict in html.unescape(text)
    assert advice.portrait.units_of in text
    assert text.count("<img") == len(advice.mistakes) + 1 > 1
    for one in advice.mistakes:
        assert one.truth != one.said
        assert advice.decision.chosen in (one.right, one.wrong)
    with pytest.raises(InputError, match=r"a report should be an .html file"):
        write_report(advice, tmp_path / "report.pdf")


@pytest.mark.slow
def test_the_report_shows_what_training_changed_and_which_samples_are_copies(found, timm_folder, tmp_path):
    advice, _ = found
    transfer = Transfer.of(str(timm_folder), many(), image_size=32)
    groups = np.arange(len(transfer.labels))
    groups[[7, 130]] = 7
    units, units_of = draw_units(transfer, np.arange(20), groups=groups)
    portrait = Portrait(
        similarity=compare_blocks(transfer, np.arange(20)),
        signs=read_signs(transfer, np.arange(20)),
        units=units,
        units_of=units_of,
        copies=draw_copies(transfer, groups=groups),
    )
    assert portrait.similarity.n_samples == 20
    own = np.diag(portrait.similarity.values)  # NaN where nothing varies, as in a layer of random weights
    assert np.allclose(own[np.isfinite(own)], 1)
    assert np.isfinite(own).sum() > 2
    assert portrait.copies is not None
    assert compare_blocks(transfer, np.arange(3)) is None  # too few
    assert draw_copies(transfer, groups=np.arange(len(groups))) is None
    runs = [replace(run, change={"stem": (0.0, 0.01), "head": (1.0, 0.2)}) for run in advice.runs]
    path = write_report(replace(advice, runs=runs, portrait=portrait), tmp_path / "report.html")
    check_page(path, n_figures=6)
    text = path.read_text()
    assert "What training changed" in text
    assert "Samples that are copies" in text


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_browser_shows_every_figure_and_complains_of_nothing(found, tmp_path):
    path = write_report(found[0], tmp_path / "report.html")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--window-size=390,844"]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = ["chromium", *options, profile, "--dump-dom", path.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert shown.stdout.count("<svg") == 5
    assert shown.stdout.rstrip().endswith("</html>")
    assert "CONSOLE" not in shown.stderr


@pytest.mark.slow
def test_the_report_of_a_comparison(timm_folder, tmp_path):
    pair = (Guess("a <b>", 0.5), Guess("c", 0.8))
    compared = compare(
        str(timm_folder), task(), strategies=pair, shots=(1, 4), seeds=2, out=tmp_path / "runs", progress=False
    )
    path = write_report(compared, tmp_path / "report" / "index.html")
    check_page(path, n_figures=2)
    assert "a &lt;b&gt;" in path.read_text()  # names are words, not tags
    assert np.isfinite(compared.curve.accuracy["c"]).all()
