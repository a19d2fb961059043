"""docs/hub.md does what it says."""

import re
import runpy
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from loopback import TOKEN
from peft_zoo import tiny_bert
from PIL import Image

from hf_tl import load_adapter, save_adapter
from hf_tl.cli.main import main


PAGE = (Path(__file__).parents[2] / "docs" / "hub.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
LINES = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),  # peft 0.21 asks
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.mark.slow
def test_the_page_runs_from_top_to_bottom(hub, timm_folder, tmp_path, monkeypatch, capfd):
    assert len(SNIPPETS) == 4
    assert len(LINES) == 2
    monkeypatch.chdir(tmp_path)
    tiny_bert().save_pretrained("bert")
    hub.seed("me/base", tmp_path / "bert")
    hub.seed("me/vision", timm_folder)
    generator = np.random.default_rng(0)
    pictures = [Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(4)]
    for i, snippet in enumerate(SNIPPETS):
        torch.manual_seed(i)
        (tmp_path / "snippet.py").write_text(snippet)
        names = runpy.run_path(str(tmp_path / "snippet.py"), init_globals={"pictures": pictures})
    assert names["features"].shape[0] == 4
    assert hub.repos["me/films-fne"].private
    assert set(hub.repos) == {"me/base", "me/vision", "me/films-lora", "me/films-trained", "me/films-fne"}
    save_adapter(load_adapter(tiny_bert(), "me/films-lora"), "path/to/adapter")
    for line in LINES:
        assert main(shlex.split(line)[1:]) == 0
    assert hub.repos["me/films-cli"].private
    said = capfd.readouterr()
    assert TOKEN not in said.out + said.err
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert TOKEN.encode() not in path.read_bytes(), path
