"""The README does what it says."""

import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest
from conftest import write_images

from hf_tl.cli.main import main


README = (Path(__file__).parent.parent / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line[:6] == "hf-tl "
]


@pytest.fixture
def as_named(tmp_path, timm_folder, monkeypatch):
    """A working folder where the Hub names of the README and of --help are folders of small things."""
    shutil.copytree(timm_folder, tmp_path / "timm" / "mobilenetv2_100.ra_in1k")
    write_images(tmp_path / "beans")
    write_images(tmp_path / "beans", rows=3, split="test")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_is_something_to_test():
    assert len(SNIPPETS) == 3
    assert len(COMMANDS) == 2


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippets_run(as_named, snippet, capsys):
    (as_named / "snippet.py").write_text(snippet)
    names = runpy.run_path(str(as_named / "snippet.py"))
    if "probe" in names:
        assert set(names["train"].values.ravel()) <= {-1, 0, 1}
        assert str(names["train"].shape) in capsys.readouterr().out
    elif "embedding" in names:
        assert names["embedding"].shape == (16, 8)
    else:
        lists = [line.split("  # ") for line in snippet.splitlines() if line.startswith("[")]
        assert len(lists) == 2
        for expression, names_in_comment in lists:
            assert eval(expression, names) == names_in_comment.split(", ")


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(as_named, command, capsys):
    assert main(shlex.split(command)[1:]) == 0
    printed = capsys.readouterr().out
    assert "full network" in printed or "layers frozen" in printed
