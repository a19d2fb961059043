"""How often the 95 % range of a learning curve's power law holds what more samples gave, on published curves.

HF_TL_REAL_DATA=... python recipes/benchmarks/check_power_law.py

LCDB 1.1 (learning-curve-research, CC BY 4.0): accuracies of six linear and nearest-neighbour learners on every second
of its data sets. A law is fitted to the last ten sizes up to N / k and asked for N, the largest size.
"""

import csv
from collections import defaultdict

import numpy as np
from machine import keep, real_data

from hf_tl.probes.power_law import fit_power_law
from hf_tl.table import format_table


FILE = "published/lcdb11_learning_curves.csv"
FEWEST, MOST = 5, 10  # sizes that a law is fitted to


def main() -> None:
    curves = defaultdict(list)
    with open(real_data() / FILE, newline="") as file:
        for row in csv.DictReader(file):
            point = (int(row["n_train"]), 1 - float(row["error_rate"]), float(row["standard_error"]))
            curves[row["dataset"], row["learner"]].append(point)
    rows = []
    for k in (2, 4, 8):
        held, narrow, widths, errors, floors = [], [], [], [], []
        for points in curves.values():
            n, accuracy, error = map(np.array, zip(*sorted(points), strict=True))
            used = np.flatnonzero(n <= n[-1] / k)[-MOST:]
            if len(used) < FEWEST:
                continue
            law = fit_power_law(n[used], accuracy[used], error[used])
            low, high = law.range_at(float(n[-1]))
            held.append(low <= accuracy[-1] <= high)
            widths.append(high - low)
            errors.append(abs(law.at(n[-1]) - accuracy[-1]))
            floors.append(law.misfit_at(float(n[-1])))
            narrow.append(high - low > 2 * floors[-1] + 1e-9)
        rows.append([f"x {k}", len(held), float(np.mean(held)), float(np.median(errors)),
                     float(np.quantile(errors, 0.9)), float(np.median(widths)), float(np.mean(narrow))])  # fmt: skip
    header = ["samples", "curves", "held", "median error", "90 %", "median width", "wider than the floor"]
    print(format_table(header, rows))
    keep("check_power_law", {"header": header, "rows": rows})


if __name__ == "__main__":
    main()
