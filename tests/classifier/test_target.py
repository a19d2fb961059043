"""Several classes a sample, and numbers: fitted, saved, loaded, as a module, in a pipeline, evaluated, refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import expit
from torch import nn
from trained import trained

from hf_tl import FullNetworkEmbedding, InputError, Network, make_head
from hf_tl.classifier import Calibration, Classifier
from hf_tl.classifier.target import Target, cross_entropy
from hf_tl.data import Samples, Task
from hf_tl.embedding.batches import Execution


NAMES = ("red", "round", "ripe")


def network():
    torch.manual_seed(0)
    return Network(nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 2)), torch.stack)


@pytest.fixture(scope="module")
def inputs():
    return torch.randn(80, 6, generator=torch.Generator().manual_seed(1))


def task(inputs, labels, names=None):
    rows = [{"x": row} for row in inputs]
    return Task(
        Samples(rows[:60], "x", labels[:60], names, "train"), Samples(rows[60:], "x", labels[60:], names, "test")
    )


@pytest.fixture(scope="module")
def tasks(inputs):
    several = (inputs[:, :3] + inputs[:, 3:] > 0.3).numpy().astype(np.int8)
    numbers = (inputs[:, 0] - 2 * inputs[:, 1]).numpy().astype(np.float64)
    return {"multilabel": task(inputs, several, NAMES), "regression": task(inputs, numbers)}


def fit(task, **options):
    reader = FullNetworkEmbedding(network(), recipe="standardize", taps=["0"], progress=False)
    return Classifier.fit(reader, task, **options), reader


@pytest.mark.parametrize("problem", ["multilabel", "regression"])
def test_it_answers_as_its_head_does_from_memory_from_files_and_as_a_module(tasks, problem, tmp_path):
    made, reader = fit(tasks[problem])
    train, test = reader.transform(tasks[problem].train), reader.transform(tasks[problem].test)
    name, C = ("svm", 1.0) if problem == "multilabel" else ("ridge", "auto")
    head = make_head(name, train.shape, C=C, problem=problem).fit(train.values, train.labels)
    raw = [tasks[problem].test[i] for i in range(20)]
    loaded = Classifier.from_pretrained(made.save_pretrained(tmp_path / "saved"), network=network())
    assert (loaded.problem, loaded.class_names, loaded.record) == (problem, made.class_names, made.record)
    batch = loaded.network.prepare(raw)
    for one in (made, loaded):
        said, logits = one.predict(raw), one.to_module()(batch).detach().numpy()
        if problem == "regression":
            expected = head.predict(test.values)
            assert said == pytest.approx(expected, rel=1e-4, abs=1e-4)
            assert logits[:, 0] == pytest.approx(expected, rel=1e-3, abs=1e-3)
            assert one.record.scores["R2"] > 0.8
        else:
            there = head.predict(test.values)
            assert [set(names) for names in said] == [{NAMES[k] for k in np.flatnonzero(row)} for row in there]
            shares = expit(head.decision_function(test.values) / one.calibration.temperature)
            assert one.predict_proba(raw) == pytest.approx(shares, abs=1e-5)
            assert expit(logits) == pytest.approx(shares, abs=1e-4)
            assert one.record.scores["F1"] > 0.8
        found = one.evaluate(tasks[problem])
        assert found.scores == pytest.approx({k: v for k, v in one.record.scores.items() if k != "cross entropy"})
    assert ("number" in str(made)) == (problem == "regression")


@pytest.mark.slow
@pytest.mark.parametrize("problem", ["multilabel", "regression"])
def test_an_onnx_file_gives_what_is_asked(tasks, problem, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    made, _ = fit(tasks[problem])
    raw = [tasks[problem].test[i] for i in range(20)]
    session = onnxruntime.InferenceSession(str(made.export(tmp_path / "made.onnx", inputs=raw)))
    (logits,) = session.run(None, {session.get_inputs()[0].name: made.network.prepare(raw).numpy()})
    if problem == "regression":
        assert logits[:, 0] == pytest.approx(made.predict(raw), rel=1e-4, abs=1e-4)
    else:
        assert expit(logits) == pytest.approx(made.predict_proba(raw), abs=1e-4)


def test_the_temperature_of_several_classes_is_that_of_the_least_cross_entropy():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, (400, 3))
    logits = 8 * (truth - 0.5 + rng.normal(size=(400, 3)))  # far too sure
    from hf_tl.classifier.calibration import calibrate

    found = calibrate(logits, truth, how="by hand")
    losses = [cross_entropy(logits / (found.temperature * factor), truth) for factor in (0.9, 1.0, 1.1)]
    assert losses[1] < losses[0]
    assert losses[1] < losses[2]
    assert found.temperature > 2
    by_hand = -np.mean(truth * np.log(expit(logits)) + (1 - truth) * np.log(expit(-logits)))
    assert cross_entropy(logits, truth) == pytest.approx(by_hand)


@pytest.mark.parametrize(("problem", "kind"), [("multilabel", "multi_label_classification"), ("regression", None)])
def test_a_trained_network_answers_alike_in_a_pipeline(problem, kind, tmp_path, timm_folder, text_folder):
    from transformers import pipeline

    made = trained("bert", folder=tmp_path / "network", timm_folder=timm_folder, text_folder=text_folder)
    model = made.network.model
    model.config.problem_type = kind
    if problem == "regression":
        model.classifier, model.config.num_labels, model.num_labels = nn.Linear(model.config.hidden_size, 1), 1, 1
    quiet = Execution(progress=False)
    classifier = Classifier.from_network(made.network, execution=quiet)
    assert classifier.problem == problem
    if problem == "multilabel":
        classifier = replace(classifier, calibration=Calibration(1.7, "one by hand"))
        expected = classifier.predict_proba(made.inputs)
    else:
        expected = classifier.predict(made.inputs)[:, None]
    folder = classifier.save_pretrained(tmp_path / "saved")
    loaded = Classifier.from_pretrained(folder, execution=quiet)
    again = loaded.predict_proba(made.inputs) if problem == "multilabel" else loaded.predict(made.inputs)[:, None]
    assert again == pytest.approx(expected, abs=1e-5)
    options = {"function_to_apply": "none"} if problem == "regression" else {}
    answers = pipeline(made.task, model=str(folder))(made.inputs, top_k=None, **options)
    names = classifier.class_names or [answers[0][0]["label"]]
    shares = [[{each["label"]: each["score"] for each in answer}[name] for name in names] for answer in answers]
    assert np.array(shares) == pytest.approx(expected, abs=1e-4)


def test_what_is_left_out_is_neither_a_class_nor_a_number(tasks):
    for problem, nothing in (("multilabel", None), ("regression", np.nan)):
        made, _ = fit(tasks[problem])
        made.execution.on_bad_samples = "skip"
        said = made.predict([torch.zeros(6), torch.full((6,), np.nan)])
        assert said[1] is nothing or np.isnan(said[1])


def test_mistakes(tasks, inputs, tmp_path):
    numbers, _ = fit(tasks["regression"])
    with pytest.raises(InputError, match="a number has no probability; use predict"):
        numbers.predict_proba(list(inputs[:2]))
    with pytest.raises(InputError, match="test should have a number a sample, got"):
        numbers.evaluate(tasks["multilabel"])
    with pytest.raises(InputError, match="head 'svm' does not solve a regression problem"):
        fit(tasks["regression"], head="svm")
    with pytest.raises(InputError, match="head 'lda' does not solve a multilabel problem"):
        fit(tasks["multilabel"], head="lda")
    with pytest.raises(InputError, match="a number has no classes"):
        Target("regression", ("a", "b"))
    with pytest.raises(InputError, match="two or more different names"):
        Target("multilabel", ("a", "a"))
    with pytest.raises(InputError, match="numbers have none; leave it out"):
        Classifier.from_network(network(), problem="regression", held_out=tasks["regression"].test)
    folder = numbers.save_pretrained(tmp_path / "saved")
    said = json.loads((folder / "classifier.json").read_text())
    for changed in ({"problem": "guessing"}, {"class_names": ["a", "b"]}):
        (folder / "classifier.json").write_text(json.dumps(said | changed))
        with pytest.raises(InputError):
            Classifier.from_pretrained(folder, network=network())
