"""What is looked at before a network is loaded: folders, files, classes."""

import io
import shutil

import numpy as np
import pytest
from conftest import write_images
from PIL import Image

from hf_tl import InputError, load_task
from hf_tl.data import check_inputs
from hf_tl.dataset_check import check_classes, check_folder, find_bad_samples
from hf_tl.labels import LabelTable


def test_folders_among_files_of_their_class_are_named(image_folder):
    (image_folder / "train" / "cat" / "old").mkdir()
    shutil.copy(image_folder / "train" / "cat" / "0.png", image_folder / "train" / "cat" / "old" / "0.png")
    with pytest.raises(InputError, match=r"1 of the 19 files in .* do not lie as deep .*: train/cat/old \(1\); move"):
        load_task(str(image_folder), modality="image")


def test_what_is_not_read_is_said(tmp_path):
    write_images(tmp_path)
    flat = tmp_path / "train"
    (flat / "cow").mkdir()
    (flat / "cat" / "IMG_1.heic").write_bytes(b"x")
    (flat / "README.md").write_text("photos")
    assert check_folder(flat) == [
        "1 files are neither images nor recordings and not read: cat/IMG_1.heic",
        "no file to read is in cow",
    ]
    assert check_folder(tmp_path / "train" / "cow") == []


def jpeg(**options):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, options.pop("format", "JPEG"), **options)
    return stream.getvalue()


def test_files_that_cannot_be_read_are_found_by_their_headers_and_ends(tmp_path):
    whole = {"jpg": jpeg(), "png": jpeg(format="PNG"), "gif": jpeg(format="GIF"), "bmp": jpeg(format="BMP")}
    files = {f"whole.{kind}": content for kind, content in whole.items()}
    files |= {f"cut.{kind}": content[: len(content) // 2] for kind, content in whole.items()}
    files |= {"padded.jpg": whole["jpg"] + b"\0\0\n", "empty.jpg": b"", "text.jpg": b"not a picture"}
    flipped = bytearray(whole["png"])
    flipped[60] ^= 1
    files["flipped.png"] = bytes(flipped)
    samples = []
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        in_file, in_memory = {"path": str(tmp_path / name), "bytes": None}, {"path": "", "bytes": content}
        samples += [{"image": in_file}, {"image": in_memory}]
    samples.append({"image": {"path": str(tmp_path / "missing.jpg"), "bytes": None}})
    bad = find_bad_samples(samples, "image", modality="image")
    wrong = {name for i, name in enumerate(files) if 2 * i in bad}
    assert wrong == {*(f"cut.{kind}" for kind in whole), "empty.jpg", "text.jpg", "flipped.png"}
    assert {2 * i + 1 for i, name in enumerate(files) if name in wrong} | {len(samples) - 1} <= set(bad)
    assert "missing.jpg: FileNotFoundError" in bad[len(samples) - 1]


def test_texts_and_recordings(tmp_path):
    texts = [{"t": text} for text in ("a film", " ", None)]
    assert find_bad_samples(texts, "t", modality="text") == {
        1: "sample 1: ValueError: the text is empty: there is nothing to read",
        2: "sample 2: ValueError: it is empty",
    }
    (tmp_path / "a.wav").write_bytes(b"RIFF1234WAVEjunk")
    recording = [{"a": {"path": str(tmp_path / "a.wav"), "bytes": None}}, {"a": {"path": "b.mp3", "bytes": b""}}]
    assert list(find_bad_samples(recording, "a", modality="audio")) == [0, 1]
    assert find_bad_samples([{"x": object()}], "x", modality="array") == {}


def test_all_unreadable_files_are_named_at_once_or_noted(image_folder):
    for place in ("train/cat/2.png", "train/dog/3.png", "test/cat/0.png"):
        (image_folder / place).write_bytes(b"not a picture")
    task = load_task(str(image_folder), modality="image")
    with pytest.raises(InputError, match=r"2 of 12 train samples cannot be read: .*cat/2.png.*dog/3.png.*--on-bad"):
        check_inputs(task, modality="image")
    train, test = check_inputs(task, modality="image", on_bad_samples="skip")
    assert train.startswith("train samples that cannot be read: ")
    assert "test/cat/0.png" in test


def test_rare_and_imbalanced_classes_are_said():
    labels = np.repeat([0, 1, 2], [30, 1, 3])
    assert check_classes(LabelTable(labels, ("rose", "daisy", "tulip"), "train"), "flowers") == [
        "one training sample is all there is of 'daisy'",
        "the classes are imbalanced: 30 of 34 training samples (88%) are of class 'rose', 1 of class 'daisy'",
    ]
    assert check_classes(LabelTable(np.arange(4) / 3, None, "train"), "ages") == []
    for same, what in ((np.ones(3), "number"), (np.ones(3, int), "class")):
        with pytest.raises(InputError, match=f"have one {what} only"):
            check_classes(LabelTable(same, None, "train"), "data")
