"""The replications run, say which way they came out, and leave figures and a picture; what is committed is theirs."""

import json
import runpy
import sys
import warnings
from pathlib import Path

import pytest
import torch


ROOT = Path(__file__).parent.parent
RECIPES = ROOT / "recipes"
NAMES = ("replicate_transferability", "replicate_lp_ft", "replicate_surgical", "replicate_reinit")


@pytest.fixture
def quiet(monkeypatch):
    """A recipe sets threads, warnings and the verbosity of transformers, for the whole process."""
    from transformers import logging

    threads, verbosity = torch.get_num_threads(), logging.get_verbosity()
    with warnings.catch_warnings():
        yield
    torch.set_num_threads(threads)
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()
    for name in ("digits", "replication"):
        sys.modules.pop(name, None)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_replication(name, quiet, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(RECIPES))
    folders = ["--results", str(tmp_path), "--images", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [name, "--quick", *folders])
    runpy.run_path(str(RECIPES / f"{name}.py"), run_name="__main__")
    printed = capsys.readouterr().out.splitlines()
    kept = json.loads((tmp_path / f"{name}.json").read_text())
    assert kept["seeds"] == 2
    assert printed[: len(kept["sentences"])] == kept["sentences"]
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", NAMES)
def test_the_page_quotes_what_is_committed(name):
    kept = json.loads((RECIPES / "results" / f"{name}.json").read_text())
    page = " ".join((ROOT / "docs" / "policies.md").read_text().split())
    assert kept["seeds"] >= 4
    for sentence in kept["sentences"]:
        assert sentence in page
    assert f"images/{name}.png" in page
    assert (ROOT / "docs" / "images" / f"{name}.png").stat().st_size < 300_000
