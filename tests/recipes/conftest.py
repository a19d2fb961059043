"""The worlds that recipes run in: a tiny network and a tiny dataset of each kind."""

import runpy
import sys
from pathlib import Path

import pytest
from conftest import write_images
from tiny import save_vit, save_wav2vec2, write_tones


RECIPES = Path(__file__).parent.parent.parent / "recipes"


@pytest.fixture(scope="session")
def worlds(tmp_path_factory, timm_folder, text_folder) -> dict[str, list[str]]:
    """Kind -> the arguments that name a network and its data."""
    folder = tmp_path_factory.mktemp("recipes")
    write_images(folder / "images")
    write_images(folder / "images", rows=3, split="test")
    write_tones(folder / "tones")
    write_tones(folder / "tones", rows=3, split="test")
    lines = ["text,label"]
    for i in range(10):
        lines += [f"the film was {'very ' * (i % 3)}good,positive", f"a dull film {'not ' * (i % 4)}fine,negative"]
    (folder / "reviews.csv").write_text("\n".join(lines) + "\n")
    named = {
        "image": (save_vit(folder / "vit"), "images"),
        "timm": (timm_folder, "images"),
        "text": (text_folder, "reviews.csv"),
        "audio": (save_wav2vec2(folder / "wav2vec2"), "tones"),
    }
    return {kind: ["--model", str(m), "--dataset", str(folder / data)] for kind, (m, data) in named.items()}


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs a recipe as `python` would, but in this process."""

    def start(name: str, *words: object) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, words)])
        runpy.run_path(str(RECIPES / f"{name}.py"), run_name="__main__")

    return start
