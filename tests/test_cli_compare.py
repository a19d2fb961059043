"""hf-tl compare and hf-tl report: runs of several processes in one report; nothing that a file names is imported."""

import json
import sys

import pytest

from hf_tl.cli.compare import read_settings
from hf_tl.cli.main import main


EFFORT = {"epochs": 1, "trials": 1, "steps": 1, "patience": 1, "batch_size": 1}


@pytest.mark.slow
def test_a_report_is_of_what_is_there_and_fits_nothing(timm_folder, image_folder, tmp_path, capsys):
    out = tmp_path / "compared"
    command = ["compare", str(timm_folder), str(image_folder), "--image-size", "32", "--shots", "2", "--seeds", "2"]
    command += ["--strategies", "last layer", "full network", "--out", str(out)]
    assert main([*command, "--part", "1/4"]) == 0
    before = (out / "ledger.jsonl").read_bytes()
    assert main(["report", str(out)]) == 2
    assert "the 1 of 4 runs" in capsys.readouterr().err
    assert (out / "ledger.jsonl").read_bytes() == before
    assert main(command) == 0
    capsys.readouterr()
    assert main(["report", str(out), "--out", str(out / "all.html")]) == 0
    assert "full network" in capsys.readouterr().out
    assert "4 of 4 runs" in (out / "all.html").read_text()
    assert (out / "ledger.jsonl").read_bytes().startswith(before)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"strategies": ["os:getcwd"]}, "'strategies'"),
        ({"effort": {}}, "'effort'"),
        ({"effort": {**EFFORT, "search": "os:getcwd"}}, "search should be one of"),
        ({"effort": {**EFFORT, "trials": "2"}}, "'effort'"),
        ({"effort": {**EFFORT, "bf16": 1}}, "bf16 should be True, False or 'auto', got 1"),
        ({"shots": ["2"]}, "'shots'"),
        ({"model": None}, "'model'"),
        ({"callbacks": "x"}, "'callbacks'"),
    ],
)
def test_settings_from_elsewhere_are_checked(tmp_path, capsys, changed, message):
    settings = {"model": "a", "data": "b", "strategies": ["last layer"], "shots": [1], "seeds": 2, "effort": EFFORT}
    (tmp_path / "settings.json").write_text(json.dumps({**settings, **changed}))
    assert main(["report", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_is_none_of_a_comparison_is_said_to_be_one(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "is no folder of `hf-tl compare`" in capsys.readouterr().err


def test_ray_is_asked_for_by_name_and_said_to_be_missing(tmp_path, capsys, monkeypatch):
    command = ["compare", "network", "images", "--out", str(tmp_path / "compared")]
    assert main([*command, "--gpus", "1"]) == 2
    assert "--gpus is for runs on a Ray cluster, with --ray" in capsys.readouterr().err
    for name in ("ray", "ray.data"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main([*command, "--ray", "auto", "--gpus", "1"]) == 2
    assert "this runs on Ray: pip install 'hf-tl[ray]'" in capsys.readouterr().err


def test_a_search_is_asked_for_by_name_and_kept_with_the_settings(tmp_path, capsys, monkeypatch):
    command = ["compare", "network", "images", "--out", str(tmp_path), "--search", "optuna", "--trials", "10"]
    command += ["--bf16", "auto"]
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(command) == 2
    assert "search='optuna' is done by optuna: pip install 'hf-tl[search]'" in capsys.readouterr().err
    effort = read_settings(tmp_path)["effort"]
    assert (effort.search, effort.trials, effort.bf16) == ("optuna", 10, "auto")
