"""The snippets of docs/adapting.md run, in order, as one script."""

import re
from pathlib import Path


def test_the_snippets_run(capsys):
    text = (Path(__file__).parents[2] / "docs" / "adapting.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(snippets) == 3
    exec("\n".join(snippets), {})  # the document's own code
    printed = capsys.readouterr().out.split()
    assert int(printed[0]) == 2 * 2 * 2 * 8 * 32 + 3 * 32 + 3
    assert float(printed[2]) < 1e-5
