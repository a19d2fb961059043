"""docs/lora.md does what it says."""

import re
import runpy
from pathlib import Path

import pytest
from peft_zoo import randomise, tiny_bert

from hf_tl.cli.main import COMMANDS


TEXT = (Path(__file__).parent.parent / "docs" / "lora.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
LINES = [line for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]


@pytest.fixture
def as_named(tmp_path, monkeypatch):
    from hf_tl import LoraConfig, add_lora, save_adapter

    tiny_bert().save_pretrained(tmp_path / "path/to/base")
    model = add_lora(tiny_bert(), LoraConfig(r=4, target_modules=["query"]))
    randomise(model)
    save_adapter(model, tmp_path / "path/to/adapter")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_is_something_to_test():
    assert len(SNIPPETS) == 3
    assert len(LINES) == 6


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippets_run(as_named, snippet):
    (as_named / "snippet.py").write_text(snippet)
    runpy.run_path(str(as_named / "snippet.py"))
    if "runs/adapter" in snippet:
        assert (as_named / "runs/adapter/adapter_config.json").is_file()
    if "checkpoint-2" in snippet:
        names = {path.name for path in (as_named / "runs/trainer/checkpoint-4").iterdir()}
        assert {"adapter_config.json", "adapter_model.safetensors"} <= names


def test_commands_are_those_of_help():
    assert [f"  {line}" for line in LINES] == COMMANDS["adapter"].EXAMPLES.splitlines()
