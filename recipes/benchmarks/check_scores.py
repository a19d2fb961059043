"""Does a score order the layers of a network as the accuracy of a linear SVM does, and what does it cost?

HF_TL_REAL_DATA=... python recipes/benchmarks/check_scores.py [--cost]

Every layer of MobileNetV2 (52 convolutions), pre-trained on ImageNet and on iNaturalist's birds, on three sets: scores
of the training samples, test accuracy of an SVM. Spearman's rank correlation, with a bootstrap over the layers; layers
are no independent draws, so the intervals are a rough guide.
"""

import argparse
import time

import numpy as np
from machine import keep
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


def layers_of(name: str, weights: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Score -> (layers,) of the training samples, and (layers,) test accuracy."""
    raw, judged = raw_embeddings(name, weights=weights)
    fne = FullNetworkEmbedding(recipe="standardize", taps="auto")
    train, test = fne.fit_transform(raw), fne.transform(judged)
    probes = layer_probes(train, test, progress=False)
    _, labels = np.unique(train.labels, return_inverse=True)
    values = {score: [] for score in SCORES}
    for layer in train.layers:
        features = np.asarray(train.values[:, layer.start : layer.stop], dtype=np.float64)
        for score, function in SCORES.items():
            values[score].append(function(features, labels))
    return {score: np.array(found) for score, found in values.items()}, np.array([p.score for p in probes.single])


def cost() -> float:
    """Seconds for all scores of 12 layers of 768 features, 2,000 samples of 20 classes."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 20, 2000)
    features = rng.normal(size=(2000, 768)) + rng.normal(size=(20, 768))[labels] * 0.3
    start = time.perf_counter()
    for _ in range(12):
        for function in SCORES.values():
            function(features, labels)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cost", action="store_true", help="measure the cost alone")
    seconds = cost()
    print(f"all scores, 2,000 samples x 12 layers x 768 features: {seconds:.0f} s", flush=True)
    if parser.parse_args().cost:
        return
    rows = []
    for name in SETS:
        for network, weights in NETWORKS.items():
            values, accuracy = layers_of(name, weights)
            for score, found in values.items():
                rho, low, high = correlation(found, accuracy)
                best = accuracy.max() - accuracy[found.argmax()]
                rows.append(
                    [name, network, len(accuracy), score, f"{rho:.2f}", f"{low:.2f} .. {high:.2f}", f"{best:.3f}"]
                )
            print(format_table(["set", "trained on", "layers", "score", "rho", "95 %", "lost"], rows[-4:]), flush=True)
    means = [[score, f"{np.mean([float(row[4]) for row in rows if row[3] == score]):.2f}",
              f"{np.mean([float(row[6]) for row in rows if row[3] == score]):.3f}"] for score in SCORES]  # fmt: skip
    print(format_table(["score", "mean rho", "accuracy lost by its best layer"], means))
    keep("check_scores", {"seconds": seconds, "rows": rows, "means": means})


if __name__ == "__main__":
    main()
