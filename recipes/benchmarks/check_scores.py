"""Does a score order the layers of a network as the accuracy of a linear SVM does, and what does it cost?

HF_TL_REAL_DATA=... python recipes/benchmarks/check_scores.py [--cost] [--minutes 25]

Every layer of MobileNetV2 (52 convolutions), pre-trained on ImageNet and on iNaturalist's birds, on three sets: scores
of the training samples, test accuracy of an SVM. Spearman's rank correlation, with a bootstrap over the layers; layers
are no independent draws, so the intervals are a rough guide. "lost" is the accuracy of the best layer less that of the
layer with the highest score. Each set and network is kept as soon as it is done; what is there is not computed again.
"""

import argparse
import json
import time

import numpy as np
from machine import RESULTS, keep
from real_embeddings import BIRDS, IMAGENET, SETS, raw_embeddings
from scipy.stats import spearmanr

from hf_tl import FullNetworkEmbedding, format_table, layer_probes
from hf_tl.analysis.transferability import SCORES


NETWORKS = {"ImageNet": IMAGENET, "birds": BIRDS}
DRAWS = 1000


def correlation(values: np.ndarray, accuracy: np.ndarray) -> tuple[float, float, float]:
    """Spearman's rho and its 95 % interval."""
    rng = np.random.default_rng(0)
    draws = [rng.integers(0, len(values), len(values)) for _ in range(DRAWS)]
    found = [spearmanr(values[draw], accuracy[draw]).statistic for draw in draws]
    low, high = np.nanquantile(found, [0.025, 0.975])
    return float(spearmanr(values, accuracy).statistic), float(low), float(high)


def evaluate_layers(name: str, weights: str) -> dict:
    """Scores of the training samples and the accuracy of an SVM on the test samples, one value a layer."""
    raw, judged = raw_embeddings(name, weights=weights)
    fne = FullNetworkEmbedding(recipe="standardize", taps="auto")
    train, test = fne.fit_transform(raw), fne.transform(judged)
    probes = layer_probes(train, test, progress=False)
    _, labels = np.unique(train.labels, return_inverse=True)
    values = {score: [] for score in SCORES}
    for layer in train.layers:
        features = np.asarray(train.values[:, layer.start : layer.stop], dtype=np.float64)
        for score, function in SCORES.items():
            values[score].append(round(float(function(features, labels)), 6))
    return {"accuracy": [round(probed.score, 6) for probed in probes.single], "scores": values}


def cost() -> tuple[float, float]:
    """Seconds and CPU seconds for all scores of 12 layers of 768 features, 2,000 samples of 20 classes."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 20, 2000)
    features = rng.normal(size=(2000, 768)) + rng.normal(size=(20, 768))[labels] * 0.3
    start, cpu = time.perf_counter(), time.process_time()
    for _ in range(12):
        for function in SCORES.values():
            function(features, labels)
    return time.perf_counter() - start, time.process_time() - cpu


def summarise(cells: dict[str, dict]) -> None:
    """Prints one row for each set, network and score, and the means of each score."""
    rows = []
    for cell, found in cells.items():
        accuracy = np.array(found["accuracy"])
        for score, values in found["scores"].items():
            rho, low, high = correlation(np.array(values), accuracy)
            lost = accuracy.max() - accuracy[int(np.argmax(values))]
            rows.append(
                [*cell.split(", "), len(accuracy), score, f"{rho:.2f}", f"{low:.2f} .. {high:.2f}", f"{lost:.3f}"]
            )
    print(format_table(["set", "trained on", "layers", "score", "rho", "95 %", "lost"], rows))
    means = [[score, *(f"{np.mean([float(row[k]) for row in rows if row[3] == score]):.{places}f}"
                       for k, places in ((4, 2), (6, 3)))] for score in SCORES]  # fmt: skip
    print(format_table(["score", "mean rho", "mean lost"], means))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cost", action="store_true", help="measure the cost alone")
    parser.add_argument("--minutes", type=float, default=25, help="begin nothing new after so many")
    options = parser.parse_args()
    path, start = RESULTS / "check_scores.json", time.perf_counter()
    kept = json.loads(path.read_text()) if path.is_file() else {}
    kept.pop("machine", None)
    cells = kept.setdefault("cells", {})
    if options.cost or "seconds" not in kept:
        kept["seconds"], kept["cpu_seconds"] = cost()
        keep("check_scores", kept)
    print(
        f"all scores, 2,000 samples x 12 layers x 768 features: {kept['seconds']:.0f} s, "
        f"{kept['cpu_seconds']:.0f} CPU s",
        flush=True,
    )
    if options.cost:
        return
    for name in SETS:
        for network, weights in NETWORKS.items():
            cell = f"{name}, {network}"
            if cell in cells or time.perf_counter() - start > 60 * options.minutes:
                continue
            began = time.process_time()
            cells[cell] = evaluate_layers(name, weights)
            print(f"{cell}: {time.process_time() - began:.0f} CPU s", flush=True)
            keep("check_scores", kept)
    summarise(cells)


if __name__ == "__main__":
    main()
