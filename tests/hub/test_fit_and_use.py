"""recipes/fit_and_use.py: what is fitted in one process answers alike in others, exported, and on the Hub."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import write_images
from odd_photos import odd_photos
from PIL import Image
from scipy.io import wavfile
from tiny import save_wav2vec2

from hf_tl.cli.main import main


ROOT = Path(__file__).parents[2]
ROADS = {"its folder, in another process", "one module", "fine-tuned, in transformers.pipeline"}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def recipe(monkeypatch, tmp_path):
    """Runs it as `python` would, but in this process; where there is a Hub, `hf-tl predict` runs in others."""

    def run(*words, hub=None):
        if hub is None:
            monkeypatch.setattr(subprocess, "run", here)
        else:
            apart = subprocess.run
            monkeypatch.setattr(
                subprocess, "run", lambda command, check: (here if "fit" in command else apart)(command, check=check)
            )
            monkeypatch.setenv("PYTHONPATH", str(ROOT))
            monkeypatch.setenv("HF_ENDPOINT", hub.url)
            monkeypatch.setenv("HF_HUB_OFFLINE", "0")
            monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
            monkeypatch.setenv("HF_HOME", str(tmp_path / "home of the other process"))
        monkeypatch.setattr(sys, "argv", ["fit_and_use.py", *map(str, words), "--out", str(tmp_path / "out")])
        runpy.run_path(str(ROOT / "recipes" / "fit_and_use.py"), run_name="__main__")
        return json.loads((tmp_path / "out" / "results.json").read_text())

    return run


def here(command, check):
    assert command[1:3] == ["-m", "hf_tl.cli"]
    assert main(command[3:]) == 0


def test_photos_of_all_kinds(recipe, hub, timm_folder, tmp_path, capfd):
    pytest.importorskip("onnxruntime")
    photos = tmp_path / "photos"
    write_images(photos, rows=8)
    odd_photos(photos / "train" / "mixed", photos / "train" / "dog" / "0.png")
    (photos / "train" / "owl").mkdir()
    Image.new("RGB", (40, 40), "green").save(photos / "train" / "owl" / "0.png")
    command = ["--model", timm_folder, "--dataset", photos, "--inputs", tmp_path / "new", "--image_size", "48"]
    fit = ["fit", str(timm_folder), str(photos), "--out", str(tmp_path / "refused")]
    assert main(fit) == 2
    assert "do not lie as deep as the others" in capfd.readouterr().err
    for deep in (photos / "train" / "mixed" / "deep").rglob("*.*"):
        deep.rename(photos / "train" / "mixed" / deep.name)
    assert main(fit) == 2
    assert "broken.jpg" in capfd.readouterr().err
    odd_photos(tmp_path / "new", photos / "train" / "dog" / "1.png")
    found = recipe(*command, "--repo_id", "me/photos", "--tune", "2", hub=hub)
    printed = capfd.readouterr().out
    assert "one training sample is all there is of 'owl'" in printed
    assert "train samples that cannot be read" in printed
    assert "left out: broken.jpg" in printed
    assert found.keys() == ROADS | {"classifier.pt2", "classifier.onnx", "the Hub"}
    assert max(found.values()) < 1e-4
    assert json.loads((tmp_path / "out" / "tuned" / "config.json").read_text())["pretrained_cfg"]["input_size"] == [
        3,
        48,
        48,
    ]


def test_sentences_of_a_csv_file(recipe, text_folder, reviews, tmp_path):
    pytest.importorskip("onnxruntime")
    new = tmp_path / "new.csv"
    new.write_text("id,text\n1,the film was very good\n2,\n3,not a dull film but a very very good film\n4,fine\n")
    found = recipe("--model", text_folder, "--dataset", reviews, "--inputs", new, "--tune", "2", "--exports", "onnx")
    assert found.keys() == ROADS | {"classifier.onnx"}
    assert max(found.values()) < 1e-4


def test_recordings_in_folders(recipe, tmp_path):
    generator = np.random.default_rng(0)
    for split, n in (("train", 6), ("test", 2), ("new", 2)):
        for name, pitch in (("high", 1500), ("low", 200)):
            folder = tmp_path / "new" if split == "new" else tmp_path / "tones" / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(n):
                time = np.arange(3200 + 400 * i) / 16000
                tone = np.sin(2 * np.pi * pitch * time) + generator.normal(0, 0.05, len(time))
                wavfile.write(folder / f"{pitch}-{i}.wav", 16000, (tone * 12000).astype(np.int16))
    model = save_wav2vec2(tmp_path / "model")
    found = recipe(
        "--model",
        model,
        "--dataset",
        tmp_path / "tones",
        "--inputs",
        tmp_path / "new",
        "--tune",
        "2",
        "--exports",
        "pt2",
    )
    assert found.keys() == ROADS | {"classifier.pt2"}
    assert max(found.values()) < 1e-4
