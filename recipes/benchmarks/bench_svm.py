"""LinearSVM against scikit-learn's LinearSVC on the same full-network embeddings, in turns.

HF_TL_REAL_DATA=path/to/data python recipes/benchmarks/bench_svm.py [--repeats 2] [--threads 1] [--sweep dtd10]

One fit at C=1; a sweep of 9 values of C over 5 folds; 1,360 synthetic samples in 136 classes.
Seconds are of processor time: with one thread, what the clock of a quiet machine would show.
"""

import argparse
import time
import warnings

import torch
from machine import keep, spread, ternary_rows
from real_embeddings import SETS, features
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_limits

from hf_tl import Embedding, LinearSVM
from hf_tl.probes.grid_search import stratified_folds
from hf_tl.table import format_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sweep", choices=SETS, default="dtd10")
    options = parser.parse_args()
    embeddings = {name: features(name) for name in SETS}
    torch.set_num_threads(options.threads)
    with threadpool_limits(options.threads), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        many = many_classes(options.repeats)
        fits = {name: one_fit(*embeddings[name], options.repeats) for name in SETS}
        swept = sweep(embeddings[options.sweep][0])
    lines = [
        [name, *found["train"], *(found["seconds"][m]["median"] for m in found["seconds"]), found["ratio"]["median"],
         *found["test_accuracy"].values()]
        for name, found in fits.items()
    ]  # fmt: skip
    header = ["dataset", "samples", "features", "LinearSVM s", "LinearSVC s", "ratio", "LinearSVM", "LinearSVC"]
    print(format_table(header, lines))
    print(f"\nsweep on {options.sweep}, 9 values of C, 5 folds: LinearSVM {swept['LinearSVM_seconds']:.1f} s, "
          f"LinearSVC {swept['LinearSVC_seconds']:.1f} s, ratio {swept['ratio']:.1f}")  # fmt: skip
    print(f"136 classes, 1,360 samples, C=1: {many['seconds']['median']:.1f} s, accuracy {many['test_accuracy']:.3f}")
    keep("svm", {"clock": "process time",
                 "threads": options.threads, "one_fit_C_1": fits, "sweep": {"dataset": options.sweep, **swept},
                 "136_classes_C_1": many})  # fmt: skip


def one_fit(train: Embedding, test: Embedding, repeats: int) -> dict:
    estimators = {"LinearSVM": LinearSVM(1.0), "LinearSVC": LinearSVC(C=1.0, random_state=0)}
    seconds = {method: [] for method in estimators}
    for _ in range(repeats):
        for method, estimator in estimators.items():
            start = time.process_time()
            estimator.fit(train.values, train.labels)
            seconds[method].append(time.process_time() - start)
    ratios = [slow / fast for fast, slow in zip(seconds["LinearSVM"], seconds["LinearSVC"], strict=True)]
    return {
        "train": list(train.shape),
        "seconds": {method: spread(values) for method, values in seconds.items()},
        "ratio": spread(ratios),
        "test_accuracy": {m: round(float(e.score(test.values, test.labels)), 4) for m, e in estimators.items()},
    }


def sweep(train: Embedding) -> dict:
    """Every value of C on every fold; once, LinearSVC takes minutes. Both also fit all samples once at the end."""
    start = time.process_time()
    svm = LinearSVM("auto").fit(train.values, train.labels)
    ours = time.process_time() - start
    fold = stratified_folds(train.labels)
    accuracy = []
    start = time.process_time()
    for C in svm.search_.grid:
        for k in range(5):
            svc = LinearSVC(C=C, random_state=0).fit(train.values[fold != k], train.labels[fold != k])
            accuracy.append(svc.score(train.values[fold == k], train.labels[fold == k]))
    LinearSVC(C=svm.C_, random_state=0).fit(train.values, train.labels)
    theirs = time.process_time() - start
    return {
        "LinearSVM_seconds": round(ours, 2),
        "LinearSVC_seconds": round(theirs, 2),
        "ratio": round(theirs / ours, 1),
        "largest_difference_of_fold_accuracies": float(abs(svm.search_.accuracy.ravel() - accuracy).max()),
        "chosen": str(svm.search_),
    }


def many_classes(repeats: int) -> dict:
    x, y = ternary_rows(1360, 17_056, 136, seed=1)
    test, truth = ternary_rows(1000, 17_056, 136, seed=2)
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        svm = LinearSVM(1.0).fit(x, y)
        seconds.append(time.process_time() - start)
    return {
        "train": list(x.shape),
        "classes": len(svm.classes_),
        "seconds": spread(seconds),
        "test_accuracy": float(svm.score(test, truth)),
    }


if __name__ == "__main__":
    main()
