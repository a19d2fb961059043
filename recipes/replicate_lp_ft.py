"""Fine-tuning distorts features: better where it was tuned, worse elsewhere (Kumar et al., ICLR 2022, table 1).

    python recipes/replicate_lp_ft.py [--seeds 20]

Digits in many conditions (turned, noisy, inverted, faint) teach a network, not for long. A task on other samples, the
digit modulo five, is learned from clean ones: by a linear probe (LP), by fine-tuning (FT), and by one after the other
(LP-FT). In distribution is the clean test set, out of distribution are the other conditions. Each method's rate is
chosen on clean validation rows.
"""

import copy

import numpy as np
import torch
from digits import Network, accuracy, fit, load, noise, split, turn
from replication import COLOURS, axes, keep, mean, options, said, sure
from torch import Tensor

from hf_tl import Policy


NAME = "replicate_lp_ft"
RATES = (1e-3, 3e-3, 1e-2)
CONDITIONS = {
    "clean": lambda x, seed: x,
    "turned left": lambda x, seed: turn(x, degrees=40),
    "turned right": lambda x, seed: turn(x, degrees=-40),
    "noisy": lambda x, seed: noise(x, seed=seed),
    "inverted": lambda x, seed: 1 - x,
    "faint": lambda x, seed: 0.3 * x,
}


def in_all_conditions(images: Tensor, labels: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
    """Every row in every condition."""
    views = [change(images, seed) for change in CONDITIONS.values()]
    return torch.cat(views), labels.repeat(len(views))


def methods(steps: int) -> dict[str, list[tuple[Policy, float]]]:
    """Policies and rates of each method to choose from; LP-FT probes at 1e-2 and fine-tunes at the rate chosen."""
    probe = f"{steps // 2} steps"
    return {
        "LP": [(Policy("reinit: head; tune: head"), rate) for rate in RATES],
        "FT": [(Policy("reinit: head"), rate) for rate in RATES],
        "LP-FT": [(Policy.lp_ft(probe=probe, rate=rate / 1e-2, text="reinit: head"), 1e-2) for rate in RATES],
    }


def one_seed(seed: int, *, source_steps: int, steps: int, rows: int) -> dict[str, dict[str, float]]:
    """Method -> condition -> accuracy on the test rows."""
    images, labels = load()
    order = torch.tensor(np.random.default_rng(seed).permutation(len(labels)))
    known, met = order[: len(order) // 2], order[len(order) // 2 :]
    source = in_all_conditions(images[known], labels[known], seed=seed)
    teacher = fit(Network(10, seed=seed), *source, steps=source_steps, batch=64, lr=5e-3, seed=seed)
    teacher.head = torch.nn.Linear(teacher.head.in_features, 5)
    images, labels = images[met], labels[met] % 5
    train, rest = split(labels, rows, seed=seed)
    chosen, test = split(labels[rest], rows, seed=seed)
    valid, test = rest[chosen], rest[test]
    found = {}
    for method, candidates in methods(steps).items():
        tuned = []
        for policy, rate in candidates:
            twin = copy.deepcopy(teacher)
            fit(twin, images[train], labels[train], steps=steps, lr=rate, seed=seed, policy=policy)
            tuned.append((accuracy(twin, images[valid], labels[valid]), twin))
        best = max(tuned, key=lambda pair: pair[0])[1]
        found[method] = {
            name: accuracy(best, change(images[test], seed + 1), labels[test]) for name, change in CONDITIONS.items()
        }
    return found


def main() -> None:
    found = options(__doc__, seeds=20)
    sizes = {"source_steps": 400, "steps": 200, "rows": 50}
    if found.quick:
        sizes = {"source_steps": 4, "steps": 4, "rows": 5}
    runs = [one_seed(seed, **sizes) for seed in range(found.seeds)]
    ours = {
        method: np.array([list(run[method].values()) for run in runs]) for method in runs[0]
    }  # (seeds, conditions)
    inside = {method: values[:, 0] for method, values in ours.items()}
    outside = {method: values[:, 1:].mean(1) for method, values in ours.items()}

    better = {1: "better", 0: "not clearly different", -1: "worse"}
    sentences = []
    for one, other, places in [
        ("FT", "LP", ((inside, "in", 1), (outside, "out of", -1))),
        ("LP-FT", "FT", ((inside, "in", 1), (outside, "out of", 1))),
    ]:
        for values, word, papers in places:
            gain = values[one] - values[other]
            agrees = ", as in the paper" if sure(gain) == papers else f"; the paper has it {better[papers]}"
            sentences.append(f"{one} is {better[sure(gain)]} than {other} {word} distribution: {said(gain)}{agrees}.")
    figure, drawn = axes(title="A linear probe, fine-tuning, and one after the other", x="", y="accuracy, %")
    names = ["clean (ID)", *list(CONDITIONS)[1:], "mean OOD"]
    for i, (method, values) in enumerate(ours.items()):
        columns = [*values.T, outside[method]]
        bars = [mean(column) for column in columns]
        drawn.bar(
            np.arange(len(names)) + 0.26 * (i - 1),
            [100 * bar["mean"] for bar in bars],
            0.24,
            yerr=[100 * bar["half_width"] for bar in bars],
            color=COLOURS[i],
            label=method,
            capsize=2,
        )
    drawn.set_xticks(range(len(names)), names, fontsize=8)
    drawn.legend(frameon=False, ncols=3, fontsize=8)
    results = {
        method: {"in distribution": mean(inside[method]), "out of distribution": mean(outside[method])}
        | {name: mean(column) for name, column in zip(CONDITIONS, values.T, strict=True)}
        for method, values in ours.items()
    }
    keep(NAME, found, figure=figure, results=results, sentences=sentences)


if __name__ == "__main__":
    main()
