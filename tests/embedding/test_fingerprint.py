"""A folder made of something else is refused: another pooling function, another photo of the same name."""

import os
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from hf_tl import FullNetworkEmbedding, InputError, Network, load_task
from hf_tl.embedding.fingerprint import fingerprint_pooling, fingerprint_samples


def power(values, mask, p=1.0):
    return values.clamp(min=1e-6).pow(p).mean(dim=1).pow(1 / p)


def closed(p):
    return lambda values, mask: power(values, mask, p)


class Power:
    def __init__(self, p):
        self.p = p

    def __call__(self, values, mask):
        return power(values, mask, self.p)


class Square(Power):
    def __call__(self, values, mask):
        return power(values, mask, 2 * self.p)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda v, m: v.flatten(1, -2).mean(1), lambda v, m: v.flatten(1, -2).amax(1)),
        (partial(power, p=1.0), partial(power, p=8.0)),
        (partial(power, p=1.0), power),
        (closed(1.0), closed(2.0)),
        (Power(1.0), Power(2.0)),
        (Power(1.0), Square(1.0)),
        (lambda v, m: v[:, 0] if m in {"a", "b"} else v[:, 1], lambda v, m: v[:, 0] if m in {"a", "c"} else v[:, 1]),
    ],
)
def test_a_pooling_is_known_by_its_code_and_its_values(one, other):
    assert fingerprint_pooling(one) == fingerprint_pooling(one)
    assert fingerprint_pooling(one) != fingerprint_pooling(other)


def test_equal_poolings_made_twice_are_one():
    assert fingerprint_pooling(closed(3.0)) == fingerprint_pooling(closed(3.0))
    assert fingerprint_pooling(partial(power, p=2)) == fingerprint_pooling(partial(power, p=2))
    assert fingerprint_pooling(Power(2)) == fingerprint_pooling(Power(2))


def test_another_pooling_does_not_get_the_features_of_the_first(tmp_path):
    network = Network(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.stack)
    images = list(torch.randn(4, 3, 8, 8))
    for pool in (partial(power, p=1.0), partial(power, p=1.0)):
        FullNetworkEmbedding(network, pool=pool, progress=False).fit_transform(images, out=tmp_path)
    with pytest.raises(InputError, match="made of other taps; nothing was changed"):
        FullNetworkEmbedding(network, pool=partial(power, p=2.0), progress=False).fit_transform(images, out=tmp_path)


def write_photos(folder, shade):
    for name in "ab":
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(3):
            Image.fromarray(np.full((8, 8, 3), shade + i, np.uint8)).save(folder / name / f"{i}.png")


def test_a_photo_that_was_replaced_under_its_name_is_noticed(tmp_path):
    write_photos(tmp_path, 0)
    before = fingerprint_samples(load_task(str(tmp_path), modality="image").train)
    assert fingerprint_samples(load_task(str(tmp_path), modality="image").train) == before
    task = load_task(str(tmp_path), modality="image")
    write_photos(tmp_path, 100)
    assert fingerprint_samples(task.train) != before


def test_of_a_large_file_the_ends_and_the_size_are_looked_at(tmp_path):
    from hf_tl import Samples

    path = tmp_path / "long.wav"
    samples = Samples([{"audio": str(path)}], "audio")
    digests = set()
    for content in (b"a" * 2**21, b"b" + b"a" * (2**21 - 1), b"a" * (2**21 - 1) + b"b", b"a" * (2**21 + 1)):
        path.write_bytes(content)
        digests.add(fingerprint_samples(samples))
    assert len(digests) == 4
    os.utime(path, (0, 0))
    assert fingerprint_samples(samples) in digests  # the time does not matter


@pytest.mark.parametrize("n", [10, 500])
def test_every_item_of_a_list_counts(n):
    from hf_tl import Samples

    values = list(torch.randn(n, 3))
    before = fingerprint_samples(Samples([{"x": value} for value in values], "x"))
    values[n // 2 + 1] = values[n // 2 + 1] + 1
    assert fingerprint_samples(Samples([{"x": value} for value in values], "x")) != before


class Scaled(nn.Module):
    """What no digest of weights sees: an attribute, a buffer that is not saved, a hook, a global of its code."""

    factor = 1.0  # stands for a global

    def __init__(self, by="", factor=1.0):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.attribute = factor if by == "attribute" else 1.0
        self.register_buffer("unsaved", torch.tensor(factor if by == "buffer" else 1.0), persistent=False)
        if by == "hook":
            self.conv.register_forward_hook(lambda module, inputs, output: output * factor)

    def forward(self, images):
        return torch.relu(self.conv(images * self.attribute * self.unsaved * Scaled.factor))


@pytest.mark.parametrize("keep_raw", [True, False])
@pytest.mark.parametrize("by", ["attribute", "buffer", "hook", "global"])
def test_what_no_digest_sees_is_seen_in_what_the_network_gives(tmp_path, monkeypatch, by, keep_raw):
    images = list(torch.randn(20, 3, 8, 8))

    def read(model):
        fne = FullNetworkEmbedding(Network(model.eval(), prepare=torch.stack), progress=False)
        return np.asarray(fne.fit_transform(images, out=tmp_path, keep_raw=keep_raw))

    one, other = Scaled(), Scaled(by, -2.0)
    other.load_state_dict(one.state_dict())
    features = read(one)
    assert np.array_equal(read(one), features)
    if by == "global":
        monkeypatch.setattr(Scaled, "factor", -2.0)
    with pytest.raises(InputError, match=r"does not give any more: layer 'conv' differs.*choose another folder"):
        read(other)
    monkeypatch.undo()
    assert np.array_equal(read(one), features)
