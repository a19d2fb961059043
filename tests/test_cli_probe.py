"""hf-tl probe: heads, grids of C, layers and curves, and the sentences for what cannot be done."""

import re

import pandas as pd
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
    command = ["probe", stored, "--layers", "--curve", "--confusion", "--against", stored, "--out", str(out)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "best single layer: " in printed
    assert "the same network with random weights: " in printed
    assert re.search(r"samples per class +1 +2 +3 +5", printed)
    assert (out / "layers.png").stat().st_size > 10_000
    assert (out / "curve.png").stat().st_size > 10_000
    assert (out / "confusion.png").stat().st_size > 5_000
    assert "share of the largest class 0.500" in printed
    assert re.search(r"class +samples +right +accuracy", printed)
    assert re.search(r"is . taken for +cat +dog", printed)


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


@pytest.mark.parametrize(
    ("columns", "options", "header"),
    [
        ({"stars": lambda i: i % 5 / 2}, ["--label", "stars"], "test R2"),
        ({"good": lambda i: i % 2, "short": lambda i: i % 3 // 2}, ["--label", "good", "short"], "test F1"),
        ({"label": lambda i: i % 2}, ["--input", "text", "title"], "test accuracy"),
    ],
    ids=["numbers", "several classes", "pairs"],
)
def test_labels_of_every_kind_and_pairs(columns, options, header, text_folder, tmp_path, capsys):
    texts = {"text": [f"the film was {'very ' * (i % 5)}good" for i in range(30)]}
    titles = {"title": ["a dull film" if i % 2 else "fine" for i in range(30)]}
    data = pd.DataFrame(texts | titles | {name: [of(i) for i in range(30)] for name, of in columns.items()})
    data.to_csv(tmp_path / "films.csv", index=False)
    options = options if "--input" in options else [*options, "--input", "text"]
    assert main(["probe", str(text_folder), str(tmp_path / "films.csv"), *options]) == 0
    assert header in capsys.readouterr().out.splitlines()[0]
