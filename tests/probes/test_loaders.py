"""The rows of a training script's loaders."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer, TrainingArguments

from hf_tl import EmbeddingCallback, InputError
from hf_tl.probes.loaders import samples_of_loader


class Model(nn.Module):
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
def test_rows_are_those_of_the_dataset_in_its_order(key):
    rows, prepare = samples_of_loader(DataLoader(data(10, key=key), batch_size=3, shuffle=True))
    assert len(rows) == 10
    assert rows.labels.tolist() == [0, 1] * 5
    batch = prepare([rows[3], rows[4]])
    assert set(batch) == {"x"}
    assert torch.equal(batch["x"][0], data(10)[3]["x"])


def test_of_many_rows_some_are_taken_from_all_over():
    rows, _ = samples_of_loader(DataLoader(data(100)), limit=10)
    taken = [int(i) for i in rows.dataset.chosen]
    assert len(taken) == 10
    assert (taken[0], taken[-1]) == (0, 99)
    assert rows.labels.tolist() == [i % 2 for i in taken]


def test_pairs_and_a_function_of_the_batch():
    pairs = [(torch.full((4,), float(i)), i % 2) for i in range(6)]
    rows, prepare = samples_of_loader(DataLoader(pairs))
    assert rows.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert torch.equal(prepare([rows[5]])[0], pairs[5][0])
    _, scaled = samples_of_loader(DataLoader(data(4)), inputs=lambda batch: batch["x"] / 2)
    assert torch.equal(scaled([data(4)[1]])[0], data(4)[1]["x"] / 2)


def test_a_trainers_own_rows(tmp_path):
    args = TrainingArguments(str(tmp_path), max_steps=5, use_cpu=True, per_device_train_batch_size=4, seed=2)
    histories, weights = [], []
    for watched in (True, False):
        torch.manual_seed(0)
        trainer = Trainer(Model(), args, train_dataset=data(24), eval_dataset=data(12, seed=2))
        if watched:
            trainer.add_callback(EmbeddingCallback.from_trainer(trainer, eval_steps=4))
        trainer.train()
        histories.append([entry for entry in trainer.state.log_history if "embedding/svm" in entry])
        weights.append([parameter.detach().clone() for parameter in trainer.model.parameters()])
    assert [entry["step"] for entry in histories[0]] == [4, 5]
    assert all(entry["embedding/svm"] > 0.9 for entry in histories[0])
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


def test_a_loop_of_ones_own():
    model = Model()
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
    trainer = Trainer(Model(), TrainingArguments(str(tmp_path), use_cpu=True), train_dataset=data(4))
    with pytest.raises(InputError, match="the Trainer has no eval_dataset"):
        EmbeddingCallback.from_trainer(trainer)
