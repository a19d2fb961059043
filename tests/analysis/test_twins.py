"""Copies are found whatever was done to them, others are not; groups keep them together."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from hf_tl import Samples, find_twins
from hf_tl.analysis.twins import HASH_DISTANCE, _look_at
from hf_tl.errors import InputError


pytest.importorskip("imagehash")
pytest.importorskip("datasketch")


def photo(seed, side=128):
    """A picture with structure at several scales, in colour."""
    rng = np.random.default_rng(seed)
    layers = [rng.integers(0, 256, (n, n, 3)).astype(np.uint8) for n in (4, 9, 23)]
    scaled = [np.asarray(Image.fromarray(one).resize((side, side), Image.Resampling.BICUBIC), float) for one in layers]
    return Image.fromarray(np.mean(scaled, axis=0).astype(np.uint8))


def jpeg(image, quality=50):
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream)


def samples(values, name="train", column="image"):
    return Samples([{column: value} for value in values], column, name=name)


def recoloured(image):
    """Blue and red exchanged; lightness stays."""
    light, blue, red = image.convert("YCbCr").split()
    return Image.merge("YCbCr", (light, red, blue)).convert("RGB")


@pytest.fixture(scope="module")
def photos():
    return [photo(seed) for seed in range(30)]


CHANGES = {
    "identical": lambda image: image.copy(),
    "copy": lambda image: jpeg(image).resize((80, 70)),
    "mirrored": ImageOps.mirror,
    "recoloured": recoloured,
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_changed_image_is_found_and_named(photos, kind):
    found = find_twins([samples(photos), samples([CHANGES[kind](photos[7])], "test")], modality="image")
    assert [(pair.first, pair.second, pair.kind) for pair in found.pairs] == [(("train", 7), ("test", 0), kind)]
    assert found.pairs[0].is_across
    assert found.leaked("test", into="train").tolist() == [kind != "recoloured"]


def test_a_grey_copy_is_a_copy(photos):
    found = find_twins([samples([*photos, ImageOps.grayscale(photos[3])])], modality="image")
    assert [(pair.first[1], pair.second[1], pair.kind) for pair in found.pairs] == [(3, 30, "copy")]


@pytest.mark.parametrize(("share", "is_copy"), [(0.2, True), (0.3, False)])
def test_a_hash_that_is_near_proposes_and_pixels_decide(photos, share, is_copy):
    other = Image.blend(photos[1], photos[2], share)
    first, second = _look_at(photos[1]), _look_at(other)
    assert 0 < (first.hashes[0] != second.hashes[0]).sum() <= HASH_DISTANCE
    assert bool(find_twins([samples([photos[1], other])], modality="image").pairs) == is_copy


def test_small_images_that_resemble_one_another_are_no_copies():
    one = photo(0, side=28)
    other = Image.fromarray(
        (np.asarray(one, float) * 0.9 + np.asarray(photo(1, side=28), float) * 0.1).astype(np.uint8)
    )
    assert not find_twins([samples([one, other])], modality="image").pairs
    assert find_twins([samples([one, one])], modality="image").pairs[0].kind == "identical"


def test_images_of_one_shade_are_copies_if_it_is_the_same():
    plain = [Image.new("RGB", (80, 80), (shade, shade, shade)) for shade in (10, 10, 200)]
    assert [(p.first[1], p.second[1]) for p in find_twins([samples(plain)], modality="image").pairs] == [(0, 1)]


def test_what_cannot_be_read_is_left_out(photos):
    broken = {"bytes": b"no image", "path": None}
    found = find_twins([samples([broken, photos[0], None, photos[0]])], modality="image")
    assert [(pair.first[1], pair.second[1]) for pair in found.pairs] == [(1, 3)]


def test_groups_join_across_splits_and_through_others(photos):
    train, test = samples([photos[0], photos[1], photos[0]]), samples([photos[1], photos[2]], "test")
    groups = find_twins([train, test], modality="image").groups
    assert groups["train"][0] == groups["train"][2] != groups["train"][1]
    assert groups["test"][0] == groups["train"][1]
    assert groups["test"][1] not in groups["train"]


def test_texts():
    texts = [
        "The quick brown fox jumps over the lazy dog near the river bank.",
        "the quick brown fox jumps over the lazy dog near the river bank",
        "The quick brown fox jumps over the lazy dog near the river bend.",
        "Something else entirely is written in this sentence of mine.",
        "The quick brown fox jumps over the lazy dog, and many other animals of the garden run after it.",
        "",
    ]
    found = find_twins([samples(texts, column="text")], modality="text")
    assert [(p.first[1], p.second[1], p.kind) for p in found.pairs] == [(0, 1, "identical"), (0, 2, "copy")]
    assert found.groups["train"][1] == found.groups["train"][2]


def test_recordings_are_compared_by_content():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 100)).astype(np.float32)
    found = find_twins([samples([one, other, {"array": one, "sampling_rate": 8000}])], modality="audio")
    assert [(p.first[1], p.second[1]) for p in found.pairs] == [(0, 2)]


def test_splits_of_one_name():
    with pytest.raises(InputError, match="different names"):
        find_twins([samples([]), samples([])], modality="image")


@pytest.mark.parametrize(("package", "modality"), [("imagehash", "image"), ("datasketch", "text")])
def test_an_absent_package_is_said(monkeypatch, photos, package, modality):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    values = photos[:2] if modality == "image" else ["a text", "another"]
    with pytest.raises(InputError, match=r"pip install 'hf-tl\[audit\]'"):
        find_twins([samples(values)], modality=modality)
