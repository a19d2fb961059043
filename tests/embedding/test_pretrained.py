"""A fitted embedding as files, and back."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC
from torch import nn

from hf_tl import FullNetworkEmbedding, InputError, Network, Recipe, load_network


def pictures(n, seed=0):
    generator = np.random.default_rng(seed)
    return [Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(n)]


@pytest.fixture(scope="module")
def network(timm_folder):
    return load_network(str(timm_folder))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"recipe": Recipe(thresholds=(-0.1, 0.2), ddof=1), "taps": ["layer1*", "last"], "pool": {"conv": "max"}},
        pytest.param(
            {"taps": lambda name, module: isinstance(module, nn.BatchNorm2d), "recipe": "l2", "top": 0.5},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_is_saved_transforms_alike(network, tmp_path, options):
    fne = FullNetworkEmbedding(network, progress=False, **options).fit(pictures(6))
    folder = fne.save_pretrained(tmp_path / "fitted")
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "embedding_config.json",
        "statistics.safetensors",
    ]
    loaded = FullNetworkEmbedding.from_pretrained(str(folder)).set_params(progress=False)
    assert loaded.layers_ == fne.layers_
    assert np.array_equal(loaded.transform(pictures(3, 1)), fne.transform(pictures(3, 1)))
    card = (folder / "README.md").read_text()
    assert "library_name: hf_tl" in card
    assert f"{fne.n_features_:,} features" in card
    assert "6 training samples" in card


def test_other_weights_are_refused(network, tmp_path):
    folder = FullNetworkEmbedding(network, progress=False).fit(pictures(4)).save_pretrained(tmp_path)
    torch.manual_seed(5)
    other = Network(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), torch.stack)
    with pytest.raises(InputError, match=r"was fitted on .* with other weights than 'network' has here"):
        FullNetworkEmbedding.from_pretrained(str(folder), network=other)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "x"},
        {"layers": []},
        {"recipe": {}},
        {"taps": 3},
        {"base_model": ["a"]},
        {"base_model": "../../etc"},
        {"top": None},
    ],
)
def test_hostile_files_end_in_a_sentence(network, tmp_path, change):
    folder = FullNetworkEmbedding(network, progress=False).fit(pictures(4)).save_pretrained(tmp_path)
    config = json.loads((folder / "embedding_config.json").read_text())
    (folder / "embedding_config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(InputError, match=r"is damaged|neither a Hub id nor a timm name"):
        FullNetworkEmbedding.from_pretrained(str(folder))


def test_a_pooling_of_ones_own_cannot_be_saved(network, tmp_path):
    fne = FullNetworkEmbedding(network, pool=lambda values, mask: values.amin(dim=1), progress=False)
    fne.fit(pictures(4))
    with pytest.raises(InputError, match="a pooling of your own cannot be written"):
        fne.save_pretrained(tmp_path)


@pytest.mark.slow
def test_halves_are_merged_and_parts_are_added(network):
    rows = pictures(10)
    whole = FullNetworkEmbedding(network, progress=False, recipe="standardize").fit(rows)
    half = [clone(whole).fit(part) for part in (rows[:4], rows[4:])]
    added = clone(whole).partial_fit(rows[:4]).partial_fit(rows[4:])
    for other in (half[0].merge(half[1]), added):
        assert other.statistics_.n == 10
        assert np.allclose(other.transform(rows), whole.transform(rows), atol=1e-4)
    with pytest.raises(InputError, match="use the same network and layers"):
        whole.merge(clone(whole).set_params(taps="last").fit(rows))
    assert whole.get_feature_names_out()[:2].tolist() == ["conv1.0[0]", "conv1.0[1]"]


@pytest.mark.slow
def test_it_stands_in_a_pipeline_and_in_datasets_map(network):
    rows, labels = pictures(8), [0, 1] * 4
    fne = FullNetworkEmbedding(network, progress=False)
    pipeline = make_pipeline(fne, LinearSVC())
    assert clone(pipeline).fit(rows, labels).score(rows, labels) == 1.0
    fne.fit(rows)
    data = Dataset.from_dict({"image": [np.asarray(image).tolist() for image in rows], "label": labels})
    network_of_arrays = replace(
        network, prepare=lambda batch: network.prepare([Image.fromarray(np.uint8(array)) for array in batch])
    )
    fne.set_params(network=network_of_arrays)
    mapped = data.map(fne, batched=True, batch_size=4, input_columns="image")
    assert np.array_equal(np.asarray(mapped["embedding"]), fne.transform([np.asarray(image) for image in rows]))
    with pytest.raises(InputError, match='input_columns="image"'):
        data.map(fne, batched=True)


def test_from_pretrained_of_a_base_model_is_unfitted(timm_folder):
    fne = FullNetworkEmbedding.from_pretrained(str(timm_folder), taps="conv")
    assert not fne.__sklearn_is_fitted__()
    assert "conv1.0" in fne.describe()


def test_from_pretrained_takes_what_the_constructor_takes(network, timm_folder, tmp_path):
    fne = FullNetworkEmbedding.from_pretrained(str(timm_folder), codec="int8", batch_size=3, progress=False)
    assert (fne.codec, fne.batch_size, fne.progress) == ("int8", 3, False)
    folder = str(fne.fit(pictures(4)).save_pretrained(tmp_path))
    assert FullNetworkEmbedding.from_pretrained(folder, batch_size=3).batch_size == 3
    with pytest.raises(InputError, match="whose files say taps, top; leave that out"):
        FullNetworkEmbedding.from_pretrained(folder, taps="last", top=0.5)
