"""The digits example: its task is what it claims to be, and the network is one to transfer from."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from hf_tl import load_network, load_task, quickstart


@pytest.fixture(scope="module")
def hardly_trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart") / "network"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quickstart, "COPIES", 1)
        patch.setattr(quickstart, "EPOCHS", 1)
        quickstart.save_network(folder, seed=0)
    return folder


@pytest.mark.slow
def test_canvases_hold_the_digit_whole_at_random_places():
    digits = load_digits().images[:200]
    canvases = quickstart.draw_canvases(digits, np.random.default_rng(0))
    assert canvases.shape == (200, 1, 32, 32)
    assert canvases.dtype == torch.float32
    assert canvases.min() >= 0
    assert canvases.max() <= 1
    found = set()
    for canvas, digit in zip(canvases[:, 0].numpy(), digits / 16, strict=True):
        large = np.kron(digit, np.ones((2, 2)))
        places = [
            (top, left)
            for top in range(17)
            for left in range(17)
            if np.allclose(canvas[top : top + 16, left : left + 16][large > 0.25], large[large > 0.25], atol=1e-6)
        ]
        assert places
        found.add(places[0])
    assert len(found) > 100


def test_new_networks_depend_on_their_seed_alone():
    first, second, other = (quickstart.new_network(seed).state_dict() for seed in (1, 1, 2))
    torch.manual_seed(7)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert not torch.equal(first["conv1.0.weight"], other["conv1.0.weight"])


def test_the_folder_is_a_task_of_digits_5_to_9(tmp_path):
    quickstart.save_digits(tmp_path, seed=0)
    task = load_task(str(tmp_path), modality="image")
    assert len(task.train) + len(task.test) == 896
    for samples in (task.train, task.test):
        assert samples.class_names == ("5", "6", "7", "8", "9")
    assert np.bincount(task.train.labels).tolist() == [quickstart.SHOTS] * 5
    files = sorted(tmp_path.rglob("*.png"))
    digests = {hashlib.sha256(file.read_bytes()).digest() for file in files}
    assert len(digests) == 896
    quickstart.save_digits(tmp_path, seed=1)  # other canvases of the same digits, in their place
    assert sorted(tmp_path.rglob("*.png")) == files
    assert not digests & {hashlib.sha256(file.read_bytes()).digest() for file in files}


def test_the_saved_network_sees_saved_canvases_as_it_learnt_them(hardly_trained):
    network = load_network(str(hardly_trained))
    canvas = quickstart.draw_canvases(load_digits().images[:1], np.random.default_rng(0))[0, 0].numpy()
    read = network.prepare([Image.fromarray((255 * canvas).round().astype(np.uint8))])
    assert read.shape == (1, 3, 32, 32)
    assert np.allclose(read[0].numpy(), canvas, atol=0.51 / 255)


def test_its_head_is_not_taken_for_one_of_other_digits(hardly_trained):
    heads = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        heads.append(load_network(str(hardly_trained), classes=tuple("56789")).model.timm_model.fc.weight)
    assert not torch.equal(*heads)


@pytest.mark.slow
def test_the_network_learns_its_own_digits(tmp_path):
    assert quickstart.save_network(tmp_path / "network", seed=0) > 0.95
