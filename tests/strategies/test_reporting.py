"""report_to: each training arrives under its name, TensorBoard's events stay, and nothing else changes."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from one_comparison import Guess, task
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from hf_tl.errors import InputError
from hf_tl.strategies import Effort, Transfer, advise, compare, find_strategy
from hf_tl.strategies.draws import draw, usable_samples
from hf_tl.strategies.reporting import Reporting


EFFORT = Effort(epochs=1, trials=2, steps=1, batch_size=18)
OPTIONS = {"shots": [4], "seeds": 2, "image_size": 32, "progress": False, "effort": EFFORT}


@pytest.fixture
def reported(monkeypatch):
    """Run name -> names of what a backend was told, in order; Trackio stands for all that are not installed here."""
    found = {}

    class Backend(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            assert args.run_name not in found
            found[args.run_name] = []

        def on_log(self, args, state, control, logs, **kwargs):
            found[args.run_name] += logs

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "trackio", Backend)
    monkeypatch.setattr(integration_utils, "is_trackio_available", lambda: True)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    return found


def said(folder):
    """What a ledger says, without cost."""
    lines = map(json.loads, (folder / "ledger.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "footprint"} for line in lines]


@pytest.mark.slow
def test_each_training_arrives_and_nothing_else_changes(timm_folder, tmp_path, reported):
    strategies = ["last layer", "split"]
    compare(str(timm_folder), task(), strategies=strategies, out=tmp_path / "alone", **OPTIONS)
    assert not reported
    assert [path.name for path in tmp_path.rglob("tensorboard")] == []
    compare(str(timm_folder), task(), strategies=strategies, out=tmp_path / "told", report_to="trackio", **OPTIONS)
    assert said(tmp_path / "told") == said(tmp_path / "alone")
    names = [f"split, 4 a class, seed {seed}, learning rate {r}" for seed in (0, 1) for r in ("0.001", "0.0003333")]
    assert list(reported) == [f"{Path(timm_folder).name} on DATA, {name}" for name in names]
    for logs in reported.values():
        assert {"loss", "eval_loss", "eval_accuracy", "train_loss"} <= set(logs)


def test_events_of_tensorboard_outlive_the_training(timm_folder, tmp_path, reported):
    if not integration_utils.is_tensorboard_available():
        pytest.skip("no TensorBoard here")
    reporting = Reporting.of(["trackio", "tensorboard"], folder=tmp_path).named("a/../b", model="m", source="s")
    fit(timm_folder, reporting)
    (folder,) = (tmp_path / "tensorboard").iterdir()
    assert folder.name == "a-..-b, learning rate 0.001"
    (events,) = folder.iterdir()
    assert all(tag in events.read_bytes() for tag in (b"train/loss", b"eval/accuracy"))
    assert list(reported) == ["m on s, a/../b, learning rate 0.001"]


@pytest.mark.slow
def test_each_trial_of_a_search_is_a_run_of_its_own(timm_folder, reported, tmp_path):
    pytest.importorskip("optuna", reason="Optuna is an extra: pip install 'hf-tl[search]'")
    fitted = [
        fit(timm_folder, Reporting.of(report_to, folder=tmp_path), trials=3, search="optuna")
        for report_to in ((), "trackio")
    ]
    assert (fitted[0].setting, fitted[0].validation) == (fitted[1].setting, fitted[1].validation)
    assert len(reported) == 3
    assert all("eval_accuracy" in logs for logs in reported.values())
    assert any(f"{float(fitted[1].setting.split()[-1]):.2g}" == f"{float(name.split()[-1]):.2g}" for name in reported)


def fit(folder, reporting, *, trials=1, search="grid"):
    transfer = Transfer.of(str(folder), task(), image_size=32)
    pool, _ = usable_samples(transfer.labels, n_train=transfer.n_train, groups=np.arange(len(transfer.labels)))
    drawn = draw(transfer.labels, pool, shots=8, seed=0)
    effort = Effort(epochs=1, trials=trials, steps=1, batch_size=18, search=search, reporting=reporting)
    return find_strategy("split").fit(transfer, drawn.train, drawn.validation, effort=effort, seed=0)


@pytest.mark.slow
def test_pilots_of_advice_are_reported(timm_folder, tmp_path, reported):
    options = {"image_size": 32, "budget": "2min", "out": tmp_path, "report_to": ["trackio"]}
    advise(str(timm_folder), task(n_train=16), strategies=("last layer", "split", Guess("poor", 0.3)), **options)
    assert f"{Path(timm_folder).name} on DATA, split, 27 samples, 3 epochs, seed 0, learning rate 0.001" in reported


def test_a_run_of_weights_and_biases_ends_with_its_training(monkeypatch):
    ended = []
    backend = SimpleNamespace(run=None, finish=lambda: ended.append(1))
    monkeypatch.setitem(sys.modules, "wandb", backend)
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", TrainerCallback)
    reporting = Reporting(("wandb",))
    for callback in reporting.callbacks(0.1):
        callback.on_train_end(None, None, None)
    assert len(ended) == 1
    backend.run = object()  # of the user, who ends it
    assert len(reporting.callbacks(0.1)) == 1


def test_what_cannot_be_reported_to_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(integration_utils, "is_mlflow_available", lambda: False)
    for call in (compare, advise):
        with pytest.raises(InputError, match=r"report_to should be of \['tensorboard', .*\], got 'tensorbord'"):
            call("no network", task(), out=tmp_path, report_to=["mlflow", "tensorbord"])
        with pytest.raises(InputError, match="report_to='mlflow' needs mlflow: pip install mlflow"):
            call("no network", task(), out=tmp_path, report_to="mlflow")
    assert not list(tmp_path.iterdir())
