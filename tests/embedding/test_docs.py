"""docs/embedding.md does what it says."""

import re
import runpy
import shutil
from pathlib import Path

import pytest
from conftest import write_images

from hf_tl.cli.main import main


TEXT = (Path(__file__).parent.parent.parent / "docs" / "embedding.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = [line for line in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL) if line.startswith("hf-tl ")]


@pytest.fixture
def as_named(tmp_path, timm_folder, monkeypatch):
    """A working folder where the names of the text are small things."""
    import timm
    import torch

    torch.manual_seed(0)
    model = timm.create_model("mobilenetv2_035", num_classes=2)
    folder = tmp_path / "timm" / "mobilenetv2_100.ra_in1k"
    timm.models.save_for_hf(model, folder, model_config={"input_size": (3, 32, 32)}, safe_serialization=True)
    write_images(tmp_path / "beans")
    write_images(tmp_path / "beans", rows=3, split="test")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_is_something_to_test():
    assert len(SNIPPETS) == 6
    assert len(COMMANDS) == 1


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippets_run(as_named, snippet):
    (as_named / "snippet.py").write_text(snippet)
    runpy.run_path(str(as_named / "snippet.py"))


def test_the_command_goes_on_from_its_folder(as_named, capsys):
    command = COMMANDS[0].split()[1:]
    assert main(command) == 0
    before = {path: path.read_bytes() for path in Path("runs/raw").rglob("*") if path.is_file()}
    assert main(command) == 0
    assert before == {path: path.read_bytes() for path in Path("runs/raw").rglob("*") if path.is_file()}
    assert main([*command, "--recipe", "fne-package"]) == 2
    assert "made of other taps; nothing was changed" in capsys.readouterr().err
    shutil.rmtree("runs/raw")
