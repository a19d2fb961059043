"""A classifier for the classes of a task, its rows, its arguments."""

import io

import numpy as np
import pytest
import torch
from scipy.io import wavfile
from transformers import TrainingArguments

from hf_tl import InputError, LabelledRows, Samples, Task, collate, find_classes, find_modality, load_classifier
from hf_tl.arguments import parse_arguments, share_batch
from hf_tl.audio import read_samples


def rows(labels, names=None, name="samples"):
    return Samples([{"text": "a film"}] * len(labels), "text", np.array(labels), names, name)


def test_a_new_head_and_the_old_body(text_folder):
    network = load_classifier(str(text_folder), ["bad", "good", "fine"])
    assert network.modality == "text"
    assert network.untrained >= {"classifier"}
    assert network.model.config.id2label == {0: "bad", 1: "good", 2: "fine"}
    items = [LabelledRows(rows([2, 0], ("bad", "good", "fine")), ("bad", "good", "fine"))[i] for i in (0, 1)]
    batch = collate(network)(items)
    assert batch["labels"].tolist() == [2, 0]
    assert network.model(**batch).logits.shape == (2, 3)


def test_timm_comes_wrapped_and_keeps_its_weights(timm_folder):
    import timm

    network = load_classifier(str(timm_folder), ["a", "b", "c"], image_size=24)
    assert find_modality(str(timm_folder)) == "image"
    original = timm.create_model(f"local-dir:{timm_folder}", pretrained=True)
    found = network.model.timm_model.state_dict()
    same = [name for name, value in original.state_dict().items() if torch.equal(value, found.get(name, value * 0))]
    assert len(same) >= len(found) - 2


def test_classes_by_name_or_by_number():
    assert find_classes(Task(rows([1, 0], ("no", "yes")), rows([0]))) == ("no", "yes")
    named = Task(rows(["pos", "neg"]), rows(["neg"]))
    assert find_classes(named) == ("neg", "pos")
    assert LabelledRows(named.train, ("neg", "pos")).labels.tolist() == [1, 0]
    with pytest.raises(InputError, match="test has class 'new', train has not"):
        find_classes(Task(rows(["pos", "neg"], name="train"), rows(["new"], name="test")))


def test_what_is_no_classifier(tmp_path, text_folder):
    with pytest.raises(InputError, match="tells at least two classes apart"):
        load_classifier(str(text_folder), ["one"])
    with pytest.raises(InputError, match="transformers could not load"):
        find_modality(str(tmp_path))
    with pytest.raises(InputError, match="samples has no labels"):
        LabelledRows(Samples([{"text": "a"}], "text"), ("a", "b"))
    (tmp_path / "config.json").write_text('{"model_type": "whisper_no"}')
    with pytest.raises(InputError, match="transformers could not load"):
        find_modality(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "sam"}')
    with pytest.raises(InputError, match=r"no classifier of images, text or audio .* 'sam'"):
        find_modality(str(tmp_path))


def test_arguments_over_a_file(tmp_path):
    (tmp_path / "a.yaml").write_text("output_dir: out\nmax_steps: 3\nreport_to: [none]\n")
    (args,) = parse_arguments(TrainingArguments, arguments=[str(tmp_path / "a.yaml"), "--max_steps", "5"])
    assert (args.output_dir, args.max_steps) == ("out", 5)
    with pytest.raises(InputError, match="does not exist"):
        parse_arguments(TrainingArguments, arguments=["none.yaml"])
    (tmp_path / "b.json").write_text("[1]")
    with pytest.raises(InputError, match="should hold names with values, got list"):
        parse_arguments(TrainingArguments, arguments=[str(tmp_path / "b.json")])
    (tmp_path / "c.yaml").write_text("a: [")
    with pytest.raises(InputError, match="neither YAML nor JSON"):
        parse_arguments(TrainingArguments, arguments=[str(tmp_path / "c.yaml")])


def test_a_batch_is_shared(tmp_path):
    args = TrainingArguments(str(tmp_path), use_cpu=True, gradient_accumulation_steps=2)
    share_batch(args, 16)
    assert args.per_device_train_batch_size == 8
    with pytest.raises(InputError, match=r"15 rows cannot be split evenly into 2 parts .* such as 16"):
        share_batch(args, 15)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint8, np.float32])
def test_recordings_are_heard_the_same_in_every_form(dtype):
    tone = 0.5 * np.sin(2 * np.pi * 50 * np.arange(800) / 8000).astype(np.float32)
    scale = {np.int16: 2**15, np.int32: 2**31, np.uint8: 128, np.float32: 1}[dtype]
    kept = (tone.astype(np.float64) * scale + (128 if dtype is np.uint8 else 0)).astype(dtype)
    file = io.BytesIO()
    wavfile.write(file, 8000, np.stack([kept, kept], axis=1))
    heard = read_samples({"bytes": file.getvalue(), "path": "a.wav"}, rate=8000)
    np.testing.assert_allclose(heard, tone, atol=0.01)
    np.testing.assert_array_equal(read_samples(tone, rate=8000), tone)
    half = read_samples({"array": tone, "sampling_rate": 8000}, rate=4000)
    np.testing.assert_allclose(half[20:-20], tone[::2][20:-20], atol=0.01)


def test_what_cannot_be_heard():
    with pytest.raises(ValueError, match=r"x.mp3 is no WAV file, and torchcodec"):
        read_samples({"bytes": b"no", "path": "x.mp3"}, rate=8000)
    with pytest.raises(ValueError, match=r"should be \(samples,\)"):
        read_samples(np.zeros((0,)), rate=8000)
