"""A training with the callback, which tests run in this process or in two.

torchrun --nproc_per_node 2 one_training.py OUT    with and without the callback; each process writes what it ends with
"""

import json
import random
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_tl import Samples
from hf_tl.probes.embedding_callback import EmbeddingCallback


BATCH = 4  # rows a step, of all processes together


class Model(nn.Module):
    def __init__(self, dropout=0.2):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 8), nn.ReLU())
        self.head = nn.Linear(8, 2)

    def forward(self, x, labels=None):
        logits = self.head(self.body(x))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits} if labels is not None else {"logits": logits}


def rows(n, seed, *, apart=3.0):
    """Two classes of n / 2 rows, whose means lie `apart` in each of four numbers."""
    values = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
    values[: n // 2] += apart
    return Samples([{"x": value} for value in values], "x", labels=np.arange(n) // (n // 2))


def prepare(batch):
    random.random(), np.random.rand(), torch.rand(1)  # as an augmentation would
    return {"x": torch.stack(batch)}


def train(folder, *, processes=1, callback=True, log=False, dropout=0.2, apart=3.0, **options):
    torch.manual_seed(0)
    model = Model(dropout)
    labelled = rows(24, 1, apart=apart)
    data = [{"x": row, "labels": int(label)} for row, label in zip(labelled, labelled.labels, strict=True)]
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=7,
        per_device_train_batch_size=BATCH // processes,
        learning_rate=0.05,
        use_cpu=True,
        logging_steps=2,
        seed=3,
        report_to=[],
    )
    trainer = Trainer(model, args, train_dataset=data)
    if callback:
        judge = rows(16, 2, apart=apart)
        logger = trainer if log else None
        trainer.add_callback(
            EmbeddingCallback(labelled, judge, prepare=prepare, eval_steps=3, trainer=logger, **options)
        )
    trainer.train()
    return model, trainer.state.log_history


def accuracies(history):
    return [
        [entry["step"], entry["embedding/svm"], entry["embedding/knn"]]
        for entry in history
        if "embedding/svm" in entry
    ]


def ending(folder, **options):
    """What must not depend on the callback: weights, training flags and the next random numbers."""
    model, history = train(folder, **options)
    drawn = [random.random(), np.random.rand(), torch.rand(1).item()]
    weights = [parameter.flatten().tolist() for parameter in model.parameters()]
    flags = [module.training for module in model.modules()]
    return {"weights": weights, "flags": flags, "drawn": drawn, "accuracies": accuracies(history)}


def main(out):
    from accelerate import PartialState

    state = PartialState(cpu=True)
    found = {
        "world": state.num_processes,
        "with": ending(out, processes=state.num_processes),
        "without": ending(out, processes=state.num_processes, callback=False),
        "logged": ending(out, processes=state.num_processes, log=True, dropout=0.0, apart=0.8)["accuracies"],
    }
    Path(out, f"{state.process_index}.json").write_text(json.dumps(found))
    state.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1])
