"""What reading every layer costs: over the bare forward pass, and against the `fne` package.

python recipes/benchmarks/bench_extraction.py [--parts forward,outside,whole] [--repeats 7] [--images 1000,5000]
                                              [--device cpu] [--fne DIR]

forward   one batch through the network, and the same with all taps read, pooled and written to a store; the two
          take turns, in one precision and layout
outside   everything but the forward pass, from batches to discretised features: 12,416 features from layers that
          return what they returned before; what is left of that forward pass takes its turn too, and is shown
whole     photos' worth of noise through resnet50 to discretised features, channels_last and bfloat16 against `fne`

DIR is a folder with the package (pip install --no-deps --target DIR fne): it is a yardstick, not a dependency.
"""

import argparse
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np
import timm
import torch
from machine import keep, spread
from torch import nn

from hf_tl import FullNetworkEmbedding, Network
from hf_tl.embedding.anatomy import find_taps
from hf_tl.embedding.reader import TapReader
from hf_tl.embedding.store import Store
from hf_tl.table import format_table


SETTINGS = [  # network, batch, dtype, channels last, what the ratio should be at most
    ("resnet50", 16, torch.float32, False, 1.03),
    ("resnet50", 16, torch.float32, True, 1.05),
    ("resnet50", 16, torch.bfloat16, True, 1.10),
    ("vgg16", 8, torch.float32, False, 1.03),
    ("vit_small_patch16_224", 16, torch.float32, False, 1.10),
]
VGG = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512, 4096, 4096)  # 12,416 features


class Free(nn.Linear):
    """A layer that cost something once: it returns rows that it made before."""

    def __init__(self, width: int):
        super().__init__(1, width)
        self.rows = torch.randn(Loader.batch_size, width)

    def forward(self, x):
        return self.rows[: len(x)]


