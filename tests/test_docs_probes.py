"""docs/probes.md does what it says."""

import re
import runpy
import shutil
from pathlib import Path

import pytest
from conftest import write_images

from hf_tl.cli.main import build_parser


DOCS = Path(__file__).parent.parent / "docs"
TEXT = (DOCS / "probes.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippets_run(tmp_path, timm_folder, monkeypatch, snippet, capsys):
    shutil.copytree(timm_folder, tmp_path / "timm" / "mobilenetv2_100.ra_in1k")
    write_images(tmp_path / "beans")
    write_images(tmp_path / "beans", rows=3, split="test")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "snippet.py").write_text(snippet)
    runpy.run_path(str(tmp_path / "snippet.py"))
    assert capsys.readouterr().out


def test_commands_are_understood_and_pictures_are_there():
    commands = [line for line in TEXT.splitlines() if line.startswith("hf-tl ")]
    assert len(commands) == 3
    for command in commands:
        build_parser().parse_args(command.partition("#")[0].split()[1:])
    pictures = re.findall(r"\]\((images/[^)]+)\)", TEXT)
    assert len(pictures) >= 3
    assert all((DOCS / picture).stat().st_size < 300_000 for picture in pictures)
