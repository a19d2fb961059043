"""The paper's embedding against a float64 reference: plain forward hooks on the modules, numpy for the rest.

Where the two differ, the value lies next to its threshold: as near as float32 sums can be off, on any processor.
"""

import numpy as np
import pytest
import timm
import torch
from torch import nn

from hf_tl import FullNetworkEmbedding, Network


SAMPLES = 48
BATCH = 12
DEPTH = 4  # blocks of a transformer
UNITS = 32 * 2.0**-23  # of what is averaged: two averages in float32, and those in the mean and the deviation


def pooled(value: torch.Tensor, *, channels_last: bool, mask: np.ndarray | None = None) -> np.ndarray:
    value = value.detach().numpy().astype(np.float64)
    if value.ndim == 2:
        return value
    if not channels_last:
        return value.mean(axis=tuple(range(2, value.ndim)))
    if mask is not None:
        return (value * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1)[:, None]
    return value.reshape(len(value), -1, value.shape[-1]).mean(axis=1)


def reference(model, batches, points, masks) -> tuple[np.ndarray, np.ndarray]:
    """points: (module to hook, channels last?) in column order -> (samples, features) float64: values, and sizes.

    A size is the average of the absolute values, in which the error of a sum is measured.
    """
    modules = dict(model.named_modules())
    parts = [[] for _ in points]
    mask = None
    handles = [
        modules[name].register_forward_hook(
            lambda module, args, output, part=part, last=last: part.append(
                [pooled(value, channels_last=last, mask=mask if last else None) for value in (output, output.abs())]
            )
        )
        for part, (name, last) in zip(parts, points, strict=True)
    ]
    with torch.no_grad():
        for batch, now in zip(batches, masks, strict=True):
            mask = now
            model(**batch) if isinstance(batch, dict) else model(batch)
    for handle in handles:
        handle.remove()
    values, sizes = (
        np.concatenate([np.concatenate([pair[i] for pair in part]) for part in parts], axis=1) for i in (0, 1)
    )
    return values, sizes


def ternary(values: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    z = np.divide(values - mean, std, out=np.zeros_like(values), where=std > 0)
    return np.where(z > 0.15, 1, np.where(z < -0.25, -1, 0))


def cnn():
    model = timm.create_model("resnet26", num_classes=3).eval()
    for module in model.modules():  # random statistics, so that every norm does something
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.2)
    points = []
    for name in [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]:
        stem, _, leaf = name.rpartition(".")
        prefix = f"{stem}." if stem else ""
        if "downsample" in name:
            points.append((f"{prefix}1", False))
        elif leaf == "conv3":  # its norm goes into the sum
            points.append((f"{prefix}bn3", False))
        else:
            points.append((f"{prefix}act{leaf[4:]}", False))
    inputs = [torch.randn(3, 64, 64) for _ in range(SAMPLES)]
    return model, inputs, lambda rows: torch.stack(rows), points, "auto"


def vit(*, every_layer=True):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=64, depth=DEPTH).eval()
    points = [("patch_embed.proj", False)]
    for i in range(DEPTH):
        points += [(f"blocks.{i}.{name}", True) for name in ("attn.qkv", "attn.proj", "mlp.act", "mlp.fc2")]
    if not every_layer:
        parts = [(f"blocks.{i}{part}", True) for i in range(DEPTH) for part in (".attn.proj", ".mlp.act", "")]
        points = [*parts, ("norm", True)]
    inputs = [torch.randn(3, 64, 64) for _ in range(SAMPLES)]
    return model, inputs, lambda rows: torch.stack(rows), points, ["conv", "linear"] if every_layer else "auto"


def bert(*, every_layer=True):
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=200, hidden_size=96, num_hidden_layers=DEPTH, num_attention_heads=4, intermediate_size=384
    )
    model = BertModel(config).eval()
    points = []
    for i in range(DEPTH):
        layer = f"encoder.layer.{i}"
        points += [(f"{layer}.attention.self.{name}", True) for name in ("query", "key", "value")]
        points += [
            (f"{layer}.{name}", True) for name in ("attention.output.dense", "intermediate.intermediate_act_fn")
        ]
        points += [(f"{layer}.output.dense", True)]
    points += [("pooler.activation", True)]
    if not every_layer:
        parts = (".attention.output.dense", ".intermediate.intermediate_act_fn", "")
        points = [(f"encoder.layer.{i}{part}", True) for i in range(DEPTH) for part in parts]

    def prepare(rows):
        length = max(len(row) for row in rows)
        ids = torch.stack([nn.functional.pad(row, (0, length - len(row))) for row in rows])
        mask = torch.stack([nn.functional.pad(torch.ones_like(row), (0, length - len(row))) for row in rows])
        return {"input_ids": ids, "attention_mask": mask}

    inputs = [torch.randint(1, 200, (5 + i % 17,)) for i in range(SAMPLES)]
    return model, inputs, prepare, points, "linear" if every_layer else "auto"


def vit_auto():
    return vit(every_layer=False)


def bert_auto():
    return bert(every_layer=False)


@pytest.mark.slow
@pytest.mark.parametrize("make", [cnn, vit, bert, vit_auto, bert_auto])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ternary_features_equal_a_float64_reference(make, dtype):
    torch.manual_seed(1)
    model, inputs, prepare, points, taps = make()
    model = model.to(dtype)
    inputs = [row.to(dtype) if row.is_floating_point() else row for row in inputs]
    batches = [prepare(inputs[i : i + BATCH]) for i in range(0, SAMPLES, BATCH)]
    masks = [batch["attention_mask"].numpy() if isinstance(batch, dict) else None for batch in batches]
    raw, sizes = reference(model, batches, points, masks)
    half = SAMPLES // 2
    mean, std = raw[:half].mean(axis=0), raw[:half].std(axis=0)
    expected = ternary(raw, mean, std)

    fne = FullNetworkEmbedding(Network(model, prepare), taps=taps, batch_size=BATCH, progress=False)
    train, test = fne.fit_transform(inputs[:half]), fne.transform(inputs[half:])
    got = np.concatenate([np.asarray(train), np.asarray(test)])

    assert got.shape == expected.shape
    assert {-1, 0, 1} == set(np.unique(got))
    differing = got != expected
    print(f"\n{make.__name__} {dtype}: {differing.sum()} of {got.size:,} entries differ")
    distance = np.minimum(*(np.abs(raw - (mean + threshold * std)) for threshold in (-0.25, 0.15)))
    near = UNITS * np.maximum(sizes, sizes[:half].max(axis=0))
    assert (distance <= near)[differing].all()
    assert (np.abs(got - expected) <= 1).all()
