"""recipes/push_adapter.py puts on the Hub what finetune_lora.py leaves, and nothing else of its folder."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from loopback import TOKEN
from peft_zoo import logits, randomise, text, tiny_bert

from hf_tl import InputError, LoraConfig, add_lora, load_adapter, save_adapter


RECIPE = Path(__file__).parents[2] / "recipes" / "push_adapter.py"
pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning")]


@pytest.fixture
def push(monkeypatch):
    def run(*words):
        monkeypatch.setattr(sys, "argv", [str(RECIPE), *map(str, words)])
        runpy.run_path(str(RECIPE), run_name="__main__")

    return run


@pytest.fixture
def trained(tmp_path):
    """The folder that a training left, and what its network answers."""
    model = add_lora(tiny_bert(), LoraConfig(r=4, target_modules=["query", "value"]))
    randomise(model)
    folder = tmp_path / "run"
    save_adapter(model, folder)
    (folder / "results.json").write_text(json.dumps({"accuracy": 0.75, "cross_entropy": 0.5, "processes": 1}))
    (folder / "optimizer.pt").write_bytes(b"not for others")
    return folder, logits(model, text())


def test_what_was_trained_is_on_the_hub(hub, push, trained, capsys):
    folder, expected = trained
    info = ("--dataset", "me/films", "--task", "text-classification", "--base_model", "me/base")
    push("--folder", folder, "--repo_id", "me/run", *info)
    assert set(hub.files("me/run")) == {
        ".gitattributes",
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert torch.equal(logits(load_adapter(tiny_bert(), "me/run"), text()), expected)
    card = bytes(hub.files("me/run")["README.md"]).decode()
    assert "0.75" in card
    assert "me/films" in card
    said = capsys.readouterr()
    assert f"{hub.url}/me/run" in said.out
    assert TOKEN not in said.out + said.err + card


def test_a_dry_run_sends_nothing(hub, push, trained, capsys):
    push("--folder", trained[0], "--repo_id", "me/run", "--base_model", "me/base", "--dry_run", "true")
    assert "me/run" not in hub.repos
    assert "base_model: me/base" in capsys.readouterr().out


def test_a_folder_without_an_adapter_is_refused(hub, push, tmp_path):
    with pytest.raises(InputError, match=r"adapter_config\.json"):
        push("--folder", tmp_path, "--repo_id", "me/run")
    assert "me/run" not in hub.repos
