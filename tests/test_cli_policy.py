"""hf-tl policy: the examples of its help run, and what cannot be used ends in one sentence."""

import shlex
import shutil

import pytest

from hf_tl.cli.main import COMMANDS, main


def test_the_examples_of_help_run_as_printed(tmp_path, timm_folder, monkeypatch, capsys):
    for name in ("timm/mobilenetv2_100.ra_in1k", "path/to/model"):
        shutil.copytree(timm_folder, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    printed = []
    for line in COMMANDS["policy"].EXAMPLES.splitlines():
        assert main(shlex.split(line)[1:]) == 0, line
        printed.append(capsys.readouterr().out)
    once, gradual, phases = printed
    rows = [line.split() for line in once.splitlines()[2:]]
    assert rows[0][:2] == ["stem", "stem"]
    assert rows[0][-1] == "freeze"
    assert ["reinit", "1"] in [row[-2:] for row in rows]
    assert ["tune", "0.8"] in [row[-2:] for row in rows]
    assert "backward stops at" in once
    assert "freeze, from 1 epoch tune" in gradual
    assert "tune 0.0003" in gradual
    assert (tmp_path / "policy.png").stat().st_size > 10_000
    assert "wrote policy.png" in gradual
    assert phases.splitlines()[0].split()[-5:] == ["from", "0", "from", "2", "epochs"]
    assert "reinit 0.1" in phases


WRONG = {
    "a word": (["frezze: 1"], "a policy has no action 'frezze'; write one of freeze, tune"),
    "a layer": (["freeze: 40"], "there is no block 40"),
    "nothing": ([""], "the policy says nothing"),
    "a phase": (["", "--phase", "later", "tune: all"], "a phase begins at '0', '2 epochs'"),
    "a picture": (["freeze: 0", "--plot", "grid.gif"], "should be a .png, .svg or .pdf file"),
    "a rate": (["freeze: 0", "--lr", "0"], "--lr should be above 0, got 0.0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_ends_in_one_sentence(case, timm_folder, capsys):
    arguments, sentence = WRONG[case]
    assert main(["policy", str(timm_folder), *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("hf-tl policy: ")
    assert sentence in said


def test_a_network_that_is_not_there(capsys):
    assert main(["policy", "nowhere/nothing", "freeze: 0"]) == 2
    assert "model 'nowhere/nothing' is not a folder, not a timm model name" in capsys.readouterr().err
