"""hf-tl rank and hf-tl similarity: what they print, and the sentences for what cannot be done."""

import shutil

import pytest
from PIL import Image
from test_cli import table_rows

from hf_tl.cli.main import main


def test_rank_prints_a_row_a_network_and_says_whether_the_first_is_sure(timm_folder, image_folder, tmp_path, capsys):
    networks = [str(timm_folder), str(shutil.copytree(timm_folder, tmp_path / "another"))]
    assert main(["rank", *networks, "--data", str(image_folder), "--scores", "knn"]) == 0
    printed = capsys.readouterr().out
    assert {row[0] for row in table_rows(printed)} == set(networks)
    assert "training samples, ± and ranks: 95 %" in printed


def test_similarity_of_a_dataset_to_itself_is_none(timm_folder, image_folder, tmp_path, capsys):
    kept, network, data = str(tmp_path / "source.safetensors"), str(timm_folder), str(image_folder)
    assert main(["similarity", network, data, "--save-reference", kept]) == 0
    plot = tmp_path / "domains.png"
    assert main(["similarity", network, data, "--reference", kept, "--batch-size", "4", "--plot", str(plot)]) == 0
    assert "cannot be told apart (MMD^2" in capsys.readouterr().out
    assert plot.stat().st_size > 1000


def test_similarity_needs_no_labels(timm_folder, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    for i in range(10):
        Image.new("RGB", (32, 32), (20 * i, 100, 50)).save(tmp_path / "photos" / f"{i}.png")
    assert main(["similarity", str(timm_folder), str(tmp_path / "photos")]) == 0
    assert "(10 samples)" in capsys.readouterr().out
    (tmp_path / "photos" / "0.png").unlink()
    assert main(["similarity", str(timm_folder), str(tmp_path / "photos")]) == 2
    assert "has 9 samples; a comparison takes 10 or more" in capsys.readouterr().err


@pytest.mark.slow
def test_similarity_of_a_network_to_itself_is_one(timm_folder, image_folder, tmp_path, capsys):
    plot = tmp_path / "layers.png"
    command = ["similarity", str(timm_folder), str(image_folder), "--against", str(timm_folder), "--plot", str(plot)]
    assert main(command) == 0
    assert "1.00" in capsys.readouterr().out
    assert plot.stat().st_size > 1000


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["rank", "NETWORK", "--data", "nowhere"], "'nowhere' is neither a folder or file"),
        (["rank", "nowhere", "--data", "DATA"], "model 'nowhere' is not a folder"),
        (["rank", "NETWORK", "--data", "DATA", "--scores", "luck"], "luck"),
        (["similarity", "NETWORK", "DATA", "--plot", "a.gif"], "a picture should be a .png, .svg or .pdf file"),
        (["similarity", "NETWORK", "DATA", "--plot", "no/folder/a.png"], "there is no folder 'no/folder'"),
        (["rank", "NETWORK", "NETWORK", "--data", "DATA"], "is given twice"),
        (["similarity", "NETWORK", "DATA", "--source", "nowhere"], "'nowhere' is neither a folder or file"),
        (["similarity", "NETWORK", "DATA", "--save-reference", "no/a.safetensors"], "there is no folder 'no'"),
        (["similarity", "NETWORK", "DATA", "--samples", "3"], "--samples should be 10 or more"),
        (["similarity", "NETWORK", "DATA", "--reference", "nowhere.safetensors"], "nowhere.safetensors"),
    ],
)
def test_wrong_arguments_are_one_sentence(timm_folder, image_folder, command, sentence, capsys):
    known = {"NETWORK": str(timm_folder), "DATA": str(image_folder)}
    assert main([known.get(word, word) for word in command]) == 2
    assert sentence in capsys.readouterr().err
