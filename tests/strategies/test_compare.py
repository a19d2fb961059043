"""compare: the ledger of many interrupted calls is that of one; draws are nested, and none learns a twin."""

import itertools
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from one_comparison import Guess, task

from hf_tl.acceleration import Acceleration
from hf_tl.errors import InputError
from hf_tl.strategies import Effort, compare


PAIR = (Guess("steady", 0.6), Guess("growing", 0.1, 0.25))
OPTIONS = {"strategies": PAIR, "shots": (1, 2, 4, 8), "seeds": 3, "progress": False, "image_size": 32}


@pytest.fixture(scope="module")
def straight(timm_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("straight")
    return compare(str(timm_folder), task(), out=out, **OPTIONS), out


def said(folder):
    """What a ledger says of each run, without what differs from time to time."""
    lines = (folder / "ledger.jsonl").read_text().splitlines()
    found = {line["key"]: {k: v for k, v in line.items() if k != "footprint"} for line in map(json.loads, lines)}
    assert len(found) == len(lines)
    return found


def test_runs_are_lines_with_all_that_is_needed(straight):
    found, out = straight
    assert len(found.runs) == found.planned == 2 * 4 * 3
    for run in found.runs:
        assert len(run.predicted) == 18
        assert set(run.versions) >= {"torch", "hf_tl"}
        assert run.footprint["experiments"] == 1
        assert run.footprint["wall_seconds"]["value"] > 0
        assert len(run.train) + len(run.validation) == 3 * run.shots
        assert not set(run.train) & set(run.validation)
        assert max(run.train) < 24  # of the training samples alone
    assert "ledger.jsonl" in os.listdir(out)


def test_a_folder_keeps_the_precision_that_was_measured_first(timm_folder, tmp_path, monkeypatch, straight):
    measured = []

    def measure(model, batch, *, train):
        measured.append(len(batch["labels"]))
        return Acceleration(True, len(measured) == 1, (((True, len(measured) == 1), 1.0),))

    monkeypatch.setattr("hf_tl.strategies.transfer.measure_acceleration", measure)
    options = {**OPTIONS, "shots": (1,), "effort": Effort(bf16="auto")}
    found = [compare(str(timm_folder), task(), out=tmp_path, **options) for _ in range(2)]
    assert measured == [8]
    for one in found:
        assert "trainings: channels last, bfloat16: 1 ms a sample" in one.notes
        assert {run.config["effort"]["bf16"] for run in one.runs} == {True}
    other = compare(str(timm_folder), task(), out=tmp_path / "other", **options)  # float32 there: keys as before
    assert {run.key for run in other.runs} == {run.key for run in straight[0].runs if run.shots == 1}
    frozen = {**options, "strategies": ("last layer",)}
    assert not any("trainings" in note for note in compare(str(timm_folder), task(), out=tmp_path, **frozen).notes)
    assert len(measured) == 2
    with pytest.raises(InputError, match="bf16 should be True, False or 'auto', got 'yes'"):
        Effort(bf16="yes")


def test_draws_of_a_seed_are_nested(straight):
    for seed in range(3):
        drawn = [
            set(run.train) | set(run.validation)
            for run in straight[0].runs
            if run.seed == seed and run.strategy == "steady"
        ]
        assert all(few < many for few, many in itertools.pairwise(drawn))


def test_curves_and_costs(straight):
    found = straight[0]
    assert found.curve.shots == (1, 2, 4, 8)
    assert found.curve.accuracy["steady"].shape == (4, 3)
    assert found.block == ((1, 2, 4, 8), (0, 1, 2))
    run = next(run for run in found.runs if (run.strategy, run.shots, run.seed) == ("growing", 4, 1))
    right = run.right(found.labels)
    by_class = np.mean([right[found.labels == value].mean() for value in range(3)])
    assert found.curve.accuracy["growing"][2, 1] == pytest.approx(by_class)
    assert run.test_accuracy == pytest.approx(right.mean())
    table = found.table()
    for words in ("less steady", "samples per class", "TFLOP", "24 of 24 runs"):
        assert words in table
    assert [row["experiments"] for row in found.costs()] == [12, 12]
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_second_call_does_nothing_and_a_larger_one_the_rest(straight, timm_folder):
    found, out = straight
    before = (out / "ledger.jsonl").read_bytes()
    again = compare(str(timm_folder), task(), out=out, **OPTIONS)
    assert (out / "ledger.jsonl").read_bytes() == before
    assert again.curve.accuracy["steady"] == pytest.approx(found.curve.accuracy["steady"])


def size_of(path):
    return path.stat().st_size if path.exists() else 0


def keep_comparing(folder, out):
    compare(folder, task(), out=out, **OPTIONS)
    os._exit(0)


@pytest.mark.slow
def test_killed_twenty_times_is_the_straight_run(straight, timm_folder, tmp_path):
    rng, context, killed = np.random.default_rng(0), multiprocessing.get_context("fork"), 0
    path = tmp_path / "ledger.jsonl"
    while killed < 20:
        process = context.Process(target=keep_comparing, args=(str(timm_folder), tmp_path))
        process.start()
        size = size_of(path)
        grown = size + rng.integers(0, 3000)
        limit = time.monotonic() + 20
        while (
            process.is_alive() and time.monotonic() < limit and (path.stat().st_size if path.exists() else 0) <= grown
        ):
            time.sleep(0.0005)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        killed += 1
        if path.exists() and rng.random() < 0.5 and killed < 20:  # as a disk may leave it
            content = path.read_bytes()
            path.write_bytes(content[: max(len(content) - int(rng.integers(0, 40)), 0)])
    compare(str(timm_folder), task(), out=tmp_path, **OPTIONS)
    assert said(tmp_path) == said(straight[1])


def test_parts_make_the_whole(straight, timm_folder, tmp_path):
    for i in range(3):
        found = compare(str(timm_folder), task(), out=tmp_path, part=(i, 3), **OPTIONS)
    assert said(tmp_path) == said(straight[1])
    assert len(found.runs) == found.planned


def test_a_budget_ends_it_and_says_so(timm_folder, tmp_path):
    found = compare(str(timm_folder), task(), out=tmp_path, budget=1e-9, **OPTIONS)
    assert not found.runs
    assert any("the same call does the 24 others" in note for note in found.notes)
    with pytest.raises(InputError, match="0 of 24 runs are done"):
        found.curve  # noqa: B018


def test_twins_are_not_learnt_from(timm_folder, tmp_path):
    groups = np.arange(24 + 18)
    groups[24] = groups[0]  # a test sample that is the first training sample
    groups[9] = groups[10]
    options = {**OPTIONS, "shots": (1, 7)}
    found = compare(str(timm_folder), task(), out=tmp_path, groups=groups, **options)
    for run in found.runs:
        drawn = {*run.train, *run.validation}
        assert 0 not in drawn
        assert not {9, 10} <= drawn
    assert any("1 training samples have a twin" in note for note in found.notes)
    with pytest.raises(InputError, match="1 to 7 samples per class, which class 'cat' has"):
        compare(str(timm_folder), task(), out=tmp_path, groups=groups, **{**OPTIONS, "shots": (8,)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategies": ("last layr",)}, "there is no strategy 'last layr'.*last layer"),
        ({"strategies": ()}, "one or more"),
        ({"strategies": PAIR[:1] * 2}, "each of its own name"),
        ({"shots": (0, 3)}, "shots should be 1 to 8"),
        ({"shots": (9,)}, "shots should be 1 to 8 samples per class"),
        ({"seeds": 1}, "seeds should be 2 or more"),
        ({"part": (2, 2)}, "part should be"),
        ({"budget": "soon"}, "'10min' or '2h', got 'soon'"),
        ({"groups": np.zeros(3)}, "a number for each of 42 samples"),
    ],
)
def test_what_cannot_be_compared_is_refused(timm_folder, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        compare(str(timm_folder), task(), out=tmp_path, **{**OPTIONS, **options})


def test_a_network_needs_a_name(tmp_path):
    with pytest.raises(InputError, match="by a name or folder, got object"):
        compare(object(), task(), out=tmp_path, **OPTIONS)
    with pytest.raises(InputError, match="epochs should be at least 1, got 0"):
        Effort(epochs=0)
    assert not Path(tmp_path / "ledger.jsonl").exists()
