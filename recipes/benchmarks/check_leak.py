"""What copies between training and test photos do to every figure on flowers12 and dtd10: with them and without.

HF_TL_REAL_DATA=... python recipes/benchmarks/check_leak.py [--only accuracy layers curve training]

Copies are those that an audit finds, and those of twins/twins_flowers12_dtd10.csv, looked at by eye, of which an audit
misses one (stretched into a frame). MobileNetV2 (ImageNet) at 160 px.

accuracy: a linear SVM with C=1; "clean" is the accuracy on test photos without a copy among the training photos,
"trained clean" is trained without the photos that the test set has a copy of.
layers: the layer probes of bench_probes.py; without: on the clean test photos.
curve: its learning curves; without: draws hold no two copies and none of a test photo, tested on the clean ones.
training: the lowest that the figures of bench_lora_learning.py can be on the clean test photos, which is when all
copies were right: whoever trained did not keep which photos were.
"""

import argparse
import csv
import json
from dataclasses import replace

import numpy as np
from machine import RESULTS, keep, real_data
from real_embeddings import features

from hf_tl import LinearSVM, find_twins, format_table, layer_probes, learning_curve, load_task
from hf_tl.intervals import wilson
from hf_tl.probes.layer_probes import LayerProbes


SETS = ("flowers12", "dtd10")
METHODS = {"full network": {"recipe": "paper", "taps": "auto"}, "last layer": {"recipe": "l2", "taps": "last"}}
LEARNING = "flowers12"  # the one with copies enough to matter
WAYS = ("with", "without")


class Copies:
    """Which photos of a set have a copy in its other split, and which share one."""

    def __init__(self, name: str):
        task = load_task(str(real_data() / "sets" / name), modality="image")
        twins = find_twins((task.train, task.test), modality="image")
        self.test, self.train = twins.leaked("test", into="train"), twins.leaked("train", into="test")
        self.groups = twins.groups["train"]
        self.found = int(self.test.sum())
        with (real_data() / "twins" / "twins_flowers12_dtd10.csv").open() as lines:
            rows = [row for row in csv.DictReader(lines) if row["set"] == name]
        for row in rows:
            ends = {row["a_split"]: int(row["a_row"]), row["b_split"]: int(row["b_row"])}
            recoloured = name == "dtd10" and float(row["corr48"]) < 0.97
            if len(ends) == 2 and not recoloured:
                self.test[ends["test"]] = self.train[ends["train"]] = True


def share(right: np.ndarray) -> str:
    low, high = wilson(int(right.sum()), len(right))
    return f"{right.mean():.3f} ({low:.3f} .. {high:.3f})"


def accuracy() -> dict:
    rows = []
    for name in SETS:
        copies = Copies(name)
        for method, options in METHODS.items():
            train, test = features(name, **options)
            leaked, kept = copies.test[test.indices], ~copies.train[train.indices]
            right = LinearSVM(C=1.0).fit(train, train.labels).predict(test) == test.labels
            again = LinearSVM(C=1.0).fit(train[kept], train.labels[kept]).predict(test) == test.labels
            figures = [share(part) for part in (right, right[leaked], right[~leaked], again)]
            rows.append([name, method, f"{leaked.sum()} of {len(leaked)}", copies.found, *figures])
    header = ["set", "features", "copies", "found by audit", "all", "copies alone", "clean", "all, trained clean"]
    print(format_table(header, rows))
    return {"header": header, "rows": rows}


def on(probes: LayerProbes, kept: np.ndarray) -> LayerProbes:
    """The same probes evaluated on some of the test samples."""

    def part(several: tuple) -> tuple:
        return tuple(replace(probed, outcomes=probed.outcomes[kept]) for probed in several)

    untrained = None if probes.untrained is None else on(probes.untrained, kept)
    sides = {name: part(getattr(probes, name)) for name in ("single", "first_to", "to_last")}
    return replace(probes, **sides, untrained=untrained, evaluated_on=f"{kept.sum()} of the {len(kept)} test samples")


def layers() -> dict:
    copies, (train, test) = Copies(LEARNING), features(LEARNING)
    probes = layer_probes(train, test, untrained=features(LEARNING, trained=False), progress=False)
    said = {}
    for way, found in zip(WAYS, (probes, on(probes, ~copies.test[test.indices])), strict=True):
        said[way] = str(found).splitlines()
        print(f"{LEARNING}, {way} copies:\n{found}\n")
    return said


def curve() -> dict:
    copies, said = Copies(LEARNING), {}
    for way in WAYS:
        curves = []
        for method, options in METHODS.items():
            train, test = features(LEARNING, **options)
            groups = None
            if way == "without":
                train, test = train[~copies.train[train.indices]], test[~copies.test[test.indices]]
                groups = copies.groups[train.indices]
            curves.append(learning_curve(train, test, method=method, groups=groups, progress=False))
        both = curves[0].beside(curves[1])
        compared = str(both.compare(*METHODS))
        print(f"{LEARNING}, {way} copies:\n{both.table()}\n{compared}\n")
        means = {name: [round(float(draws.mean()), 4) for draws in values] for name, values in both.accuracy.items()}
        said[way] = {"shots": list(both.shots), "means": means, "compared": compared}
    return said


def training() -> dict:
    path = RESULTS / "lora_learning.json"
    found = json.loads(path.read_text())["results"][LEARNING]
    copies = Copies(LEARNING)
    n, n_copies = len(copies.test), int(copies.test.sum())
    rows = []
    for method in ("full", "lora"):
        with_copies = found[method]["test accuracy by seed"]
        least = [(round(one * n) - n_copies) / (n - n_copies) for one in with_copies]
        rows.append([method, ", ".join(f"{one:.3f}" for one in with_copies), ", ".join(f"{one:.3f}" for one in least)])
    header = ["method", f"all {n} test photos, by seed", f"the {n - n_copies} clean ones, at least"]
    print(format_table(header, rows))
    return {"header": header, "rows": rows}


PARTS = {"accuracy": accuracy, "layers": layers, "curve": curve, "training": training}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="the others are kept")
    options, path = parser.parse_args(), RESULTS / "check_leak.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    results = {name: results[name] for name in PARTS if name in results}
    for name in options.only:
        results[name] = PARTS[name]()
        keep("check_leak", results)


if __name__ == "__main__":
    main()
