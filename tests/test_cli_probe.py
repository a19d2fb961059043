"""hf-tl probe: heads, grids of C, layers and curves, and the sentences for what cannot be done."""

import re

import pytest
from test_cli import table_rows

from hf_tl.cli.main import main
from hf_tl.cli.probe import HEADS
from hf_tl.probes.heads import HEADS as MADE


@pytest.fixture
def stored(timm_folder, image_folder, tmp_path, capsys):
    assert main(["embed", str(timm_folder), str(image_folder), "--out", str(tmp_path / "store")]) == 0
    capsys.readouterr()
    return str(tmp_path / "store")


def test_the_command_knows_every_head():
    assert set(HEADS) == set(MADE)


@pytest.mark.parametrize("head", ["svm", "ridge", "knn"])
def test_heads(stored, head, capsys):
    assert main(["probe", stored, "--head", head, "-C", "auto"]) == 0
    printed = capsys.readouterr().out
    assert [row[0] for row in table_rows(printed)] == ["full network", "last layer"]
    assert ("note: full network: C=" in printed) == (head == "svm")


def test_a_head_that_can_memorise_the_samples_is_reported(stored, capsys):
    assert main(["probe", stored, "--head", "kernel"]) == 0
    assert "note: full network: head 'kernel' on 12 samples" in capsys.readouterr().out


def test_layers_and_curve_print_and_draw(stored, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["probe", stored, "--layers", "--curve", "--against", stored, "--out", str(out)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "best single layer: " in printed
    assert "the same network with random weights: " in printed
    assert re.search(r"samples per class +1 +2 +3 +5", printed)
    assert (out / "layers.png").stat().st_size > 10_000
    assert (out / "curve.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--C", "much"], '--C takes numbers above 0, or "auto" alone, got much'),
        (["--C", "1", "-2"], "--C must be above 0, got -2.0"),
        (["--head", "svc"], "--head 'svc' is none of svm, logreg"),
        (["--against", "here"], "--against compares layer by layer; add --layers"),
        (["--layers", "--against", "nowhere"], "'nowhere' holds no embedding"),
    ],
)
def test_bad_options_end_in_one_sentence(stored, arguments, sentence, tmp_path, capsys):
    assert main(["probe", stored, "--out", str(tmp_path / "plots"), *arguments]) == 2
    printed = capsys.readouterr()
    said = [line for line in printed.err.splitlines() if line.startswith("hf-tl ")]
    assert len(said) == 1
    assert sentence in said[0]
