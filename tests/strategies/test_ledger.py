"""The ledger: whole lines or none, whoever is killed when; no run lost, none twice."""

import json
import math
import multiprocessing
from dataclasses import replace

import pytest

from hf_tl.errors import InputError
from hf_tl.strategies.ledger import Ledger, Run


RUN = Run("k0", "full", 2, 0, {"a": 1}, (0, 1), (2,), "rate 1", 3, 0.5, 0.25, (1, 0, 1), 12)


def runs(n):
    return [replace(RUN, key=f"k{i}", seed=i) for i in range(n)]


def test_what_is_written_is_read(tmp_path):
    ledger = Ledger(tmp_path / "deep" / "ledger.jsonl")
    assert ledger.read() == {}
    for run in runs(3):
        assert ledger.append(run)
    assert list(ledger.read().values()) == runs(3)
    ledger.append(replace(RUN, key="few", validation_accuracy=math.nan))
    assert math.isnan(ledger.read()["few"].validation_accuracy)
    for line in ledger.path.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)  # JSON as other tools read it, without NaN


def test_a_run_is_written_once(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    assert ledger.append(RUN)
    assert not ledger.append(replace(RUN, test_accuracy=0.9))
    assert ledger.read()["k0"].test_accuracy == 0.25


@pytest.mark.parametrize("cut", [1, 10, 100])
def test_half_a_line_at_the_end_is_no_run_and_in_nobody_s_way(tmp_path, cut):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for run in runs(3):
        ledger.append(run)
    whole = ledger.path.read_bytes()
    ledger.path.write_bytes(whole[:-cut])
    assert list(ledger.read()) == ["k0", "k1"]
    ledger.append(runs(3)[2])
    assert ledger.path.read_bytes() == whole


def test_a_line_that_is_no_run_is_named(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append(RUN)
    ledger.path.write_bytes(ledger.path.read_bytes() + b'{"key": 1}\n')
    with pytest.raises(InputError, match=r"line 2 of .* is no run of a ledger"):
        ledger.read()


def append_all(path, n):
    for run in runs(n):
        Ledger(path).append(run)


def test_several_processes_write_every_run_once(tmp_path):
    path = tmp_path / "ledger.jsonl"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=append_all, args=(path, 30)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert sorted(Ledger(path).read()) == sorted(run.key for run in runs(30))
    assert len(path.read_text().splitlines()) == 30
