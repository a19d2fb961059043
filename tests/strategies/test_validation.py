"""validate: regrets on made-up results whose best strategy is known; tables that are read, and those that are not."""

import json

import numpy as np
import pytest
from test_ledger import RUN

from hf_tl.cli.main import main
from hf_tl.errors import InputError
from hf_tl.strategies import Validation, read_ledgers, read_published, validate
from hf_tl.strategies.ledger import Ledger
from hf_tl.strategies.published import COSTS, FEATURES, FULL, Cell, in_common
from hf_tl.strategies.validation import AVERAGE, EXPECTED, PILOTS, SCREENED


def cells(gains, *, noise=0.2, seeds=5, benchmark="made up"):
    """A cell for each gain of full fine-tuning over feature extraction, a dataset each."""
    rng = np.random.default_rng(0)
    return [
        Cell(
            benchmark,
            f"set {i}",
            "net",
            {FEATURES: 70 + noise * rng.normal(size=seeds), FULL: 70 + gain + noise * rng.normal(size=seeds)},
            {name: COSTS[name] for name in (FEATURES, FULL)},
        )
        for i, gain in enumerate(gains)
    ]


def row(found: Validation, rule: str) -> dict:
    return next(row for row in found.summary() if row["rule"] == rule)


def test_pilots_take_what_is_better_in_each_cell():
    found = validate(cells([10, -10] * 6))
    assert row(found, PILOTS)["all cells"] < 0.01
    assert row(found, FEATURES)["all cells"] == pytest.approx(5, abs=0.2)
    assert row(found, FULL)["all cells"] == pytest.approx(5, abs=0.2)
    assert row(found, PILOTS)["spent"] == pytest.approx(1 / 5)
    assert row(found, EXPECTED)["spent"] == pytest.approx(1 / 20)
    assert found.losses(PILOTS) == []
    assert len(found.losses(FULL)) == 6
    assert found.losses(FULL)[0]["best"] == FEATURES


def test_what_may_win_is_run_and_nothing_else():
    found = validate(cells([-10] * 12))
    assert row(found, SCREENED)["spent"] == pytest.approx(1 / 20)  # the pass alone: full fine-tuning never wins
    assert row(found, SCREENED)["all cells"] < 0.01
    found = validate(cells([10, -10] * 6))
    assert 0.15 <= row(found, SCREENED)["spent"] <= 0.2
    assert row(found, SCREENED)["all cells"] < 1  # either alone loses 5


def test_what_reads_one_pass_is_known_at_the_cost_of_one():
    pair = cells([5] * 8)
    three = [
        Cell(
            one.benchmark,
            one.dataset,
            one.network,
            {**one.results, "full network": one.results[FEATURES] + 20},
            {**one.costs, "full network": 1.02 * one.costs[FEATURES]},
        )
        for one in pair
    ]
    found = validate(three)
    assert {choice.strategy for choice in found.choices if choice.rule == EXPECTED} == {"full network"}
    assert row(found, EXPECTED)["spent"] == pytest.approx(1 / 5 / 5.02)


def test_networks_on_the_same_samples_are_one_dataset(tmp_path):
    for name, samples in (("birds", "aa"), ("photos", "aa"), ("digits", "bb")):
        ledger = Ledger(tmp_path / f"{name}.jsonl")
        for strategy in ("full network", "full fine-tuning"):
            for seed in range(2):
                config = {"model": f"weights/{name}", "samples": samples}
                fields = {**vars(RUN), "strategy": strategy, "seed": seed, "config": config}
                ledger.append(
                    type(RUN)(**{**fields, "key": f"{strategy}{seed}", "footprint": {"flops": {"value": 1}}})
                )
    found = read_ledgers([tmp_path / f"{name}.jsonl" for name in ("photos", "birds", "digits")])
    assert [cell.dataset for cell in found] == ["photos", "photos", "digits"]
    assert found[1].network.startswith("birds, ")
    assert set(in_common(found)[0].results) == {FEATURES, FULL}


def test_a_difference_that_does_not_matter_is_not_paid_for():
    found = validate(cells([0.3] * 12, noise=0.1), delta=1.0)
    taken = {choice.strategy for choice in found.choices if choice.rule == PILOTS}
    assert taken == {FEATURES}
    assert row(found, PILOTS)["within delta"] == 1


