"""What list_layers costs beside one forward pass, in turns, on networks of full size with random weights.

python recipes/benchmarks/bench_layers.py [--repeats 5] [--threads 2]
"""

import argparse
import time

import timm
import torch
from machine import keep, spread
from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification

from hf_tl import list_layers
from hf_tl.example import dummy_batch
from hf_tl.table import format_table


NETWORKS = {
    "BERT-base (transformers)": lambda: BertForSequenceClassification(BertConfig()),
    "ViT-B/16 (transformers)": lambda: ViTForImageClassification(ViTConfig()),
    "ViT-B/16 (timm)": lambda: timm.create_model("vit_base_patch16_224"),
    "ResNet-50 (timm)": lambda: timm.create_model("resnet50"),
    "DenseNet-121 (timm)": lambda: timm.create_model("densenet121"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results, lines = {}, []
    for name, build in NETWORKS.items():
        model = build().eval()
        example = dummy_batch(model, n=1)
        passes = []
        model.register_forward_pre_hook(lambda *_, passes=passes: passes.append(1))
        seconds = {"list_layers": [], "forward": []}
        for _ in range(options.repeats):
            before = len(passes)
            start = time.perf_counter()
            layers = list_layers(model)
            seconds["list_layers"].append(time.perf_counter() - start)
            n_passes = len(passes) - before
            start = time.perf_counter()
            with torch.no_grad():
                model(**example) if isinstance(example, dict) else model(example)
            seconds["forward"].append(time.perf_counter() - start)
        cost = {what: spread(values) for what, values in seconds.items()}
        results[name] = {"layers": len(layers), "passes": n_passes, "seconds": cost}
        lines.append([name, len(layers), n_passes, cost["list_layers"]["median"], cost["list_layers"]["max"]])
        lines[-1].append(cost["forward"]["median"])
    print(format_table(["network", "layers", "passes", "list_layers s", "slowest s", "forward s"], lines))
    keep("layers", {"threads": options.threads, "results": results})


if __name__ == "__main__":
    main()
