"""A task and a network as Trainer takes them."""

import numpy as np
import pytest
import torch

from hf_tl import DataCollator, InputError, Samples, TaskDataset, find_classes, find_modality, load_network
from hf_tl.data import Task


def samples(labels, names=None, name="samples"):
    return Samples([{"text": "a film"}] * len(labels), "text", np.array(labels), names, name)


def test_a_new_head_and_the_old_body(text_folder):
    network = load_network(str(text_folder), classes=["bad", "good", "fine"])
    assert network.modality == "text"
    assert network.untrained >= {"classifier"}
    assert network.model.config.id2label == {0: "bad", 1: "good", 2: "fine"}
    items = [TaskDataset(samples([2, 0], ("bad", "good", "fine")), ("bad", "good", "fine"))[i] for i in (0, 1)]
    batch = DataCollator(network)(items)
    assert batch["labels"].tolist() == [2, 0]
    assert network.model(**batch).logits.shape == (2, 3)


def test_timm_comes_wrapped_and_keeps_its_weights(timm_folder):
    import timm

    network = load_network(str(timm_folder), classes=["a", "b", "c"], image_size=24)
    assert find_modality(str(timm_folder)) == "image"
    original = timm.create_model(f"local-dir:{timm_folder}", pretrained=True)
    found = network.model.timm_model.state_dict()
    same = [name for name, value in original.state_dict().items() if torch.equal(value, found.get(name, value * 0))]
    assert len(same) >= len(found) - 2


def test_a_trained_head_is_kept_for_its_own_classes_only(text_folder, tmp_path):
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    config = BertConfig.from_pretrained(text_folder, id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1})
    trained = BertForSequenceClassification(config)
    trained.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(text_folder).save_pretrained(tmp_path)
    same = load_network(str(tmp_path), classes=["cat", "dog"])
    assert torch.equal(same.model.classifier.weight, trained.classifier.weight)
    assert "classifier" not in same.untrained
    for classes in (["dog", "cat"], ["plane", "ship"]):
        other = load_network(str(tmp_path), classes=classes)
        assert not torch.equal(other.model.classifier.weight, trained.classifier.weight)
        assert "classifier" in other.untrained
        body = other.model.bert.state_dict()
        assert all(torch.equal(value, body[name]) for name, value in trained.bert.state_dict().items())


def test_classes_by_name_or_by_number():
    assert find_classes(Task(samples([1, 0], ("no", "yes")), samples([0], ("no", "yes")))) == ("no", "yes")
    named = Task(samples(["pos", "neg"]), samples(["neg"]))
    assert find_classes(named) == ("neg", "pos")
    assert TaskDataset(named.train, ("neg", "pos")).labels.tolist() == [1, 0]
    with pytest.raises(
        InputError,
        match=r"1 of 1 test samples are of class 'new', .*; add some to train",
    ):
        find_classes(Task(samples(["pos", "neg"], name="train"), samples(["new"], name="test")))


def test_what_is_no_classifier(tmp_path, text_folder):
    with pytest.raises(InputError, match="tells at least two classes apart"):
        load_network(str(text_folder), classes=["one"])
    with pytest.raises(InputError, match=r"has no config.json"):
        find_modality(str(tmp_path))
    with pytest.raises(InputError, match="samples has no labels"):
        TaskDataset(Samples([{"text": "a"}], "text"), ("a", "b"))
    (tmp_path / "config.json").write_text('{"model_type": "whisper_no"}')
    with pytest.raises(InputError, match="transformers could not load"):
        find_modality(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "sam"}')
    with pytest.raises(InputError, match=r"no classifier of images, text or audio .* 'sam'"):
        find_modality(str(tmp_path))
