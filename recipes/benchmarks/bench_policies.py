"""What freezing saves, and what the prefix cache saves beyond it: seconds of a training step, in turns.

python recipes/benchmarks/bench_policies.py [--repeats 7] [--threads 2] [--rows 16] [--only ViT-S/16]
"""

import argparse
import time
import warnings

import timm
import torch
from machine import keep, spread

from hf_tl import Policy, PrefixCache
from hf_tl.table import format_table


NETWORKS = {"ViT-S/16": "vit_small_patch16_224", "MobileNetV2": "mobilenetv2_100"}
MODES = {  # policy, whether its prefix is cached, and what its time should be at most, beside which mode
    "all layers": ("tune: all", False, None),
    "bottom half frozen": ("freeze: ..50%", False, ("all layers", 0.55)),
    "the same, stem trains": ("freeze: 0..50%", False, None),
    "half, cached": ("freeze: ..50%", True, ("bottom half frozen", 0.75)),
    "three quarters frozen": ("freeze: ..75%", False, None),
    "three quarters, cached": ("freeze: ..75%", True, ("three quarters frozen", 0.55)),
    "head alone": ("tune: head", False, None),
    "head alone, cached": ("tune: head", True, ("head alone", 0.10)),
}


class Run:
    """A network in training under one policy."""

    def __init__(self, name: str, text: str, *, cached: bool, rows: int):
        torch.manual_seed(0)
        self.model = timm.create_model(name, num_classes=10).train()
        applied = Policy(text).apply(self.model)
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-4)
        self.cache = PrefixCache() if cached else None
        if cached:
            applied.use_cache(self.cache, rows=rows)

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
        """Seconds and loss."""
        torch.manual_seed(1)  # dropout of what trains
        start = time.perf_counter()
        self.model.train()
        loss = torch.nn.functional.cross_entropy(self.model(images), labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        value = loss.item()
        return time.perf_counter() - start, value


def measure(name: str, *, repeats: int, rows: int) -> dict:
    """Every mode on the same batch in turns; the two steps before, in which a cache is filled, do not count."""
    torch.manual_seed(2)
    images, labels = torch.randn(rows, 3, 224, 224), torch.randint(0, 10, (rows,))
    runs = {mode: Run(name, text, cached=cached, rows=rows) for mode, (text, cached, _) in MODES.items()}
    seconds, losses = {mode: [] for mode in MODES}, {mode: [] for mode in MODES}
    for turn in range(repeats + 2):
        for mode, run in runs.items():
            spent, loss = run.step(images, labels)
            losses[mode].append(loss)
            if turn > 1:
                seconds[mode].append(spent)
    results = {}
    for mode, (text, cached, target) in MODES.items():
        result = {"policy": text, "seconds": spread(seconds[mode])}
        if target is not None:
            beside, most = target
            ratios = [mine / other for mine, other in zip(seconds[mode], seconds[beside], strict=True)]
            result["ratio"] = {"to": beside, "wanted": most, **spread(ratios)}
        if cached:
            twin = next(other for other, (same, plain, _) in MODES.items() if same == text and not plain)
            result["largest difference of losses"] = max(
                abs(a - b) for a, b in zip(losses[mode], losses[twin], strict=True)
            )
            result["cut"] = runs[mode].cache.cut.layer.name
            result["hits"] = runs[mode].cache.hits
        results[mode] = result
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--only", choices=list(NETWORKS), default=None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    results = {}
    for name in [options.only] if options.only else NETWORKS:
        results[name] = measure(NETWORKS[name], repeats=options.repeats, rows=options.rows)
        lines = []
        for mode, result in results[name].items():
            ratio = result.get("ratio", {})
            lines.append(
                [mode, result["seconds"]["median"], str(ratio.get("median", "")), str(ratio.get("wanted", ""))]
            )
            lines[-1].append(str(result.get("largest difference of losses", "")))
        print(name)
        print(format_table(["mode", "s per step", "ratio", "wanted <=", "losses differ by"], lines))
    suffix = f"_{options.only.split('/')[0].lower().replace('-', '')}" if options.only else ""
    keep(f"policies{suffix}", {"threads": options.threads, "rows": options.rows, "results": results})


if __name__ == "__main__":
    main()
