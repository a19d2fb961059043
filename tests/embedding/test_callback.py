"""The embedding of a network while it is trained."""

import random

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_tl import InputError, Rows
from hf_tl.embedding.callback import EmbeddingCallback


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 8), nn.ReLU())
        self.head = nn.Linear(8, 2)

    def forward(self, x, labels=None):
        logits = self.head(self.body(x))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits} if labels is not None else {"logits": logits}


def rows(n, seed):
    values = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
    values[: n // 2] += 3
    return Rows([{"x": value} for value in values], "x", labels=np.arange(n) // (n // 2))


def prepare(batch):
    random.random(), np.random.rand(), torch.rand(1)  # as an augmentation would
    return {"x": torch.stack(batch)}


def train(tmp_path, *, callback=True, log=False, **options):
    torch.manual_seed(0)
    model = Model()
    data = [{"x": row, "labels": int(label)} for row, label in zip(rows(24, 1), rows(24, 1).labels, strict=True)]
    args = TrainingArguments(
        output_dir=str(tmp_path), max_steps=7, per_device_train_batch_size=4, use_cpu=True, logging_steps=2, seed=3
    )
    trainer = Trainer(model, args, train_dataset=data)
    if callback:
        trainer.add_callback(
            EmbeddingCallback(
                rows(24, 1), rows(16, 2), prepare=prepare, every=3, trainer=trainer if log else None, **options
            )
        )
    trainer.train()
    return model, trainer.state.log_history


@pytest.mark.parametrize("log", [False, True])
def test_accuracies_are_logged_every_so_many_steps_and_at_the_end(tmp_path, log):
    _, history = train(tmp_path, log=log)
    found = [entry for entry in history if "embedding/svm" in entry]
    assert [entry["step"] for entry in found] == [3, 6, 7]
    assert all(entry["embedding/svm"] > 0.9 and entry["embedding/knn"] > 0.9 for entry in found)


def test_training_is_as_if_nothing_had_happened(tmp_path):
    with_it, _ = train(tmp_path / "a")
    without, _ = train(tmp_path / "b", callback=False)
    for one, other in zip(with_it.parameters(), without.parameters(), strict=True):
        assert torch.equal(one, other)


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
    bare = Rows([{"x": torch.zeros(4)}], "x", name="val")
    with pytest.raises(InputError, match="val has no labels; heads are fitted on"):
        EmbeddingCallback(rows(8, 1), bare, prepare=prepare)
    with pytest.raises(InputError, match="every must be at least 1 step, got 0"):
        EmbeddingCallback(rows(8, 1), rows(8, 2), prepare=prepare, every=0)
