"""What channels last and bfloat16 gain on this machine, and whether the short measurement chooses rightly.

python recipes/benchmarks/bench_acceleration.py [--repeats 7]

Steps of 16 samples, forward and backward or forward alone: float32 with channels first and the way that
`measure_acceleration` chose take turns. Weights are random, which changes no time.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext

import timm
import torch
from machine import keep, spread
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from hf_tl.acceleration import SAMPLES, measure_acceleration, set_layout
from hf_tl.table import format_table
from hf_tl.trace import Batch, first_float, forward


N = 16


def images(name: str, size: int) -> tuple[nn.Module, Batch]:
    return timm.create_model(name, num_classes=10), torch.randn(N, 3, size, size)


def sentences() -> tuple[nn.Module, Batch]:
    """BERT of MiniLM's size."""
    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    return BertForSequenceClassification(BertConfig(**sizes)), {"input_ids": torch.randint(1, 30_000, (N, 64))}


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Batch]]] = {
    "mobilenetv2_100, 160 pixels": lambda: images("mobilenetv2_100", 160),
    "resnet18, 160 pixels": lambda: images("resnet18", 160),
    "vit_tiny_patch16_224": lambda: images("vit_tiny_patch16_224", 224),
    "BERT of MiniLM's size, 64 tokens": sentences,
}


def seconds(model: nn.Module, batch: Batch, *, train: bool, bf16: bool) -> float:
    """Of a step as it is done: autocast to train, a network of that precision to read."""
    begun = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16) if train and bf16 else nullcontext():
        loss = first_float(forward(model, batch)).square().mean()
    if train:
        loss.backward()
    return time.perf_counter() - begun


def compare(model: nn.Module, batch: Batch, *, train: bool, repeats: int) -> tuple[str, float, list, list]:
    """The choice, what choosing took, and seconds of plain and chosen steps in turn."""
    few = batch[:SAMPLES] if isinstance(batch, torch.Tensor) else {k: v[:SAMPLES] for k, v in batch.items()}
    begun = time.perf_counter()
    chosen = measure_acceleration(model, few, train=train)
    took, other, inputs = time.perf_counter() - begun, copy.deepcopy(model), batch
    if chosen.bf16 and not train:
        other.to(torch.bfloat16)
        inputs = batch.to(torch.bfloat16) if isinstance(batch, torch.Tensor) else batch
    set_layout(other, channels_last=chosen.channels_last)
    plain, faster = [], []
    with torch.set_grad_enabled(train):
        for turn in range(repeats + 1):
            times = (
                seconds(model.train(train), batch, train=train, bf16=False),
                seconds(other.train(train), inputs, train=train, bf16=chosen.bf16),
            )
            if turn:  # the first one warms up
                plain.append(times[0])
                faster.append(times[1])
    return str(chosen).partition(":")[0], took, plain, faster


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    repeats, lines, results = parser.parse_args().repeats, [], {}
    torch.manual_seed(0)
    for name, make in NETWORKS.items():
        for train in (True, False):
            way, took, plain, faster = compare(*make(), train=train, repeats=repeats)
            ratios = [b / a for a, b in zip(plain, faster, strict=True)]
            what = f"{name}, {'training' if train else 'reading'}"
            span = f"{min(ratios):.2f}-{statistics.median(ratios):.2f}-{max(ratios):.2f}"
            lines.append([what, way, f"{took:.1f}", span])
            results[what] = {"chosen": way, "choosing_seconds": round(took, 2), "ratio": spread(ratios)}
    print(format_table(["network", "chosen", "choosing, s", "time beside float32, channels first"], lines))
    keep("acceleration", {"threads": torch.get_num_threads(), **results})


if __name__ == "__main__":
    main()