class FreeNetwork(nn.Module):
    """As many features of as many layers as VGG16 without its classifier, at the cost of calling them."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Free(width) for width in VGG)

    def forward(self, x):
        for layer in self.layers:
            layer(x)
        return x * 1


class NoClassifier:
    def fit(self, features, labels):
        self.seen = features.shape


def take_turns(functions: dict[str, Callable], *, repeats: int, n_bytes: int = 0) -> dict[str, list[float]]:
    """Seconds of each function, measured A B A B after one unmeasured turn.

    A virtual machine hands memory back to its host once it is free for seconds, and fetching it takes longer than
    much of what is measured here: before each turn `n_bytes` of it are touched and freed, outside the clock.
    """
    seconds = {name: [] for name in functions}
    for i in range(repeats + 1):
        for name, function in functions.items():
            np.ones(n_bytes, np.uint8)
            start = time.perf_counter()
            function()
            if i:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], over: str, under: str) -> dict:
    pairs = [a / b for a, b in zip(seconds[over], seconds[under], strict=True)]
    medians = statistics.median(seconds[over]) / statistics.median(seconds[under])
    best = min(seconds[over]) / min(seconds[under])
    return {"of_medians": round(medians, 3), "of_minima": round(best, 3), "of_pairs": spread(pairs)}


def forward_part(repeats: int, device: str) -> list[dict]:
    results = []
    for name, batch, dtype, channels_last, limit in SETTINGS:
        torch.manual_seed(0)
        model = timm.create_model(name).eval().to(device)
        images = torch.randn(batch, 3, 224, 224, device=device)
        taps, _ = find_taps(Network(model, torch.stack), images[:2], activation="after", selection="auto")
        layout = torch.channels_last if channels_last else torch.contiguous_format
        model, images = (part.to(dtype).to(memory_format=layout) for part in (model, images))
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            n_features = sum(tap.n_features for tap in taps)
            layer = {"name": "all", "start": 0, "stop": n_features, "depth": 1.0, "kind": "other"}
            about = {"n_rows": batch, "layers": [layer], "activation": "after", "fingerprints": {}}
            store = Store.create(folder, about)
            wait = torch.cuda.synchronize if device != "cpu" else lambda: None

            read_model = copy.deepcopy(model)
            space = torch.empty(batch, n_features) if device == "cpu" else None

            def bare(model=model, images=images, wait=wait):
                model(images)
                wait()

            with TapReader(read_model, taps) as read:  # hooks stand for a whole pass, as in one over a data set

                def read_all(read=read, images=images, wait=wait, store=store, batch=batch, space=space):
                    store.write_rows(np.arange(batch), read(images, out=space).float().cpu().numpy())
                    wait()

                seconds = take_turns({"forward": bare, "extraction": read_all}, repeats=repeats)
        results.append(
            {
                "network": name,
                "batch": batch,
                "dtype": str(dtype).removeprefix("torch."),
                "channels_last": channels_last,
                "taps": len(taps),
                "features": n_features,
                **{f"{part}_seconds": spread(values) for part, values in seconds.items()},
                "ratio": ratio(seconds, "extraction", "forward"),
                "limit": limit,
            }
        )
    return results


def fne_fit(model: nn.Module, names: list[str], batches: list, fne: object) -> Callable:
    def run():
        fne.FullNetworkEmbedding(copy.deepcopy(model), names, NoClassifier()).fit(Loader(batches))

    return run


class Loader(list):
    batch_size = 16


def outside_part(repeats: int, fne: object, sizes: list[int]) -> list[dict]:
    results = []
    torch.manual_seed(0)
    model = FreeNetwork().eval()
    names = [f"layers.{i}" for i in range(len(VGG))]
    for n in sizes:
        rows = torch.randn(n, 1)
        batches = [(part, torch.zeros(len(part))) for part in rows.split(16)]
        embedding = FullNetworkEmbedding(Network(model, torch.stack), taps="linear", batch_size=16, progress=False)
        functions = {
            "forward": lambda batches=batches: [model(part) for part, _ in batches],
            "hf_tl": lambda embedding=embedding, inputs=list(rows): embedding.fit_transform(inputs),
        }
        if fne is not None:
            functions["fne"] = fne_fit(model, names, batches, fne)
        with torch.no_grad():
            turns = repeats if n < 5000 else max(3, repeats // 2)
            seconds = take_turns(functions, repeats=turns, n_bytes=n * sum(VGG) * 24)  # more than any of them needs
        made = embedding.fit_transform(list(rows[:4]))
        assert made.shape == (4, 12_416)
        result = {"images": n, **{f"{part}_seconds": spread(values) for part, values in seconds.items()}}
        if fne is not None:
            result["ratio"] = ratio(seconds, "fne", "hf_tl")
            without = {  # each turn less the bare forward pass beside it
                name: [a - b for a, b in zip(seconds[name], seconds["forward"], strict=True)]
                for name in ("fne", "hf_tl")
            }
            result["ratio_without_forward"] = ratio(without, "fne", "hf_tl")
        results.append({**result, "limit": 10 if n < 5000 else 50})
    return results


def whole_part(repeats: int, fne: object, n: int = 64) -> dict:
    torch.manual_seed(0)
    model = timm.create_model("resnet50").eval()
    images = torch.randn(n, 3, 224, 224)
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    batches = [(part, torch.zeros(len(part))) for part in images.split(16)]
    network = Network(model, torch.stack)
    fast = FullNetworkEmbedding(network, batch_size=16, progress=False, dtype="bfloat16", channels_last=True)
    laid_out = FullNetworkEmbedding(network, batch_size=16, progress=False, channels_last=True)
    functions = {
        "bfloat16 and channels_last": lambda: fast.fit_transform(list(images)),
        "channels_last": lambda: laid_out.fit_transform(list(images)),
    }
    if fne is not None:
        functions["fne"] = fne_fit(model, names, batches, fne)
    seconds = take_turns(functions, repeats=repeats)
    result = {"images": n, "seconds": {name: spread(values) for name, values in seconds.items()}, "limit": 2}
    if fne is not None:
        result["ratio"] = {name: ratio(seconds, "fne", name) for name in functions if name != "fne"}
    return result


def show(results: dict) -> None:
    rows = [
        [
            found["network"],
            found["dtype"],
            "last" if found["channels_last"] else "first",
            f"{found['features']:,}",
            f"{found['forward_seconds']['median']:.3f} s",
            f"{found['extraction_seconds']['median']:.3f} s",
            found["ratio"]["of_medians"],
            found["ratio"]["of_minima"],
            f"{found['ratio']['of_pairs']['min']:.2f}-{found['ratio']['of_pairs']['max']:.2f}",
            f"{found['limit']:.2f}",
        ]
        for found in results.get("forward", [])
    ]
    header = ["network", "dtype", "channels", "features", "forward", "extraction", "of medians", "of minima"]
    if rows:
        print(format_table([*header, "of pairs", "at most"], rows))
    for found in results.get("outside", []):
        print(f"outside the forward, {found['images']:,} images: {found}")
    if "whole" in results:
        print(f"resnet50, whole: {results['whole']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="forward,outside,whole")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--images", default="1000,5000", help="of the part `outside`")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--fne", help="folder with the fne package")
    options = parser.parse_args()
    fne = None
    if options.fne is not None:
        sys.path.append(options.fne)
        from fne import fne_torch as fne
    if options.device == "cpu":
        import os

        torch.set_num_threads(len(os.sched_getaffinity(0)))
    parts = {
        "forward": lambda: forward_part(options.repeats, options.device),
        "outside": lambda: outside_part(options.repeats, fne, [int(n) for n in options.images.split(",")]),
        "whole": lambda: whole_part(max(3, options.repeats // 2), fne),
    }
    results = {"threads": torch.get_num_threads(), "device": options.device}
    for name in options.parts.split(","):
        results[name] = parts[name]()
        show({name: results[name]})
    keep(f"extraction_{options.parts.replace(',', '_')}" if "," not in options.parts else "extraction", results)


if __name__ == "__main__":
    main()
