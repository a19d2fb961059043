"""What copies between training and test photos do to the figures: accuracy with them, on them, and without them.

HF_TL_REAL_DATA=... python recipes/benchmarks/check_leak.py

MobileNetV2 (ImageNet) at 160 px, a linear SVM with C=1; "clean" is the accuracy on test photos without a copy among
the training photos, "trained clean" is trained without the photos that the test set has a copy of.
"""

import numpy as np
from machine import keep, real_data
from real_embeddings import features

from hf_tl import LinearSVM, find_twins, format_table, load_task
from hf_tl.intervals import wilson


SETS = ("flowers12", "dtd10")
METHODS = {"full network": {"recipe": "paper", "taps": "auto"}, "last layer": {"recipe": "l2", "taps": "last"}}


def share(right: np.ndarray) -> str:
    low, high = wilson(int(right.sum()), len(right))
    return f"{right.mean():.3f} ({low:.3f} .. {high:.3f})"


def main() -> None:
    rows = []
    for name in SETS:
        task = load_task(str(real_data() / "sets" / name), modality="image")
        twins = find_twins((task.train, task.test), modality="image")
        copied = twins.leaked("train", into="test")
        for method, options in METHODS.items():
            train, test = features(name, **options)
            leaked = twins.leaked("test", into="train")[test.indices]
            kept = ~copied[train.indices]
            right = LinearSVM(C=1.0).fit(train, train.labels).predict(test) == test.labels
            again = LinearSVM(C=1.0).fit(train[kept], train.labels[kept]).predict(test) == test.labels
            figures = [share(part) for part in (right, right[leaked], right[~leaked], again)]
            rows.append([name, method, f"{leaked.sum()} of {len(leaked)}", *figures])
    header = ["set", "features", "copies", "all", "copies alone", "clean", "all, trained clean"]
    print(format_table(header, rows))
    keep("check_leak", {"header": header, "rows": rows})


if __name__ == "__main__":
    main()
