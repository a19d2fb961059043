"""One artefact, whatever it is made of: what is saved, loaded, exported and run by transformers answers alike."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import write_images
from datasets import Dataset, Features, Image, Value
from lanes import lanes
from safetensors.numpy import load_file, save_file
from scipy.special import softmax
from torch import nn
from trained import CLASSES, pictures, trained

from hf_tl import FullNetworkEmbedding, InputError, LinearSVM, LoraConfig, Network, add_lora, load_network, load_task
from hf_tl.classifier import Calibration, Classifier
from hf_tl.data import Samples, Task
from hf_tl.embedding.batches import Execution


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_images(folder, rows=8)
    write_images(folder, rows=4, split="test")
    return load_task(str(folder), modality="image")


def embedding_of(folder, **options):
    network = load_network(str(folder), image_size=48)
    return FullNetworkEmbedding(network, progress=False, **options)


@pytest.fixture(scope="module")
def fitted(timm_folder, task):
    return Classifier.fit(embedding_of(timm_folder), task)


@pytest.fixture(scope="module")
def photos(task):
    return [task.test[i] for i in range(len(task.test))]


def test_it_decides_as_the_svm_on_the_embedding_does(fitted, task, photos, timm_folder):
    fne = embedding_of(timm_folder)
    train = fne.fit_transform(task.train)
    svm = LinearSVM(C=1.0).fit(train, train.labels)
    values = svm.decision_function(fne.transform(task.test))
    assert fitted.class_names == ("cat", "dog")
    assert fitted.predict(photos).tolist() == [fitted.class_names[k] for k in (values > 0).astype(int)]
    margin = values / fitted.calibration.temperature
    assert np.allclose(fitted.predict_proba(photos)[:, 1], 1 / (1 + np.exp(-margin)), atol=1e-6)
    assert fitted.record.scores["accuracy"] == svm.score(fne.transform(task.test), task.test.labels)
    assert fitted.record.data["n_samples"] == 16
    assert "5 folds of the 16 training samples" in str(fitted.calibration)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"recipe": "standardize"}, {"recipe": "l2", "taps": ["layer2*", "last"]}])
def test_a_saved_embedding_answers_alike_as_files_and_as_a_module(timm_folder, task, photos, tmp_path, options):
    made = Classifier.fit(embedding_of(timm_folder, **options), task)
    expected = made.predict_proba(photos)
    loaded = Classifier.from_pretrained(made.save_pretrained(tmp_path / "saved"), execution=Execution(progress=False))
    assert np.abs(loaded.predict_proba(photos) - expected).max() < 1e-6
    assert (loaded.class_names, loaded.calibration, loaded.record) == (made.class_names, made.calibration, made.record)
    module, batch = loaded.to_module(), loaded.network.prepare(photos)
    assert np.abs(softmax(module(batch).detach().numpy(), axis=1) - expected).max() < 1e-4
    dynamic = {"args": ({0: torch.export.Dim.DYNAMIC},)}
    exported = torch.export.export(module, (batch,), dynamic_shapes=dynamic, strict=False)
    answers = exported.module()(batch[:3]).detach().numpy()  # of another number of photos
    assert np.abs(softmax(answers, axis=1) - expected[:3]).max() < 1e-4


KINDS = ("timm", "vit", "bert", "wav2vec2")


@pytest.mark.parametrize("kind", lanes(KINDS, fast=lambda kind: kind in ("timm", "bert")))
def test_a_trained_network_answers_alike_here_as_files_as_a_module_and_in_a_pipeline(
    kind, tmp_path, timm_folder, text_folder
):
    from transformers import pipeline

    made = trained(kind, folder=tmp_path / "network", timm_folder=timm_folder, text_folder=text_folder)
    quiet, inputs = Execution(progress=False, batch_size=2), made.inputs
    classifier = Classifier.from_network(made.network, execution=quiet)
    classifier = replace(classifier, calibration=Calibration(1.7, "one by hand"))
    expected = classifier.predict_proba(inputs)
    assert expected.std(axis=0).max() > 1e-4
    folder = classifier.save_pretrained(tmp_path / "saved")
    loaded = Classifier.from_pretrained(folder, execution=quiet)
    assert loaded.class_names == CLASSES
    assert np.abs(loaded.predict_proba(inputs) - expected).max() < 1e-5
    batch = loaded.network.prepare(inputs)
    logits = loaded.to_module()(**batch) if isinstance(batch, dict) else loaded.to_module()(batch)
    assert np.abs(softmax(logits.detach().numpy(), axis=1) - expected).max() < 1e-4
    answers = pipeline(made.task, model=str(folder))(inputs, top_k=len(CLASSES))
    shares = [[{each["label"]: each["score"] for each in answer}[name] for name in CLASSES] for answer in answers]
    assert np.abs(np.array(shares) - expected).max() < 1e-4


def test_a_network_with_an_adapter_is_saved_merged_and_stays_as_it_was(tmp_path, timm_folder, text_folder):
    made = trained("bert", folder=tmp_path, timm_folder=timm_folder, text_folder=text_folder)
    model = add_lora(made.network.model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    batch = made.network.prepare(made.inputs)
    with torch.no_grad():
        expected = softmax(model(**batch).logits.numpy(), axis=1)
    classifier = Classifier.from_network(made.network, execution=Execution(progress=False))
    folder = classifier.save_pretrained(tmp_path / "saved")
    assert not any("lora" in name for name in load_file(folder / "model.safetensors"))
    loaded = Classifier.from_pretrained(folder, execution=Execution(progress=False))
    assert np.abs(loaded.predict_proba(made.inputs) - expected).max() < 1e-5
    assert any("lora" in name for name, _ in model.named_parameters())


def test_it_is_made_from_a_trainer_and_calibrated_on_held_out_samples(tmp_path, timm_folder, task):
    from transformers import Trainer, TrainingArguments

    from hf_tl import DataCollator

    network = load_network(str(timm_folder), classes=["cat", "dog"], image_size=48)
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    trainer = Trainer(network.model, arguments, data_collator=DataCollator(network))
    made = Classifier.from_trainer(
        trainer, held_out=task.test, test=task.test, train=task.train, execution=Execution(progress=False)
    )
    assert made.calibration.how == "8 held-out samples (test)"
    assert made.calibration.after <= made.calibration.before + 1e-9
    assert made.evaluate(task).score == made.record.scores["accuracy"]
    trainer = Trainer(network.model, arguments)
    with pytest.raises(InputError, match="needs a processor to read raw inputs; give the network"):
        Classifier.from_trainer(trainer)


def test_a_processor_is_enough_to_prepare_inputs(tmp_path, timm_folder, text_folder):
    from transformers import Trainer, TrainingArguments

    made = trained("bert", folder=tmp_path, timm_folder=timm_folder, text_folder=text_folder)
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    trainer = Trainer(made.network.model, arguments, processing_class=made.network.processor)
    quiet = Execution(progress=False)
    classifier = Classifier.from_trainer(trainer, execution=quiet)
    expected = Classifier.from_network(made.network, execution=quiet).predict_proba(made.inputs)
    assert np.allclose(classifier.predict_proba(made.inputs), expected, atol=1e-7)


def test_a_network_of_ones_own_is_given_again(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    network = Network(model, torch.stack)
    inputs = list(torch.randn(12, 3, 8, 8))
    samples = Samples([{"input": value} for value in inputs], "input", np.arange(12) % 2, ("a", "b"))
    made = Classifier.fit(FullNetworkEmbedding(network, progress=False), Task(samples, samples))
    folder = made.save_pretrained(tmp_path)
    assert not (folder / "network").exists()
    with pytest.raises(InputError, match="give it with network="):
        Classifier.from_pretrained(folder)
    loaded = Classifier.from_pretrained(folder, network=network, execution=Execution(progress=False))
    assert np.array_equal(loaded.predict(inputs), made.predict(inputs))
    with pytest.raises(InputError, match="neither a network of transformers nor of timm"):
        Classifier.from_network(network, class_names=["a", "b"]).save_pretrained(tmp_path / "own")


def test_inputs_that_cannot_be_read_raise_or_are_left_out(fitted, photos, tmp_path):
    (tmp_path / "note.jpg").write_text("no photo")
    inputs = [photos[0], str(tmp_path / "note.jpg"), photos[1]]
    with pytest.raises(InputError, match=r"sample 1 of samples cannot be read: .*note.jpg is no image"):
        fitted.predict(inputs)
    fitted.execution.on_bad_samples = "skip"
    try:
        assert fitted.predict(inputs).tolist() == ["cat", "", "cat"]
        assert np.isnan(fitted.predict_proba(inputs)[:, 0]).tolist() == [False, True, False]
    finally:
        fitted.execution.on_bad_samples = "raise"


def test_an_evaluation_is_by_the_names_of_the_classes(fitted, task):
    images = [task.test[i] for i in range(8)]
    names = ["dog", "dog", "cat", "cat", "wolf", "cat", "dog", "dog"]
    table = Dataset.from_dict(
        {"image": images, "label": names}, features=Features({"image": Image(), "label": Value("string")})
    )
    found, said = fitted.evaluate(table), fitted.predict(images)
    assert found.truth.tolist() == [["cat", "dog", "wolf"].index(name) for name in names]
    assert found.score == np.mean(said == np.array(names))
    assert found.confusion[1, 0] == np.sum((said == "cat") & (np.array(names) == "dog"))
    assert found.names == ["cat", "dog", "wolf"]
    with pytest.raises(InputError, match=r"none of the samples is of a class of this classifier, cat, dog"):
        fitted.evaluate(table.select([4]))
    with pytest.raises(InputError, match="has no labels"):
        fitted.evaluate(images)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "x"}, "format should be"),
        ({"kind": "pickle"}, "kind should be"),
        ({"class_names": "cat"}, "class_names should be a list"),
        ({"class_names": ["cat", "cat"]}, "two or more different names"),
        ({"class_names": ["cat", "dog", "wolf"]}, "the head in .* should hold coef"),
        (
            {"calibration": {"temperature": 0, "how": "", "before": None, "after": None}},
            "temperature should be above 0",
        ),
        ({"record": []}, "is damaged"),
    ],
)
def test_hostile_settings_end_in_a_sentence(fitted, tmp_path, change, said):
    folder = fitted.save_pretrained(tmp_path)
    config = json.loads((folder / "classifier.json").read_text())
    (folder / "classifier.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(InputError, match=said):
        Classifier.from_pretrained(folder)


def test_hostile_files_end_in_a_sentence(fitted, tmp_path):
    folder = fitted.save_pretrained(tmp_path / "saved")
    head = load_file(folder / "head.safetensors")
    save_file({**head, "intercept": head["intercept"] * np.nan}, folder / "head.safetensors")
    with pytest.raises(InputError, match="NaN or infinity"):
        Classifier.from_pretrained(folder)
    config = folder / "network" / "config.json"
    said = json.loads(config.read_text())
    config.write_text(json.dumps({**said, "auto_map": {"AutoModel": "evil.Model"}}))
    with pytest.raises(InputError, match="brings code of its own"):
        Classifier.from_pretrained(folder)
    config.write_text(json.dumps(said))
    (folder / "network" / "model.safetensors").rename(folder / "network" / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"no weights as \.safetensors"):
        Classifier.from_pretrained(folder)
    (folder / "network" / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="a link out of its folder"):
        Classifier.from_pretrained(folder)
    with pytest.raises(InputError, match=r"holds no classifier.json; give a folder"):
        Classifier.from_pretrained(tmp_path)


def test_a_head_that_is_not_linear_is_refused(timm_folder, task):
    with pytest.raises(InputError, match=r"saved with a linear head: KNeighbors.* has no weights of features; 'svm'"):
        Classifier.fit(embedding_of(timm_folder), task, head="knn")


@pytest.mark.parametrize("head", lanes(["logreg", "ridge", "lda"], fast=lambda head: head == "ridge"))
def test_other_linear_heads_decide_as_scikit_learn_does(timm_folder, task, photos, head):
    from hf_tl import make_head

    fne = embedding_of(timm_folder)
    train = fne.fit_transform(task.train)
    expected = (
        make_head(head, train.shape, C=1.0).fit(train.values, train.labels).predict(fne.transform(task.test).values)
    )
    made = Classifier.fit(embedding_of(timm_folder), task, head=head)
    assert made.predict(photos).tolist() == [made.class_names[k] for k in expected]
    assert made.calibration.before is not None


def test_classes_must_be_the_networks(tmp_path, timm_folder, text_folder):
    made = trained("bert", folder=tmp_path, timm_folder=timm_folder, text_folder=text_folder)
    with pytest.raises(InputError, match="has 3 outputs, but there are 2 names"):
        Classifier.from_network(made.network, class_names=["a", "b"])
    with pytest.raises(InputError, match=r"outputs of .* are of \['low', 'middle', 'high'\]"):
        Classifier.from_network(made.network, class_names=["high", "middle", "low"])


def test_pictures_of_any_size_are_read_as_at_training(fitted):
    assert fitted.network.image_size == 48
    assert fitted.predict_proba(pictures(2, side=90)).shape == (2, 2)


@pytest.mark.slow
def test_an_onnx_file_answers_as_predict_does(fitted, photos, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(fitted.export(tmp_path / "pets.onnx")))
    assert [one.name for one in session.get_inputs()] == ["pixel_values"]
    assert json.loads(session.get_modelmeta().custom_metadata_map["class_names"]) == ["cat", "dog"]
    batch = fitted.network.prepare(photos[:5]).numpy()
    (logits,) = session.run(["logits"], {"pixel_values": batch})
    assert np.abs(softmax(logits, axis=1) - fitted.predict_proba(photos[:5])).max() < 1e-4


def test_an_export_that_cannot_be_ends_in_a_sentence(fitted, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"exported to a \.onnx or \.pt2 file, got .*pets\.bin"):
        fitted.export(tmp_path / "pets.bin")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match=r"pip install 'hf-tl\[onnx\]'"):
        fitted.export(tmp_path / "pets.onnx")
    own = Network(nn.Flatten(), torch.stack)
    with pytest.raises(InputError, match=r"has no dummy inputs; give some: export\(path, inputs="):
        Classifier.from_network(own, class_names=["a", "b"]).export(tmp_path / "own.pt2")
