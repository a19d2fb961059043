"""A made image excites its unit more than noise does, and the sheets show the right images."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from hf_tl import Samples
from hf_tl.analysis.units import draw_maximised_units, draw_top_images, maximise_units
from hf_tl.embedding.embedding import Embedding, LayerColumns
from hf_tl.errors import InputError


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 5), nn.ReLU(), nn.Conv2d(4, 6, 3)).eval()


def excitement(network, images, unit):
    pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255.0 for image in images]) * 6 - 3
    return network(pixels).mean(dim=(2, 3))[:, unit]


def test_a_made_image_excites_its_unit(network):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    made = maximise_units(network, "2", [1, 3], side=32, n_steps=24)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8))
    for unit, image in zip((1, 3), made, strict=True):
        one, other = excitement(network, [image, noise], unit)
        assert one > other
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert not network[2]._forward_hooks


def test_a_transformer(tmp_path):
    import timm

    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2).eval()
    path = draw_maximised_units(tmp_path / "units.png", {"before": model, "after": model}, "blocks.1", [0], n_steps=2)
    assert path.stat().st_size > 500


def test_the_sheet_of_top_images(tmp_path):
    images = [Image.new("RGB", (20, 20), (10 * i, 0, 0)) for i in range(12)]
    values = np.stack([np.arange(12), -np.arange(12)], axis=1).astype(np.float32)
    embedding = Embedding(values, (LayerColumns("conv", 0, 2, 0.0),), np.arange(12))
    samples = Samples([{"image": image} for image in images], "image")
    path = draw_top_images(tmp_path / "top.png", embedding, samples, layer="conv", units=[0], top=3)
    with Image.open(path) as sheet:
        shown = [sheet.getpixel((4 + k * 116 + 56, 24 + 16 + 56))[0] for k in range(3)]
    assert shown == [110, 100, 90]


def test_copies_are_shown_once(tmp_path):
    images = [Image.new("RGB", (20, 20), (10 * i, 0, 0)) for i in range(12)]
    embedding = Embedding(np.arange(12.0)[:, None], (LayerColumns("conv", 0, 1, 0.0),), np.arange(12))
    samples = Samples([{"image": image} for image in images], "image")
    groups = np.arange(12) // 2
    path = draw_top_images(tmp_path / "top.png", embedding, samples, layer="conv", units=[0], top=3, groups=groups)
    with Image.open(path) as sheet:
        shown = [sheet.getpixel((4 + k * 116 + 56, 24 + 16 + 56))[0] for k in range(3)]
    assert shown == [110, 90, 70]


def test_mistakes(network, tmp_path):
    embedding = Embedding(np.zeros((2, 3)), (LayerColumns("conv", 0, 3, 0.0),), np.arange(2))
    with pytest.raises(InputError, match="layer 'con' is none of the 1"):
        draw_top_images(tmp_path / "a.png", embedding, Samples([], "image"), layer="con")
    with pytest.raises(InputError, match=r"units 0 \.\. 2, got 3"):
        draw_top_images(tmp_path / "a.png", embedding, Samples([], "image"), layer="conv", units=[3])
    with pytest.raises(InputError, match="no module 'nothing'"):
        maximise_units(network, "nothing", [0])
    with pytest.raises(InputError, match=r"units 0 \.\. 5, got 6"):
        maximise_units(network, "2", [6], side=16, n_steps=1)
    with pytest.raises(InputError, match="reads no images"):
        maximise_units(nn.Linear(3, 3), "", [0])
