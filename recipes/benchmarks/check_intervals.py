"""How often the intervals that probes print as 95 % hold what they are intervals of, by simulation.

python recipes/benchmarks/check_intervals.py [--repeats 150]

Two classes of normal samples, easy or hard to tell apart; the truth is the accuracy expected of new training and test
samples, or for layers that of the fitted probe on new samples. Ten minutes of one thread; with 150 repeats a coverage
is known to within four points.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from machine import keep

from hf_tl import Embedding, layer_probes, learning_curve
from hf_tl.embedding.embedding import LayerColumns
from hf_tl.probes.layer_probes import LayerProbes, Probed
from hf_tl.table import format_table


SHOTS = (1, 5, 10, 20, 30)
SAMPLES, TEST_SAMPLES, MANY = 40, 100, 500  # of a class
N_LAYERS, WIDTH = 52, 4
OPTIONS = {"C": 1.0, "shots": SHOTS, "progress": False}


def make(rng: np.random.Generator, n: int, shift: float, *, layers: int = 1) -> Embedding:
    """`n` samples of each of two classes."""
    y = np.repeat([0, 1], n)
    values = rng.normal(size=(2 * n, WIDTH * layers)) + shift * (2 * y[:, None] - 1)
    spans = tuple(LayerColumns(f"layer{i}", WIDTH * i, WIDTH * (i + 1), i / layers) for i in range(layers))
    return Embedding(values=values, layers=spans, indices=np.arange(2 * n), labels=y)


def curves(shift: float, repeats: int, *, held_out: bool) -> dict[str, float]:
    """Coverage of a learning curve's means and of the difference of two equally good methods."""
    rng = np.random.default_rng(0)
    runs = [learning_curve(make(rng, SAMPLES, shift), make(rng, MANY, shift), n_splits=2, random_state=i, **OPTIONS)
            for i in range(2 * repeats)]  # fmt: skip
    truth = np.mean([run.accuracy["full network"].mean(axis=1) for run in runs], axis=0)
    means, differences = np.zeros(len(SHOTS)), np.zeros(len(SHOTS))
    for i in range(repeats):
        pair = []
        for method in ("a", "b"):
            train = make(rng, SAMPLES + SAMPLES // 3 if held_out else SAMPLES, shift)
            test = None if held_out else make(rng, TEST_SAMPLES, shift)
            pair.append(learning_curve(train, test, random_state=i, method=method, **OPTIONS))
        both = pair[0].beside(pair[1])
        found = {method: both.accuracy[method].mean(axis=1) for method in ("a", "b")}
        means += sum((abs(found[method] - truth) <= both.half_widths(method)) / 2 for method in found)
        differences += abs(found["a"] - found["b"]) <= both.half_widths("a", over="b")
    where = "a quarter held out" if held_out else "test samples given"
    names = [f"{what} at {n}, {where}" for what in ("mean", "difference") for n in SHOTS]
    return dict(zip(names, (np.concatenate([means, differences]) / repeats).tolist(), strict=True))


def layers(shift: float, repeats: int) -> dict[str, float]:
    """Coverage of layer_probes' intervals for the accuracy of its probes on new samples."""
    rng = np.random.default_rng(1)
    held = dict.fromkeys(("one layer", "best of 52 layers", "best of 104 ranges", "gain over one layer",
                          "gain over the best layer"), 0)  # fmt: skip
    for _ in range(repeats):
        train, new = (make(rng, n, shift, layers=N_LAYERS) for n in (SAMPLES, TEST_SAMPLES + MANY))
        everything = layer_probes(train, new, progress=False)
        tested = np.tile(np.arange(TEST_SAMPLES + MANY) < TEST_SAMPLES, 2)
        found, true = part(everything, tested), part(everything, ~tested)
        score = {p.name: p.score for p in (*true.single, *true.first_to, *true.to_last)}
        best = [p.name for p in found.single].index(found.best_layer.name)
        for name, probed in (("one layer", found.single[0]), ("best of 52 layers", found.best_layer),
                             ("best of 104 ranges", found.best_range)):  # fmt: skip
            held[name] += probed.interval[0] <= score[probed.name] <= probed.interval[1]
        for name, i, at_once in (("gain over one layer", 0, False), ("gain over the best layer", best, True)):
            _, low, high = found.gains(simultaneous=at_once)[i]
            held[name] += low <= true.gains()[i][0] <= high
    return {name: count / repeats for name, count in held.items()}


def part(probes: LayerProbes, chosen: np.ndarray) -> LayerProbes:
    """The same probes on some of the samples."""

    def of(several: tuple[Probed, ...]) -> tuple[Probed, ...]:
        return tuple(replace(probed, outcomes=probed.outcomes[chosen]) for probed in several)

    return replace(probes, single=of(probes.single), first_to=of(probes.first_to), to_last=of(probes.to_last))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=150)
    repeats = parser.parse_args().repeats
    parts: list[tuple[str, Callable[[float], dict[str, float]]]] = [
        ("learning_curve", lambda shift: curves(shift, repeats, held_out=False)),
        ("learning_curve", lambda shift: curves(shift, repeats, held_out=True)),
        ("layer_probes", lambda shift: layers(shift, repeats)),
    ]
    rows = []
    for function, simulate in parts:
        columns = [simulate(shift) for shift in ((0.0, 0.1) if function == "layer_probes" else (0.2, 0.5))]
        rows += [[function, name, *(column[name] for column in columns)] for name in columns[0]]
        print(format_table(["function", "95 % interval of", "hard", "easier"], rows[-len(columns[0]) :]), flush=True)
    keep("check_intervals", {"repeats": repeats, "rows": rows})


if __name__ == "__main__":
    main()
