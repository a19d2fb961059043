"""The embedding of a network while it is trained."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from one_training import Model, accuracies, prepare, rows, train
from sklearn.neighbors import KNeighborsClassifier
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer, TrainingArguments

from hf_tl import FullNetworkEmbedding, InputError, Network, Samples, list_layers
from hf_tl.probes.embedding_callback import EmbeddingCallback, samples_of_loader


@pytest.mark.slow
@pytest.mark.parametrize("log", [False, True])
def test_accuracies_are_logged_every_so_many_steps_and_at_the_end(tmp_path, log):
    _, history = train(tmp_path, log=log)
    found = [entry for entry in history if "embedding/svm" in entry]
    assert [entry["step"] for entry in found] == [3, 6, 7]
    assert [entry["step"] for entry in history if "loss" in entry] == [2, 4, 6]  # none is lost
    assert all(entry["embedding/svm"] > 0.9 and entry["embedding/knn"] > 0.9 for entry in found)


@pytest.mark.slow
def test_training_is_as_if_nothing_had_happened(tmp_path):
    with_it, _ = train(tmp_path / "a")
    without, _ = train(tmp_path / "b", callback=False)
    for one, other in zip(with_it.parameters(), without.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
@pytest.mark.dist
def test_two_processes_log_what_one_logs_and_train_as_if_nothing_had_happened(tmp_path, processes):
    processes.succeed(Path(__file__).parent / "one_training.py", tmp_path, ranks=2)
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    for rank in ranks:
        assert rank["world"] == 2
        for key in ("weights", "flags", "drawn"):
            assert rank["with"][key] == rank["without"][key]
    assert ranks[0]["with"]["weights"] == ranks[1]["with"]["weights"]
    assert ranks[1]["logged"] == []  # process 0 alone
    expected = accuracies(train(tmp_path / "alone", log=True, dropout=0.0, apart=0.8)[1])
    assert ranks[0]["logged"] == expected
    assert [step for step, *_ in expected] == [3, 6, 7]
    assert len({svm for _, svm, _ in expected} | {knn for *_, knn in expected}) > 1  # so that equality says something


def test_flags_and_random_numbers_are_restored():
    model = Model().train()
    model.body[2].eval()
    flags = [module.training for module in model.modules()]
    callback = EmbeddingCallback(rows(8, 1), rows(8, 2), prepare=prepare, heads={"near": KNeighborsClassifier(1)})
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    assert set(callback.measure(model)) == {"embedding/near"}
    assert flags == [module.training for module in model.modules()]
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert np.array_equal(states[2], np.random.get_state()[1])


def test_wrong_arguments_end_in_a_sentence():
    bare = Samples([{"x": torch.zeros(4)}], "x", name="val")
    with pytest.raises(InputError, match="val has no labels; heads are fitted"):
        EmbeddingCallback(rows(8, 1), bare, prepare=prepare)
    with pytest.raises(InputError, match="eval_steps must be at least 1, got 0"):
        EmbeddingCallback(rows(8, 1), rows(8, 2), prepare=prepare, eval_steps=0)


def test_labels_are_compared_by_name_and_one_class_is_none():
    def named(names, labels):
        return Samples([{"x": torch.full((4,), float(i))} for i in range(len(labels))], "x", labels, names, "val")

    train, val = named(("cat", "dog"), np.array([0, 1] * 3)), named(("dog", "cat"), np.array([0, 0, 1]))
    assert EmbeddingCallback(train, val, prepare=prepare).val.labels.tolist() == [1, 1, 0]
    with pytest.raises(InputError, match="class 'cow' is none of"):
        EmbeddingCallback(train, named(("cow", "cat"), np.array([0, 1])), prepare=prepare)
    with pytest.raises(InputError, match="all 3 val are of class 1; heads need two or more"):
        EmbeddingCallback(named(("cat", "dog"), np.array([1, 1, 1])), val, prepare=prepare)
    several = named(("cat", "dog"), np.array([[0, 1], [1, 1]]))
    with pytest.raises(InputError, match="val are labelled for multilabel; give heads="):
        EmbeddingCallback(several, several, prepare=prepare)


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
        self.head = nn.Linear(8, 2)

    def forward(self, x, labels=None):
        logits = self.head(self.body(x))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


def data(count, seed=1, key="labels"):
    values = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return [{"x": value + 3 * (i % 2), key: i % 2} for i, value in enumerate(values)]


@pytest.mark.parametrize("key", ["labels", "label"])
def test_samples_are_those_of_the_dataset_in_its_order(key):
    found, prepare = samples_of_loader(DataLoader(data(10, key=key), batch_size=3, shuffle=True))
    assert len(found) == 10
    assert found.labels.tolist() == [0, 1] * 5
    batch = prepare([found[3], found[4]])
    assert set(batch) == {"x"}
    assert torch.equal(batch["x"][0], data(10)[3]["x"])


def test_of_many_samples_some_are_taken_from_all_over():
    found, _ = samples_of_loader(DataLoader(data(100)), limit=10)
    taken = [int(i) for i in found.dataset.chosen]
    assert len(taken) == 10
    assert (taken[0], taken[-1]) == (0, 99)
    assert found.labels.tolist() == [i % 2 for i in taken]


def test_pairs_and_a_function_of_the_batch():
    pairs = [(torch.full((4,), float(i)), i % 2) for i in range(6)]
    found, prepare = samples_of_loader(DataLoader(pairs))
    assert found.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert torch.equal(prepare([found[5]])[0], pairs[5][0])
    _, scaled = samples_of_loader(DataLoader(data(4)), inputs=lambda batch: batch["x"] / 2)
    assert torch.equal(scaled([data(4)[1]])[0], data(4)[1]["x"] / 2)


@pytest.mark.slow
def test_a_trainers_own_samples(tmp_path):
    args = TrainingArguments(str(tmp_path), max_steps=5, use_cpu=True, per_device_train_batch_size=4, seed=2)
    histories, weights = [], []
    for watched in (True, False):
        torch.manual_seed(0)
        trainer = Trainer(Classifier(), args, train_dataset=data(24), eval_dataset=data(12, seed=2))
        if watched:
            trainer.add_callback(EmbeddingCallback.from_trainer(trainer, eval_steps=4))
        trainer.train()
        histories.append([entry for entry in trainer.state.log_history if "embedding/svm" in entry])
        weights.append([parameter.detach().clone() for parameter in trainer.model.parameters()])
    assert [entry["step"] for entry in histories[0]] == [4, 5]
    assert all(entry["embedding/svm"] > 0.9 for entry in histories[0])
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


def test_a_loop_of_ones_own():
    model = Classifier()
    callback = EmbeddingCallback.from_loaders(DataLoader(data(24), batch_size=4), DataLoader(data(12, seed=2)))
    found = callback.measure(model)
    assert found == callback.measure(model)
    assert found["embedding/svm"] > 0.9


class Stream(IterableDataset):
    def __iter__(self):
        return iter(data(4))


def test_what_has_no_classes_is_refused(tmp_path):
    with pytest.raises(InputError, match="should come from a DataLoader over a dataset with a length, got Stream"):
        samples_of_loader(DataLoader(Stream()))
    with pytest.raises(InputError, match="got list"):
        samples_of_loader([1, 2])
    with pytest.raises(InputError, match=r"have no labels: none of .* among \['x'\]"):
        samples_of_loader(DataLoader([{"x": 1}, {"x": 2}]))
    with pytest.raises(InputError, match="labels of samples should be one class a sample, got float32"):
        samples_of_loader(DataLoader([{"x": 1.0, "label": np.float32(0.5)}] * 2))
    with pytest.raises(InputError, match="heads need two samples or more, got 1"):
        samples_of_loader(DataLoader(data(1)))
    for shape, what in (((6,), "one a token"), ((6, 6), "one a pixel")):
        with pytest.raises(
            InputError, match=rf"labels of samples are {what}, of shape \(2, 6.*EmbeddingCallback\(train"
        ):
            samples_of_loader(DataLoader([{"x": 1, "labels": torch.zeros(shape, dtype=torch.int64)}] * 2))
    choices = {"input_ids": torch.zeros(4, 7, dtype=torch.int64), "labels": 1}
    with pytest.raises(InputError, match="samples are 4 texts each, of which the label says the right one; give"):
        samples_of_loader(DataLoader([choices] * 2))
    boxes = DataLoader([{"x": 1, "labels": {"boxes": 1}}] * 2, collate_fn=lambda items: {"labels": [{}, {}]})
    with pytest.raises(InputError, match="should be one class a sample, got a dict; give"):
        samples_of_loader(boxes)
    with pytest.raises(InputError, match=r"labels of samples are several numbers each, of shape \(2, 3\)"):
        samples_of_loader(DataLoader([{"x": 1, "labels": torch.zeros(3)}] * 2))
    trainer = Trainer(Classifier(), TrainingArguments(str(tmp_path), use_cpu=True), train_dataset=data(4))
    with pytest.raises(InputError, match="the Trainer has no eval_dataset"):
        EmbeddingCallback.from_trainer(trainer)


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed"])
def test_a_network_in_pieces_is_refused_as_training_begins(tmp_path, strategy):
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    trainer = Trainer(Classifier(), args, train_dataset=data(8), eval_dataset=data(8))
    callback = EmbeddingCallback.from_trainer(trainer)
    setattr(args, strategy, "config")  # the packages themselves are not here
    with pytest.raises(InputError, match="FSDP and DeepSpeed share the parameters among the processes"):
        callback.on_train_begin(args, trainer.state, trainer.control, model=trainer.model)


TINY = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}


@pytest.mark.parametrize(
    ("task", "labels", "sentence"),
    [
        ("TokenClassification", {"labels": [0, 1, 1]}, "trained for token classification: labels of .* one a token"),
        ("QuestionAnswering", {"start_positions": 0, "end_positions": 1}, "question answering: .* have no labels"),
        ("MaskedLM", {"labels": [3, -100, 4]}, "trained for masked LM: labels of training samples are one a token"),
        ("LMHeadModel", {"labels": [3, 4, 5]}, "trained for causal LM: labels of training samples are one a token"),
        ("MultipleChoice", {"input_ids": [[1, 2, 3]] * 2, "labels": 1}, "multiple choice: .* are 2 texts each"),
        ("SequenceClassification", {"labels": [0.0, 1.0]}, "sequence classification: .* several numbers each"),
    ],
)
def test_what_a_network_is_trained_for_is_named_where_it_is_refused(tmp_path, task, labels, sentence):
    kind = getattr(transformers, f"Bert{task}" if task.startswith("LM") else f"BertFor{task}")
    rows = [{"input_ids": [1, 2, 3], **labels}] * 4
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    trainer = Trainer(kind(transformers.BertConfig(**TINY)), args, train_dataset=rows, eval_dataset=rows)
    with pytest.raises(InputError, match=f"by one class a sample, and {kind.__name__} is .*{sentence}"):
        EmbeddingCallback.from_trainer(trainer)


def test_a_network_that_cannot_be_read_is_refused_as_training_begins(tmp_path):
    args = TrainingArguments(str(tmp_path), max_steps=5, use_cpu=True, report_to=[])
    trainer = Trainer(Classifier(), args, train_dataset=data(8), eval_dataset=data(8))
    trainer.add_callback(
        EmbeddingCallback(rows(8, 1), rows(8, 2), prepare=lambda items: {"y": torch.zeros(len(items), 4)})
    )
    with pytest.raises(InputError, match=r"the network in training cannot run on its prepared inputs, y \(2, 4\)"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.slow
def test_a_sentence_transformer_with_labels(tmp_path):
    pytest.importorskip("sentence_transformers")
    from datasets import Dataset
    from dropin_world import save_bert
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import BatchAllTripletLoss, CosineSimilarityLoss

    save_bert(tmp_path / "bert")
    texts = ["the film was good", "a very good film", "a dull film", "the film was not fine"] * 4
    one, two = {"text": texts, "label": [1, 1, 0, 0] * 4}, {"a": texts, "b": texts, "label": [1, 1, 0, 0] * 4}

    def trainer_of(columns, loss):
        model = SentenceTransformer(str(tmp_path / "bert"), device="cpu")
        options = {"max_steps": 1, "use_cpu": True, "save_strategy": "no", "report_to": "none"}
        arguments = SentenceTransformerTrainingArguments(str(tmp_path / "out"), **options)
        found = Dataset.from_dict(columns)
        return SentenceTransformerTrainer(
            model=model, args=arguments, train_dataset=found, eval_dataset=found, loss=loss(model)
        )

    trainer = trainer_of(one, BatchAllTripletLoss)
    trainer.add_callback(EmbeddingCallback.from_trainer(trainer))
    trainer.train()
    assert [entry["embedding/svm"] for entry in trainer.state.log_history if "embedding/svm" in entry] == [1.0]
    net = Network(trainer.model, trainer.model.preprocess)  # what it tells beside tensors is left out
    made = FullNetworkEmbedding(net, recipe="raw", taps="last", progress=False).activations(texts)
    np.testing.assert_allclose(made, trainer.model.encode(texts), atol=1e-5)
    assert [layer.name for layer in list_layers(trainer.model)] == [
        "stem",
        "encoder.layer.0",
        "encoder.layer.1",
        "head",
    ]
    with pytest.raises(InputError, match=r"one text with its class, got the columns \['a', 'b'\]"):
        EmbeddingCallback.from_trainer(trainer_of(two, CosineSimilarityLoss))