@pytest.mark.slow
def test_intervals_hold_as_often_as_they_say():
    rng = np.random.default_rng(1)
    found = validate(cells(rng.normal(2, 3, size=30), noise=1.0))
    assert 0.72 <= row(found, PILOTS)["coverage"] <= 0.88
    assert 0.65 <= row(found, EXPECTED)["coverage"] <= 0.92


def test_cells_of_one_dataset_say_nothing_of_one_another():
    pair = cells([5, 5], noise=0.0)
    same = [Cell(one.benchmark, "one set", f"net {i}", one.results, one.costs) for i, one in enumerate(pair)]
    with pytest.raises(InputError, match="no dataset beside one set"):
        validate(same)
    odd = [*cells([-5] * 6), Cell("made up", "other", "net", *[getattr(pair[0], n) for n in ("results", "costs")])]
    found = validate(odd)
    alone = [choice for choice in found.choices if choice.cell == 6 and choice.rule == AVERAGE]
    assert {choice.strategy for choice in alone} == {FEATURES}  # what the others say, though it is wrong here


def test_published_tables_are_read(tmp_path, capsys):
    lines = ["dataset,Metric,backbone,strategy,Seed,test_metric"]
    for dataset, gain in (("a", 0.1), ("b", 0.12), ("c", 0.08)):
        for seed in range(3):
            lines += [f"{dataset},Accuracy,net,frozen,{seed},{0.6 + seed / 1000}",
                      f"{dataset},Accuracy,net,full_ft,{seed},{0.6 + gain + seed / 1000}",
                      f"{dataset},RMSE,other,full_ft,{seed},3.5"]  # fmt: skip
    (tmp_path / "runs.csv").write_text("\n".join(lines))
    table = "**Method**,A,B,C\nLinear probing,50,60,70\nLoRA,70,75,80\nFull fine-tuning,60,70,75\nAdapter,1,1,1\n"
    (tmp_path / "methods.csv").write_text(table)
    (tmp_path / "curves.csv").write_text("learner,n\nsvm,3\n")
    found = read_published(tmp_path)
    assert len(found) == 6
    assert found[0].results.keys() == {FEATURES, "LoRA", FULL}
    assert found[3].results[FULL] == pytest.approx([70, 70.1, 70.2])
    assert main(["validate", "--public", str(tmp_path), "--out", str(tmp_path / "found.json")]) == 0
    assert "0 cells lose more than 1 point\n" in capsys.readouterr().out
    said = json.loads((tmp_path / "found.json").read_text(), parse_constant=pytest.fail)
    assert said["cells"] == 6
    assert said["won"] == {"LoRA": 3, FULL: 3}


def test_ledgers_are_read(tmp_path):
    for name in ("one", "two"):
        ledger = Ledger(tmp_path / f"{name}.jsonl")
        for strategy, accuracy, flops in (("last layer", 0.5, 10), ("full", 0.7, 300)):
            for seed in range(2 if strategy == "full" or name == "one" else 3):
                fields = {**vars(RUN), "strategy": strategy, "seed": seed, "test_accuracy": accuracy}
                fields |= {"key": f"{strategy}{seed}", "footprint": {"flops": {"value": flops}}}
                ledger.append(type(RUN)(**fields))
    (cell,) = read_ledgers([tmp_path / "one.jsonl"])
    assert (cell.dataset, cell.network) == ("one", "one, 2 a class")
    assert in_common([cell]) == []  # two of the strategies that published tables have are needed
    assert cell.results["full"] == pytest.approx([70, 70])
    assert cell.costs == {"last layer": 10, "full": 300}
    assert read_ledgers([tmp_path / "two.jsonl"]) == []  # one strategy lacks a seed
    other = {**vars(RUN), "strategy": "full", "seed": 5, "key": "other", "config": {"samples": "others"}}
    Ledger(tmp_path / "one.jsonl").append(type(RUN)(**other))
    assert len(read_ledgers([tmp_path / "one.jsonl"])[0].results["full"]) == 2  # runs of another task stay apart


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Method,A\nLinear probing,much\nLoRA,3\n", "a number for each result"),
        ("Method,A\nLoRA,3\n", "holds no csv file of runs"),
    ],
)
def test_tables_that_say_nothing_are_refused(tmp_path, capsys, text, message):
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_published(tmp_path)
    with pytest.raises(InputError, match="no ledger of compare"):
        read_ledgers([tmp_path / "nothing.jsonl"])
    with pytest.raises(InputError, match="delta should be above 0"):
        validate(cells([1, 2]), delta=0)
    assert main(["validate"]) == 2
    assert "--public or --ledgers" in capsys.readouterr().err
