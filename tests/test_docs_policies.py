"""docs/policies.md does what it says."""

import re
import runpy
from pathlib import Path

import pytest


PAGE = (Path(__file__).parent.parent / "docs" / "policies.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_there_is_something_to_test():
    assert len(SNIPPETS) == 5


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
@pytest.mark.filterwarnings("ignore")
def test_snippets_run(snippet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "snippet.py").write_text(snippet)
    runpy.run_path(str(tmp_path / "snippet.py"))


def test_every_clause_of_the_table_is_one():
    from hf_tl.policies.grammar import parse_policy

    rows = re.findall(r"^\| (`.*?`) \|", PAGE.split("## The words")[1].split("## ")[0], re.MULTILINE)
    clauses = [clause for row in rows for clause in re.findall(r"`(.*?)`", row)]
    assert len(clauses) == 9
    for clause in clauses:
        assert len(parse_policy(clause)) == 1
