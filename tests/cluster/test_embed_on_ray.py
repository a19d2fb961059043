"""The recipe and the snippets of docs/scale.md run on the cluster of the tests."""

import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hf_tl import Embedding, FullNetworkEmbedding, load_task


pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(240)]
ROOT = Path(__file__).parent.parent.parent


def test_the_recipe_reads_what_one_process_reads(cluster, timm_folder, image_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--model", timm_folder, "--dataset", image_folder, "--out", "shards", "--fitted", "fitted", "--actors", 1]
    monkeypatch.setattr(sys, "argv", ["embed_on_ray.py", *map(str, words)])
    runpy.run_path(str(ROOT / "recipes" / "embed_on_ray.py"), run_name="__main__")
    got, samples = Embedding.load("shards"), load_task(str(image_folder), modality="image").train
    wanted = FullNetworkEmbedding.from_pretrained("fitted", progress=False).transform(samples)
    np.testing.assert_array_equal(np.asarray(got), np.asarray(wanted))
    assert got.labels.tolist() == samples.labels.tolist()
    assert got.class_names == samples.class_names


def test_snippets_of_the_page(cluster, timm_folder, image_folder, tmp_path, monkeypatch):
    """In their order, in one folder, on files of the names that they name."""
    import pandas as pd
    from test_docs import run, snippets

    monkeypatch.chdir(tmp_path)
    Path("network").symlink_to(timm_folder)
    files = sorted(image_folder.glob("train/*/*.png"))
    rows = [{"image": path.read_bytes(), "label": path.parent.name} for path in files]
    Path("photos").mkdir()
    pd.DataFrame(rows).assign(index=range(len(rows))).to_parquet("photos/0.parquet")
    names = None
    for snippet in snippets("scale.md"):
        code = snippet.code.replace('"photos"', f'"{tmp_path}/photos"')  # the cluster was started elsewhere
        for name, first in [("RayEmbedding", "embedding="), ("RayExecutor", "")]:  # each actor takes seconds to start
            code = code.replace(f"{name}(", f"{name}(actors=1, {first}")
        names = run(replace(snippet, code=code), names)
    assert len(names["features"]) == len(rows)
