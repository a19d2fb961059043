"""Transferability falls with depth, and the middle is fragile (Yosinski et al., NeurIPS 2014, figure 2).

    python recipes/replicate_transferability.py [--seeds 16]

Ten digits are dealt into task A and task B. The first n layers of a network trained on A, or on B itself, are kept;
the others start from fresh values and learn B. Kept layers are frozen (AnB, BnB) or tuned (AnB+, BnB+). The network is
narrow, without normalisation, and learns by plain SGD: hard to train. In networks that are wide enough, or trained by
Adam, the middle is not fragile. At n = 0 all layers are fresh: what another draw of values does by itself.
"""

import copy

import numpy as np
from digits import accuracy, fit, load, split
from replication import COLOURS, axes, keep, mean, options, said, sure
from torch import Tensor, isin, manual_seed, nn, tensor

from hf_tl import Policy


NAME = "replicate_transferability"
N_BLOCKS, WIDTH = 8, 8
CURVES = {"BnB": "own layers, frozen", "BnB+": "own layers, tuned", "AnB": "the other task's layers, frozen"}
CURVES |= {"AnB+": "the other task's layers, tuned"}


class Layer(nn.Linear):
    """Fully connected, with initial values for a ReLU behind it (He et al. 2015)."""

    def reset_parameters(self) -> None:
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        nn.init.zeros_(self.bias)


class Narrow(nn.Module):
    """Eight layers of eight units with ReLUs, and a linear head: (batch, 1, 8, 8) -> (batch, n_classes)."""

    def __init__(self, n_classes: int, *, seed: int):
        super().__init__()
        manual_seed(seed)
        self.blocks = nn.ModuleList(Layer(WIDTH if i else 64, WIDTH) for i in range(N_BLOCKS))
        self.head = Layer(WIDTH, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = (x.flatten(1) - 0.3) / 0.38  # mean 0, deviation 1
        for block in self.blocks:
            x = block(x).relu()
        return self.head(x)


def policy(kept: int, *, tuned: bool, seed: int) -> Policy:
    """The first `kept` blocks as they are, the rest and the head anew."""
    fresh = f"reinit: {kept}.., head" if kept < N_BLOCKS else "reinit: head"
    return Policy(f"freeze: 0..{kept}; {fresh}" if kept and not tuned else fresh, seed=seed)


def one_seed(seed: int, *, rows: int, steps: int) -> dict[str, list[float]]:
    """Accuracy on B beside that of the network that learned B as usual: curve -> one number for each n."""
    images, labels = load()
    deal = np.random.default_rng(seed).permutation(10)
    tasks = {}
    for name, classes in (("A", deal[:5]), ("B", deal[5:])):
        inside = isin(labels, tensor(classes))
        of_task = tensor([list(classes).index(label) for label in labels[inside]])
        train, test = split(of_task, 120 if name == "A" else rows, seed=seed)
        tasks[name] = [(images[inside][part], of_task[part]) for part in (train, test)]
    (train, test), learn = tasks["B"], {"steps": steps, "lr": 1e-2, "momentum": 0.9}
    nets = {
        name: fit(Narrow(5, seed=10 * seed + i), *tasks[name][0], seed=seed, **learn) for i, name in enumerate("AB")
    }
    usual = accuracy(nets["B"], *test)
    found = {}
    for curve in CURVES:
        found[curve] = []
        for kept in range(N_BLOCKS + 1):
            twin = copy.deepcopy(nets[curve[0]])
            how = policy(kept, tuned=curve.endswith("+"), seed=seed + 1)
            found[curve].append(accuracy(fit(twin, *train, seed=seed, policy=how, **learn), *test) - usual)
    return found


def main() -> None:
    chosen = options(__doc__, seeds=16)
    sizes = {"rows": 5, "steps": 4} if chosen.quick else {"rows": 100, "steps": 3000}
    runs = [one_seed(seed, **sizes) for seed in range(chosen.seeds)]
    losses = {curve: np.array([run[curve] for run in runs]) for curve in CURVES}  # (seeds, layers) each

    depths = np.arange(N_BLOCKS + 1)
    slopes = [float(np.polyfit(depths[1:], row[1:], 1)[0]) for row in losses["AnB"]]
    dips, tuned = (losses[c][:, 2:-1].mean(1) - losses[c][:, [1, -1]].mean(1) for c in ("BnB", "BnB+"))
    gaps = losses["AnB"][:, -1] - losses["BnB"][:, -1]
    falls = {-1: "falls with depth, as in the paper", 0: "does not clearly change with depth", 1: "grows with depth"}
    fragile = {
        -1: "is fragile, as in the paper",
        0: "is not clearly worse than the ends",
        1: "is better than the ends",
    }
    tuning = {-1: "still is, unlike in the paper", 0: "is not clearly, as in the paper", 1: "is better"}
    sentences = [
        f"Transferability {falls[sure(slopes)]}: {said(slopes)} for each further frozen layer of the other task.",
        f"With all {N_BLOCKS} layers frozen, those of the other task cost {said(gaps)} against the task's own.",
        f"The middle of a frozen network {fragile[sure(dips)]}: {said(dips)} for its own layers there.",
        f"With these layers tuned it {tuning[sure(tuned)]}: {said(tuned)}.",
        f"Another draw of values for all layers, nothing kept: {said(losses['BnB'][:, 0])}.",
    ]
    figure, drawn = axes(
        title="What n frozen or tuned layers are worth to another task", x="n", y="points of accuracy"
    )
    drawn.axhline(0, color="#666666", linewidth=1)
    for colour, (curve, label) in zip(COLOURS, CURVES.items(), strict=False):
        found = [mean(losses[curve][:, i]) for i in depths]
        drawn.errorbar(
            depths,
            [100 * one["mean"] for one in found],
            [100 * one["half_width"] for one in found],
            color=colour,
            label=f"{curve}: {label}",
            marker="o",
            linestyle="--" if curve.endswith("+") else "-",
            capsize=2,
        )
    drawn.legend(frameon=False, fontsize=8)
    results = {curve: [mean(losses[curve][:, i]) for i in depths] for curve in CURVES}
    keep(NAME, chosen, figure=figure, results=results, sentences=sentences)


if __name__ == "__main__":
    main()
