"""What the tests of training share: tiny networks, their data, and Trainers."""

from __future__ import annotations

import torch
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
from zoo import ZOO


class LabelledSamples(Dataset):
    """Random inputs with random labels, the same at every call."""

    def __init__(self, name, inputs, n_labels=2):
        generator = torch.Generator().manual_seed(1)
        self.name, self.inputs = name, inputs
        self.labels = torch.randint(0, n_labels, (len(inputs),), generator=generator)

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        return {self.name: self.inputs[index], "labels": self.labels[index]}


def texts(n=32):
    """Token ids for `bert`."""
    return LabelledSamples("input_ids", torch.randint(1, 64, (n, 8), generator=torch.Generator().manual_seed(0)))


def images(n=32, side=64):
    """Pixels for convolutional networks of the zoo."""
    return LabelledSamples("pixel_values", torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(0)))


def bert(dropout=0.0):
    """Four small blocks with the same random weights at every call."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    drops = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    config = BertConfig(vocab_size=64, max_position_embeddings=16, **sizes, **drops, attn_implementation="eager")
    return BertForSequenceClassification(config)


def network(name):
    """A network of the zoo."""
    return next(specimen for specimen in ZOO if specimen.name == name).model()


def trainer(model, folder, callbacks=(), data=None, *, model_init=None, **options):
    """A Trainer on the CPU, quiet, at a rate at which things move."""
    settings = {
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "num_train_epochs": 1,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "use_cpu": True,
        "seed": 0,
    }
    data = texts() if data is None else data
    args = TrainingArguments(str(folder), **settings | options)
    return Trainer(
        model, args, train_dataset=data, eval_dataset=data, callbacks=list(callbacks), model_init=model_init
    )


def state(model):
    """A copy of all tensors by name."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def largest_difference(one, other):
    """Between two states."""
    assert one.keys() == other.keys()
    return max((one[name].double() - other[name].double()).abs().max().item() for name in one)
