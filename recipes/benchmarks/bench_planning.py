"""What a fitted embedding costs beside the forward pass: planning of a transform, and reading early layers alone.

python recipes/benchmarks/bench_planning.py [--repeats 5]

planning  `transform` of 8 images, and of it everything before the first forward pass; at most 2 % are wanted
early     processor time of resnet50 read with taps="..25%" and with "auto", which take turns; at most .45 is wanted
"""

import argparse
import statistics
import time
from unittest.mock import patch

import timm
import torch
from machine import keep, spread

from hf_tl import FullNetworkEmbedding, Network
from hf_tl.embedding.passes import Pass
from hf_tl.table import format_table


def network(name: str, **options: object) -> Network:
    torch.manual_seed(0)
    return Network(timm.create_model(name, num_classes=10, **options).eval(), torch.stack, name=name)


def planning(name: str, repeats: int) -> tuple[list[float], list[float]]:
    """Seconds of each `transform`, and of what comes before its pass begins."""
    images = list(torch.randn(8, 3, 224, 224))
    fne = FullNetworkEmbedding(network(name), progress=False).fit(images)
    whole, before = [], []
    into_memory = Pass.into_memory

    def watched(planned: Pass, *args: object, **options: object) -> object:
        before.append(time.perf_counter() - start)
        return into_memory(planned, *args, **options)

    with patch.object(Pass, "into_memory", watched):
        for _ in range(repeats):
            start = time.perf_counter()
            fne.transform(images)
            whole.append(time.perf_counter() - start)
    return whole, before


def early(repeats: int) -> dict[str, list[float]]:
    """Processor seconds of reading 16 images of 160 pixels."""
    images, net = list(torch.randn(16, 3, 160, 160)), network("resnet50")
    readers = {
        taps: FullNetworkEmbedding(net, taps=taps, recipe="raw", progress=False).fit(images)
        for taps in ("auto", "..25%")
    }
    found: dict[str, list[float]] = {taps: [] for taps in readers}
    for _ in range(repeats):
        for taps, reader in readers.items():
            start = time.process_time()
            reader.activations(images)
            found[taps].append(time.process_time() - start)
    return found


def medians(*measured: list[float]) -> list[str]:
    return ["{min:.3f}-{median:.3f}-{max:.3f}".format(**spread(seconds)) for seconds in measured]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    lines, results = [], {}
    for name in ("resnet18", "vit_tiny_patch16_224"):
        whole, before = planning(name, repeats)
        share = statistics.median(part / all_ for part, all_ in zip(before, whole, strict=True))
        lines.append([f"{name}, planning of 8 images", *medians(before, whole), f"{share:.4f}", "0.02"])
        results[name] = {"planning_seconds": before, "transform_seconds": whole, "share": share}
    seconds = early(repeats)
    ratio = statistics.median(part / all_ for part, all_ in zip(seconds["..25%"], seconds["auto"], strict=True))
    lines.append(['resnet50, "..25%" of "auto"', *medians(seconds["..25%"], seconds["auto"]), f"{ratio:.3f}", "0.45"])
    results["early"] = {"seconds": seconds, "ratio": ratio}
    print(format_table(["what", "part, s: min-median-max", "whole, s", "ratio", "at most"], lines))
    keep("planning", results)


if __name__ == "__main__":
    main()
