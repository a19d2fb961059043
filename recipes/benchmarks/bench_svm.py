"""LinearSVM against scikit-learn's LinearSVC(C=1) on the same full-network embeddings, in turns.

HF_TL_REAL_DATA=path/to/data python recipes/benchmarks/bench_svm.py [--repeats 3] [--threads 1]
"""

import argparse
import time
import warnings

import torch
from machine import keep, real_data, spread
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_limits

from hf_tl import FullNetworkEmbedding, LinearSVM, load_network, load_task
from hf_tl.table import format_table


SETS = ("flowers12", "dtd10", "fashion900")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    data, cores = real_data(), torch.get_num_threads()
    network = load_network(str(data / "weights" / "mobilenetv2_100.tf2_in1k"), image_size=160)
    results, lines = {}, []
    for name in SETS:
        task = load_task(str(data / "sets" / name), modality="image")
        fne = FullNetworkEmbedding(network)
        train, test = fne.fit_transform(task.train), fne.transform(task.test)
        estimators = {"LinearSVM": LinearSVM(1.0), "LinearSVC": LinearSVC(C=1.0, random_state=0)}
        seconds = {method: [] for method in estimators}
        torch.set_num_threads(options.threads)
        with threadpool_limits(options.threads), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(options.repeats):
                for method, estimator in estimators.items():
                    start = time.perf_counter()
                    estimator.fit(train.values, train.labels)
                    seconds[method].append(time.perf_counter() - start)
        torch.set_num_threads(cores)
        score = {method: float(e.score(test.values, test.labels)) for method, e in estimators.items()}
        ratios = [slow / fast for fast, slow in zip(seconds["LinearSVM"], seconds["LinearSVC"], strict=True)]
        results[name] = {
            "train": list(train.shape),
            "seconds": {method: spread(values) for method, values in seconds.items()},
            "LinearSVC_over_LinearSVM": spread(ratios),
            "test_accuracy": score,
            "warnings": sorted({str(warning.message) for warning in caught}),
        }
        medians = [results[name]["seconds"][method]["median"] for method in estimators]
        lines.append([name, *train.shape, *medians, spread(ratios)["median"], *score.values()])
    header = ["dataset", "rows", "features", "LinearSVM s", "LinearSVC s", "ratio", "LinearSVM acc.", "LinearSVC acc."]
    print(format_table(header, lines))
    keep("svm", {"C": 1.0, "threads": options.threads, "results": results})


if __name__ == "__main__":
    main()
