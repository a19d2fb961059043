"""Searches of Trainer's own: as many trials for all, seeded, on time; old ledgers keep their keys."""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from one_comparison import task

from hf_tl.embedding.fingerprint import fingerprint_json
from hf_tl.errors import InputError
from hf_tl.strategies import Effort, advise, compare, find_strategy
from hf_tl.strategies.compare import run_config
from hf_tl.strategies.feature_extraction import RELATIVE_C, last_layer
from hf_tl.strategies.search import WITHIN, search_rates
from hf_tl.strategies.trial import Training


RESULTS = Path(__file__).parent.parent.parent / "recipes" / "results" / "strategies"
OWN = 0.003


@pytest.fixture
def training(transfer, drawn):
    """Makes trainings of adapters, which are drawn too."""
    pytest.importorskip("optuna", reason="Optuna is an extra: pip install 'hf-tl[search]'")

    def make(*, seed=0, name="LoRA", **effort):
        found = []

        def spy(_transfer, train, validation, *, adapt, rate, effort, seed, name):
            found.append(Training(transfer, train, validation, adapt, rate, effort, seed))

        module = sys.modules[type(find_strategy(name)).__module__]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "train_trials", spy)
            effort = Effort(**{"epochs": 1, "trials": 3, "batch_size": 18, "search": "optuna", **effort})
            find_strategy(name).fit(transfer, drawn.train, drawn.validation, effort=effort, seed=seed)
        return found[0]

    return make


@pytest.mark.slow
def test_each_trial_of_optuna_is_the_training_of_its_rate(training):
    searched = training()
    trials, elsewhere = search_rates(searched)
    assert len(trials) == 3
    assert not elsewhere
    assert trials[0].rate == OWN
    assert all(OWN / WITHIN <= trial.rate <= OWN * WITHIN for trial in trials)
    assert len({trial.rate for trial in trials}) == 3
    (best,) = (trial for trial in trials if trial.network is not None)
    assert best is min(trials, key=lambda trial: trial.rank)
    for trial in trials:
        alone = searched.run(trial.rate)
        assert (alone.accuracy, alone.loss, alone.epochs) == (trial.accuracy, trial.loss, trial.epochs)
        if trial is best:
            mine, theirs = (one.network.model.state_dict() for one in (trial, alone))
            assert all((mine[name] == theirs[name]).all() for name in mine)


def test_rates_are_those_of_the_seed(training):
    first, again, other = (
        [trial.rate for trial in search_rates(training(seed=seed, name="split", trials=2))[0]] for seed in (0, 0, 1)
    )
    assert first == again != other


def test_no_trial_is_begun_after_the_deadline(training):
    started = time.monotonic()
    searched = training(trials=20, epochs=10_000, patience=10_000, deadline=started + 1.5)
    trials, _ = search_rates(searched)
    assert time.monotonic() - started < 60
    assert len(trials) == 1
    assert "the time was over after" in trials[0].stopped
    assert trials[0].network is not None


def test_a_strategy_says_how_many_it_tried(transfer, drawn):
    pytest.importorskip("optuna", reason="Optuna is an extra: pip install 'hf-tl[search]'")
    effort = Effort(epochs=1, trials=2, steps=1, batch_size=18, search="optuna")
    for name in ("last layer", "split"):
        fitted = find_strategy(name).fit(transfer, drawn.train, drawn.validation, effort=effort, seed=0)
        assert fitted.trials == 2
    assert fitted.samples_seen == 2 * (len(drawn.train) + len(drawn.validation))
    assert (
        fitted.predict(drawn.validation) == transfer.labels[drawn.validation]
    ).mean() == fitted.validation  # of the network that won
    known = find_strategy("split").fit(transfer, drawn.train, drawn.validation[:0], effort=effort, seed=0)
    assert (known.trials, known.setting) == (1, "learning rate 0.001")


def test_frozen_strategies_search_the_same_range_of_C():
    grid = RELATIVE_C["svm"]
    assert last_layer()._settings(Effort(trials=3)) == grid[:3]
    found = last_layer()._settings(Effort(trials=10, search="optuna"))
    assert len(found) == len(set(found)) == 10
    assert found[0] == grid[0]
    assert (min(found), max(found)) == pytest.approx((min(grid), max(grid)))


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.jsonl")), ids=lambda path: path.stem)
def test_old_ledgers_keep_their_keys(path):
    for line in map(json.loads, path.read_text().splitlines()):
        said = line["config"]
        transfer = SimpleNamespace(model=said["model"], fingerprint=said["transfer"], image_size=said["image_size"])
        config = run_config(
            transfer,
            find_strategy(line["strategy"]),
            shots=line["shots"],
            seed=line["seed"],
            effort=Effort(**said["effort"]),
            samples=(),
        )
        assert fingerprint_json([line["strategy"], {**config, "samples": said["samples"]}])[:16] == line["key"]


@pytest.mark.slow
def test_a_searched_run_is_a_line_of_its_own(timm_folder, tmp_path):
    pytest.importorskip("optuna", reason="Optuna is an extra: pip install 'hf-tl[search]'")
    efforts = [Effort(epochs=1, trials=2, steps=1, batch_size=18, search=search) for search in ("grid", "optuna")]
    options = {"strategies": ["split"], "shots": [2], "seeds": 2, "image_size": 32, "progress": False}
    for effort in (*efforts, efforts[1]):
        found = compare(str(timm_folder), task(), effort=effort, out=tmp_path, **options)
    lines = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert [line["config"]["effort"].get("search") for line in lines] == [None, None, "optuna", "optuna"]
    assert [run.key for run in found.runs] == [line["key"] for line in lines[2:]]
    assert all(run.footprint["experiments"] == 2 for run in found.runs)


def test_what_cannot_be_searched_is_refused_before_anything_is_read(timm_folder, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"search should be one of \['grid', 'optuna', 'ray'\], got 'random'"):
        Effort(search="random")
    options = {"out": tmp_path, "effort": Effort(search="optuna")}
    monkeypatch.setitem(sys.modules, "optuna", None)
    for call in (compare, advise):
        with pytest.raises(InputError, match=r"search='optuna' is done by optuna: pip install 'hf-tl\[search\]'"):
            call(str(timm_folder), task(), **options)
    monkeypatch.setitem(sys.modules, "ray.tune", SimpleNamespace())
    with pytest.raises(InputError, match="search='ray' puts the trials of each run on a cluster, an executor whole"):
        compare(str(timm_folder), task(), out=tmp_path, effort=Effort(search="ray"), executor=SimpleNamespace(map=map))
    assert not list(tmp_path.iterdir())
