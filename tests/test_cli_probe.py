"""hf-tl probe: heads, grids of C, layers and curves, and the sentences for what cannot be done."""

import re
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import write_images
from lanes import lanes
from test_cli import table_rows

from hf_tl.cli.main import main
from hf_tl.cli.probe import HEADS
from hf_tl.cli.reading import save_groups
from hf_tl.probes.heads import HEADS as MADE


@pytest.fixture(scope="module")
def stored(timm_folder, tmp_path_factory):
    """An embedding of few photos; tests only read it."""
    folder = tmp_path_factory.mktemp("stored")
    write_images(folder / "images")
    write_images(folder / "images", rows=3, split="test")
    assert main(["embed", str(timm_folder), str(folder / "images"), "--out", str(folder / "store")]) == 0
    return str(folder / "store")


def test_the_command_knows_every_head():
    assert set(HEADS) == set(MADE)


@pytest.mark.parametrize("head", lanes(["svm", "ridge", "knn"], fast=lambda head: head == "knn"))
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


@pytest.fixture
def copies(tmp_path):
    """Sentences without any class, each there twice, with other blanks; a test split of new ones."""
    rng = np.random.default_rng(0)
    words = ["a", "the", "film", "was", "very", "not", "good", "bad", "fine", "dull"]  # that the network knows

    def sentences(n):
        return [" ".join(rng.choice(words, 8)) for _ in range(n)]

    (tmp_path / "copies").mkdir()
    ours, others = sentences(40), sentences(20)
    train = pd.DataFrame(
        {"text": [*ours, *(one.replace(" ", "  ") for one in ours)], "label": [*rng.permutation(40)] * 2}
    )
    test = pd.DataFrame({"text": others, "label": range(20)})
    for name, table in (("train", train), ("test", test)):
        table.assign(label=table.label % 2).to_csv(tmp_path / "copies" / f"{name}.csv", index=False)
    return str(tmp_path / "copies")


def search_and_curve(command, out, capsys):
    """The accuracy on held-out samples that chose C, and the largest number of samples per class in the curve."""
    assert main([*command, "-C", "0.001", "0.1", "10", "--curve", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    chosen = re.search(r"full network: C=.*?: ([.\d]+) on 5 folds", printed)[1]
    shots = re.search(r"samples per class +(.*)", printed)[1].split()
    return float(chosen), max(int(word) for word in shots if word.isdigit()), printed


@pytest.mark.slow
def test_copies_are_held_out_and_drawn_together(copies, text_folder, tmp_path, monkeypatch, capsys):
    pytest.importorskip("datasketch")
    read, stored = ["probe", str(text_folder), copies], ["probe", str(tmp_path / "store")]
    assert main(["embed", str(text_folder), copies, "--out", str(tmp_path / "store")]) == 0
    assert "40 of 80 train samples are copies of others" in capsys.readouterr().out
    for command in (read, stored):
        accuracy, shots, _ = search_and_curve(command, tmp_path / "out", capsys)
        assert accuracy < 0.7
        assert shots <= 20
    (tmp_path / "store" / "groups.safetensors").unlink()
    accuracy, shots, printed = search_and_curve(stored, tmp_path / "out", capsys)
    assert accuracy > 0.7  # deceived, and says so
    assert shots > 20
    assert "copies among the samples were not looked for" in printed


def test_groups_of_other_samples_are_refused(stored, tmp_path, capsys):
    own = shutil.copytree(stored, tmp_path / "store")
    save_groups(own, np.arange(2))
    assert main(["probe", str(own), "-C", "auto"]) == 2
    assert "holds no groups of these training samples; repeat hf-tl embed" in capsys.readouterr().err


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
