"""docs/dropin.md does what it says."""

import json
import re
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "dropin.md").read_text()


@pytest.mark.slow
def test_snippets_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python(?: continued)?\n(.*?)```", PAGE, re.DOTALL)
    assert len(snippets) == 5
    names = {"__name__": "__main__"}
    for snippet in snippets:
        exec(snippet, names)
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()
    assert names["accelerator"].num_processes == 1


def test_the_matrix_is_the_one_that_was_kept():
    kept = json.loads((ROOT / "recipes" / "benchmarks" / "results" / "dropin_matrix.json").read_text())["results"]
    for name, found in kept.items():
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |"))
        cells = [found[pillar][f"{n} process(es)"] for pillar in ("policy", "lora", "embedding") for n in (1, 2)]
        assert [cell.strip() for cell in row.split("|")[2:-1]] == cells
        assert all(len(found[pillar]["added"]) == 2 for pillar in ("policy", "lora", "embedding"))
