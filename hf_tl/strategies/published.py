"""Published results and those of ledgers, as cells: one network on one dataset, under several strategies."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hf_tl.errors import InputError
from hf_tl.strategies.ledger import Ledger, Run


FEATURES, LORA, FULL = "feature extraction", "LoRA", "full fine-tuning"
COSTS = {FEATURES: 1.0, LORA: 3.0, FULL: 3.0}  # forward passes a sample and epoch; backward takes two
NAMES = {  # in a table -> here
    "frozen": FEATURES,
    "linear probing": FEATURES,
    "lora": LORA,
    "full_ft": FULL,
    "full fine-tuning": FULL,
}
COMMON = {"full network": FEATURES, "LoRA": LORA, "full fine-tuning": FULL}  # of a ledger -> of published tables
SAME = {"Oxford Flowers": "Flowers102"}  # datasets that two tables call otherwise
RUN_COLUMNS = {"dataset", "backbone", "strategy", "Metric", "test_metric"}
ERRORS = ("RMSE",)  # metrics in no points that could be compared


@dataclass(frozen=True, eq=False)
class Cell:
    """One network on one dataset.

    Attributes:
        benchmark: that it is part of.
        dataset: its name; cells of one dataset say nothing new of one another.
        network: its name.
        results: strategy -> (n_seeds,) in points, one number where only one was published.
        costs: strategy -> what one fit costs, in a unit of the benchmark.
    """

    benchmark: str
    dataset: str
    network: str
    results: dict[str, np.ndarray]
    costs: dict[str, float]

    @property
    def n_seeds(self) -> int:
        """Seeds that every strategy has."""
        return min(len(values) for values in self.results.values())


def read_published(folder: str | Path) -> list[Cell]:
    """The cells of all tables in a folder.

    A table is a csv file of runs, with columns dataset, backbone, strategy, Metric and test_metric in [0, 1], or one
    of methods, with a line a method and a column a dataset, in points. Others are left alone.

    Raises:
        InputError: no table there, or a number that is none.
    """
    cells = [cell for path in sorted(Path(folder).glob("*.csv")) for cell in _read_table(path)]
    if not cells:
        raise InputError(
            f"{str(folder)!r} holds no csv file of runs (columns {', '.join(sorted(RUN_COLUMNS))}) or of methods "
            f"(first column Method) with two of {list(COSTS)}"
        )
    return cells


def read_ledgers(paths: Sequence[str | Path]) -> list[Cell]:
    """The cells of ledgers of `compare`: one for each dataset, network and number of samples per class.

    A dataset has the name of the first ledger of its samples: several networks that were compared on the same ones are
    one dataset. Costs are the operations that were counted. Strategies that do not have every seed are left out.

    Raises:
        InputError: a file that is no ledger.
    """
    names: dict[str, str] = {}
    return [cell for path in paths for cell in _of_ledger(Path(path), names)]


def in_common(cells: Sequence[Cell]) -> list[Cell]:
    """Cells of ledgers by the strategies that published tables have: feature extraction is the full network there."""
    found = []
    for cell in cells:
        known = {other: name for name, other in COMMON.items() if name in cell.results}
        if len(known) > 1:
            results = {other: cell.results[name] for other, name in known.items()}
            costs = {other: cell.costs[name] for other, name in known.items()}
            found.append(replace(cell, results=results, costs=costs))
    return found


def _read_table(path: Path) -> list[Cell]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        try:
            if set(columns) >= RUN_COLUMNS:
                return _of_runs(list(reader), path.stem)
            if columns and columns[0].strip("*").lower() == "method":
                return _of_methods(list(reader), columns, path.stem)
        except (ValueError, TypeError) as error:
            raise InputError(f"{str(path)!r} should have a number for each result: {error}") from error
    return []


def _of_runs(rows: Sequence[dict[str, str]], benchmark: str) -> list[Cell]:
    found: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        name = NAMES.get(row["strategy"].lower())
        if name is not None and row["Metric"] not in ERRORS:
            found[row["dataset"], row["backbone"]][name].append(100 * float(row["test_metric"]))
    return [
        _cell(benchmark, dataset, network, {name: np.array(values) for name, values in results.items()})
        for (dataset, network), results in found.items()
        if len(results) > 1
    ]


def _of_methods(rows: Sequence[dict[str, str]], columns: Sequence[str], benchmark: str) -> list[Cell]:
    known = {name: row for row in rows if (name := NAMES.get(row[columns[0]].lower())) is not None}
    if len(known) < 2:
        return []
    return [
        _cell(benchmark, dataset, "", {name: np.array([float(row[dataset])]) for name, row in known.items()})
        for dataset in columns[1:]
    ]


def _cell(benchmark: str, dataset: str, network: str, results: dict[str, np.ndarray]) -> Cell:
    return Cell(benchmark, SAME.get(dataset, dataset), network, results, {name: COSTS[name] for name in results})


def _of_ledger(path: Path, names: dict[str, str]) -> list[Cell]:
    """The cells of one ledger; names are those of datasets by the digest of the samples that may be drawn."""
    if not path.is_file():
        raise InputError(f"{str(path)!r} is no ledger of compare; there is no such file")
    alike: dict[tuple[int, str], dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in Ledger(path).read().values():  # a folder may hold runs on other samples, or at another effort
        rest = {name: value for name, value in run.config.items() if name not in ("strategy", "seed")}
        alike[run.shots, json.dumps(rest, sort_keys=True)][run.strategy].append(run)
    cells = []
    for (shots, _), runs in sorted(alike.items()):
        seeds = max(len(own) for own in runs.values())
        whole = {name: own for name, own in runs.items() if len(own) == seeds > 1}
        if len(whole) > 1:
            results = {name: np.array([100 * run.test_accuracy for run in own]) for name, own in whole.items()}
            costs = {name: float(np.mean([_operations(run) for run in own])) for name, own in whole.items()}
            config = next(iter(whole.values()))[0].config
            dataset = names.setdefault(str(config.get("samples", path.stem)), path.stem)
            network = f"{Path(str(config.get('model', path.stem))).name}, {shots} a class"
            cells.append(Cell("ledgers", dataset, network, results, costs))
    return cells


def _operations(run: Run) -> float:
    counted = run.footprint.get("flops")
    if counted is None:
        raise InputError(f"run {run.key} of a ledger has no count of operations; compare counts them")
    return float(counted["value"])
