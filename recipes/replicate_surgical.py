"""Which layer should be tuned depends on the shift (surgical fine-tuning; Lee et al., ICLR 2023, figure 2).

    python recipes/replicate_surgical.py [--seeds 5]

A network that knows the digits meets few samples of a task that differs in its input (noise), in its features (other
digits within the same five groups) or in its output (other names for the classes). One block at a time is tuned, or
the head, or everything. The rate of each is chosen on validation rows.

The noise is what the paper calls an input-level shift. In trials of two seeds, no single layer stood out where the
digits were veiled in fog, blocks in the middle did where they were shifted by two pixels, and the last block where
they were turned into negatives.
"""

import copy

import numpy as np
from digits import N_BLOCKS, Network, accuracy, fit, load, noise, split
from replication import COLOURS, axes, keep, mean, options, said, sure
from torch import Tensor

from hf_tl import Policy


NAME = "replicate_surgical"
RATES = (1e-3, 5e-3, 2e-2)
TUNED = [*(str(block) for block in range(N_BLOCKS)), "head", "all"]
PARTS = {"input": "the first blocks", "feature": "the middle blocks", "output": "the last layer"}


def tasks(seed: int) -> dict[str, tuple[int, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]]:
    """Shift -> number of classes, what the network knows, what it meets: images and labels of each."""
    images, labels = load()
    half = np.random.default_rng(seed).permutation(len(labels))
    known, met = half[: len(half) // 2], half[len(half) // 2 :]
    even = labels % 2 == 0  # (0, 1), (2, 3), ... are a group each; its even digit is known, the odd one is met
    return {
        "input": (10, (images[known], labels[known]), (noise(images, seed=seed)[met], labels[met])),
        "feature": (5, (images[even], labels[even] // 2), (images[~even], labels[~even] // 2)),
        "output": (10, (images[known], labels[known]), (images[met], 9 - labels[met])),
    }


def one_seed(seed: int, *, source_steps: int, steps: int, rows: int) -> dict[str, list[float]]:
    """Shift -> accuracy on the test rows for everything in TUNED."""
    found, teachers = {}, {}
    for shift, (n_classes, known, (images, labels)) in tasks(seed).items():
        if n_classes not in teachers:
            network = Network(n_classes, seed=seed)
            teachers[n_classes] = fit(network, *known, steps=source_steps, batch=64, lr=5e-3, seed=seed)
        teacher = teachers[n_classes]
        train, rest = split(labels, rows, seed=seed)
        valid, test = (rest[part] for part in split(labels[rest], rows, seed=seed))
        found[shift] = []
        for layer in TUNED:
            judged = []
            for rate in RATES:
                twin = copy.deepcopy(teacher)
                fit(twin, images[train], labels[train], steps=steps, lr=rate, seed=seed, policy=Policy.surgical(layer))
                judged.append([accuracy(twin, images[part], labels[part]) for part in (valid, test)])
            found[shift].append(max(judged)[1])
    return found


def main() -> None:
    chosen = options(__doc__, seeds=5)
    sizes = {"source_steps": 1200, "steps": 150, "rows": 10}
    if chosen.quick:
        sizes = {"source_steps": 4, "steps": 3, "rows": 5}
    runs = [one_seed(seed, **sizes) for seed in range(chosen.seeds)]
    found = {shift: np.array([run[shift] for run in runs]) for shift in PARTS}  # (seeds, TUNED) each

    third = N_BLOCKS // 3
    columns = {"input": slice(0, third), "feature": slice(third, N_BLOCKS), "output": slice(N_BLOCKS, N_BLOCKS + 1)}
    sentences = []
    for shift, values in found.items():
        single = values[:, :-1].mean(0)
        best = int(single.argmax())
        agrees = best in range(*columns[shift].indices(N_BLOCKS + 1))
        gain = values[:, best] - values[:, -1]
        beats = {1: "beats", 0: "equals", -1: "falls short of"}[sure(gain)]
        name = "the head" if TUNED[best] == "head" else f"block {TUNED[best]} of 0 to {N_BLOCKS - 1}"
        verdict = f"as in the paper, {PARTS[shift]}" if agrees else f"the paper has {PARTS[shift]}"
        sentences.append(
            f"{shift.capitalize()} shift: {name} is the best to tune alone ({verdict}); "
            f"it {beats} tuning everything: {said(gain)}."
        )
    figure, drawn = axes(title="Which layer to tune, by what has shifted", x="tuned", y="accuracy, %")
    for i, (shift, values) in enumerate(found.items()):
        bars = [mean(column) for column in values.T]
        drawn.errorbar(
            np.arange(len(TUNED)) + 0.06 * (i - 1),
            [100 * bar["mean"] for bar in bars],
            [100 * bar["half_width"] for bar in bars],
            color=COLOURS[i],
            label=f"{shift} shift",
            marker="o",
            capsize=2,
        )
    drawn.set_xticks(range(len(TUNED)), [f"block {name}" if name.isdigit() else name for name in TUNED], fontsize=8)
    drawn.legend(frameon=False, fontsize=8)
    results = {
        shift: {layer: mean(column) for layer, column in zip(TUNED, values.T, strict=True)}
        for shift, values in found.items()
    }
    keep(NAME, chosen, figure=figure, results=results, sentences=sentences)


if __name__ == "__main__":
    main()
