"""What other tasks let expect of a strategy that was not tried."""

import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_tl.strategies.prior import Experience, expect, known


ROOT = Path(__file__).parents[2]


def experiences(*ratios, shots=10):
    return {"tuning": [Experience(f"task {i}", shots, math.log(ratio)) for i, ratio in enumerate(ratios)]}


def test_the_usual_ratio_of_errors_is_expected_again():
    found = expect("tuning", frozen=0.8, shots=10, experiences=experiences(0.5, 0.5, 0.5))
    assert (found.accuracy, found.low, found.high) == pytest.approx((0.9, 0.9, 0.9))
    assert found.n_tasks == 3
    spread = expect("tuning", frozen=0.8, shots=10, experiences=experiences(0.25, 0.5, 1.0))
    assert spread.accuracy == pytest.approx(0.9)
    assert spread.low < 0.9 < spread.high <= 1


def test_a_task_counts_with_the_number_of_samples_next_to_the_one_asked_for():
    rows = [Experience(f"task {i}", shots, -shots / 10) for i in range(3) for shots in (1, 5, 25)]
    for shots, nearest in ((1, 1), (4, 5), (12, 25), (1000, 25)):
        found = expect("tuning", frozen=0.5, shots=shots, experiences={"tuning": rows})
        assert found.accuracy == pytest.approx(1 - 0.5 * math.exp(-nearest / 10))


def test_where_little_is_known_nothing_is_expected():
    assert expect("tuning", frozen=0.8, shots=10, experiences=experiences(0.5, 0.5)) is None
    assert expect("my own", frozen=0.8, shots=10) is None


@given(st.lists(st.floats(0.01, 100), min_size=3, max_size=8), st.floats(0, 1), st.integers(1, 1000))
def test_an_expectation_is_an_accuracy_within_its_interval(ratios, frozen, shots):
    found = expect("tuning", frozen=frozen, shots=shots, experiences=experiences(*ratios))
    assert 0 <= found.low <= found.accuracy <= found.high <= 1


def test_what_is_known_is_what_the_ledgers_say_and_holds_for_tasks_that_it_does_not_know(tmp_path):
    folder = tmp_path / "repository"
    for part in ("recipes/benchmarks", "recipes/results/strategies"):
        shutil.copytree(ROOT / part, folder / part)
    (folder / "hf_tl" / "strategies").mkdir(parents=True)
    script = folder / "recipes" / "benchmarks" / "bench_strategies.py"
    paths = {"PYTHONPATH": f"{ROOT}:{ROOT / 'recipes' / 'benchmarks'}", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, script, "--prior"], env=paths, capture_output=True, text=True, check=True)
    written = (folder / "hf_tl" / "strategies" / "prior.json").read_text()
    assert written == (ROOT / "hf_tl" / "strategies" / "prior.json").read_text()
    held = int(done.stdout.partition("interval holds ")[2].partition("%")[0])
    assert 70 <= held <= 90
    assert {name: len(rows) for name, rows in known().items()} == dict.fromkeys(
        ("split", "LP-FT", "full fine-tuning", "LoRA"), 25
    )
    assert all(np.isfinite(row.log_ratio) for rows in known().values() for row in rows)
