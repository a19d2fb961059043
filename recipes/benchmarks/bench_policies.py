"""What freezing saves, and what the prefix cache saves beyond it: seconds of a training step, in turns.

python recipes/benchmarks/bench_policies.py --part vit          # the two parts go into one file of results
python recipes/benchmarks/bench_policies.py --part mobilenet
python recipes/benchmarks/bench_policies.py --part vit --comparison  # is a frozen weight another one?
"""

import argparse
import json
import statistics
import time
import warnings
from itertools import pairwise

import timm
import torch
from machine import RESULTS, keep, spread

from hf_tl import Policy, PrefixCache, list_layers
from hf_tl.policies.cut import find_cuts
from hf_tl.table import format_table


NETWORKS = {"vit": "vit_small_patch16_224", "mobilenet": "mobilenetv2_100"}
MODES = {  # policy, whether its prefix is cached, beside which mode it is timed, and its largest wanted share of that
    "all layers": ("tune: all", False, None),
    "bottom half frozen": ("freeze: ..50%", False, ("all layers", 0.55)),
    "the same, stem trains": ("freeze: 0..50%", False, ("all layers", None)),
    "half, cached": ("freeze: ..50%", True, ("bottom half frozen", 0.75)),
    "three quarters frozen": ("freeze: ..75%", False, None),
    "three quarters, cached": ("freeze: ..75%", True, ("three quarters frozen", 0.55)),
    "head alone": ("tune: head", False, None),
    "head alone, cached": ("tune: head", True, ("head alone", 0.10)),
}
PARTS = ("forward", "backward", "update")


class Run:
    """A network in training under one policy."""

    def __init__(self, name: str, text: str, *, cached: bool, rows: int):
        torch.manual_seed(0)
        self.model = timm.create_model(name, num_classes=10).train()
        applied = Policy(text).apply(self.model)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4)
        self.cache = PrefixCache() if cached else None
        if cached:
            applied.use_cache(self.cache, n_samples=rows)

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[dict[str, float], float]:
        """Seconds of each part, and the loss."""
        torch.manual_seed(1)  # dropout of what trains
        marks = [time.perf_counter()]
        self.model.train()
        loss = torch.nn.functional.cross_entropy(self.model(images), labels)
        value = loss.item()
        marks.append(time.perf_counter())
        loss.backward()
        marks.append(time.perf_counter())
        self.optimizer.step()
        self.optimizer.zero_grad()
        marks.append(time.perf_counter())
        return dict(zip(PARTS, (b - a for a, b in pairwise(marks)), strict=True)), value


def measure(name: str, *, repeats: int, rows: int) -> dict:
    """Every mode on the same batch in turns.

    The two steps before do not count: in the first, a cache looks whether it may work, and fills.
    """
    torch.manual_seed(2)
    images, labels = torch.randn(rows, 3, 224, 224), torch.randint(0, 10, (rows,))
    runs = {mode: Run(name, text, cached=cached, rows=rows) for mode, (text, cached, _) in MODES.items()}
    seconds, parts, losses = ({mode: [] for mode in MODES} for _ in range(3))
    first = {}
    for turn in range(repeats + 2):
        for mode, run in runs.items():
            spent, loss = run.step(images, labels)
            losses[mode].append(loss)
            if turn > 1:
                seconds[mode].append(sum(spent.values()))
                parts[mode].append(spent)
            elif turn == 0:
                first[mode] = round(sum(spent.values()), 3)
    results = {}
    for mode, (text, cached, target) in MODES.items():
        result = {"policy": text, "seconds": spread(seconds[mode])}
        result["parts"] = {part: round(statistics.median(turn[part] for turn in parts[mode]), 4) for part in PARTS}
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
            result["seconds of the first step"] = first[mode]
        results[mode] = result
    return results


def compare_weights(name: str) -> None:
    """Prints the processor's time of one comparison of the frozen half."""
    model = timm.create_model(name, num_classes=10).eval()
    layers = list_layers(model)
    cut = find_cuts(Policy("freeze: ..50%").plans(layers)[0])[0]
    count = sum(parameter.numel() for module in cut.modules for parameter in module.parameters())
    seconds = []
    for _ in range(7):
        start = time.process_time()
        cut.weights()
        seconds.append(time.process_time() - start)
    print(f"{count:,} frozen weights of {name}: {1e3 * statistics.median(seconds):.1f} ms of one core a step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=list(NETWORKS), required=True)
    parser.add_argument("--comparison", action="store_true", help="only the comparison of the frozen weights")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=16, help="of a batch (default %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    if options.comparison:
        compare_weights(NETWORKS[options.part])
        return
    found = measure(NETWORKS[options.part], repeats=options.repeats, rows=options.rows)
    lines = []
    for mode, result in found.items():
        ratio = result.get("ratio", {})
        cells = [*result["parts"].values(), ratio.get("to", ""), ratio.get("median", ""), ratio.get("wanted") or ""]
        lines.append([mode, result["seconds"]["median"], *cells, str(result.get("largest difference of losses", ""))])
    print(format_table(["mode", "s per step", *PARTS, "beside", "ratio", "wanted <=", "losses differ by"], lines))
    path = RESULTS / "policies.json"
    before = json.loads(path.read_text())["networks"] if path.exists() else {}
    settings = {"threads": options.threads, "rows": options.rows}
    keep("policies", {"networks": before | {NETWORKS[options.part]: settings | {"modes": found}}})


if __name__ == "__main__":
    main()
