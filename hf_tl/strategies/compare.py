"""compare: several strategies at equal effort on the same samples, with a ledger that goes on where it was cut."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from tqdm import tqdm

from hf_tl.analysis.footprint import Footprint
from hf_tl.analysis.training_change import measure_change
from hf_tl.classifier import Classifier
from hf_tl.data import Task
from hf_tl.embedding.fingerprint import fingerprint_json
from hf_tl.errors import InputError
from hf_tl.models import Network
from hf_tl.strategies.comparison import Comparison
from hf_tl.strategies.draws import Draw, check_shots, draw, find_groups, usable_samples
from hf_tl.strategies.feature_extraction import FeatureExtraction
from hf_tl.strategies.ledger import Ledger, Run
from hf_tl.strategies.reporting import Reporting
from hf_tl.strategies.search import require_backend
from hf_tl.strategies.strategy import Effort, Strategy, find_strategies, in_seconds
from hf_tl.strategies.transfer import Transfer


STRATEGIES = ("last layer", "full network", "linear probe", "LoRA", "split", "LP-FT", "full fine-tuning")
SHOTS = (1, 2, 5, 10, 20)
SEEDS = 3
LEDGER = "ledger.jsonl"
PACKAGES = ("hf_tl", "torch", "transformers", "timm", "scikit-learn", "numpy")

Item = TypeVar("Item")
Result = TypeVar("Result")


class Executor(Protocol):
    """Where runs are done: `hf_tl.RayExecutor`, or one of `concurrent.futures`."""

    def map(self, function: Callable[[Item], Result], items: Iterable[Item], /) -> Iterator[Result]:
        """What the function gives for each item, in any order."""


def compare(
    model: str,
    task: str | Task,
    *,
    strategies: Sequence[str | Strategy] = STRATEGIES,
    shots: Sequence[int] = SHOTS,
    seeds: int = SEEDS,
    budget: str | float | None = None,
    out: str | Path = "runs/compare",
    image_size: int | None = None,
    effort: Effort | None = None,
    country: str | None = None,
    human_minutes: float = 0.0,
    groups: np.ndarray | None = None,
    part: tuple[int, int] = (0, 1),
    executor: Executor | None = None,
    progress: bool = True,
    report_to: str | Sequence[str] = (),
) -> Comparison:
    """Fits every strategy with every number of samples and every seed, and evaluates all on the same samples.

    Runs are independent. Each that ends is a line of `out`/ledger.jsonl; the same call goes on with those that are
    missing, in however many processes, on however many machines that share the folder.

    Args:
        model: name or folder of a pre-trained network.
        task: name of a dataset, or what `load_task` gave; its test samples are for the evaluation alone.
        strategies: by name, or objects.
        shots: training samples per class, validation samples included.
        seeds: draws for each number of samples; those of one seed are nested.
        budget: time after which no run is begun, "2h"; None for as long as it takes, 0 for what the ledger has.
        out: folder of the ledger and of stored activations.
        image_size: side of the square images in pixels.
        effort: what each strategy may spend on one fit; the same for all.
        country: where it runs, for the CO2; see `hf_tl.analysis.footprint.Footprint`.
        human_minutes: of people for each run, as you say.
        groups: (n,) numbers that twins share, for training and test samples; None to look for twins.
        part: (i, k): this process does every k-th run from the i-th on.
        executor: where runs are done, such as `RayExecutor(num_gpus=1)`; this process alone writes the ledger. None to
            do them here, one after the other.
        progress: whether a progress bar is drawn.
        report_to: where Trainer reports each training as it goes, as in `TrainingArguments`: "tensorboard" (in
            `out`/tensorboard where the run is done, or in TENSORBOARD_LOGGING_DIR), "mlflow", "trackio", "wandb". A
            training is a run named by strategy, samples per class, seed and learning rate. Strategies on frozen
            features have no Trainer, and nothing of theirs is reported. Results and the ledger stay the same.

    Raises:
        InputError: what cannot be compared; before anything is fitted.
    """
    limit = float("inf") if budget is None else 0.0 if budget == 0 else in_seconds(budget)
    until = time.time() + limit  # a clock that machines have in common
    effort, folder = Effort() if effort is None else effort, Path(out)
    found = find_strategies(strategies)
    if seeds < 2:
        raise InputError(f"seeds should be 2 or more, for an interval, got {seeds}")
    if not 0 <= part[0] < part[1]:
        raise InputError(f"part should be (i, k) with 0 <= i < k, got {part}")
    require_backend(effort.search)
    reporting = Reporting.of(report_to, folder=folder)
    if effort.search == "ray" and executor is not None:
        raise InputError(
            "search='ray' puts the trials of each run on a cluster, an executor whole runs; give one of them"
        )
    transfer = Transfer.of(model, task, image_size=image_size, folder=folder)
    groups, notes = find_groups(transfer, groups)
    pool, counts = usable_samples(transfer.labels, n_train=transfer.n_train, groups=groups)
    wanted = check_shots(shots, counts, transfer.classes)
    effort, measured = settle(effort, transfer, found)
    notes = (*notes, *measured)
    ledger = Ledger(folder / LEDGER)
    plan = list(_plan(transfer, found, wanted, seeds, effort, pool))
    done = ledger.read()
    todo = [one for i, one in enumerate(plan) if one[0] not in done and i % part[1] == part[0]]
    if executor is not None and any(isinstance(one[2], FeatureExtraction) for one in todo):
        transfer.raw  # noqa: B018  read here, once, for all runs

    def begin(planned: Planned) -> Run | None:
        """The run; None where the budget is spent."""
        if time.time() > until:
            return None
        key, config, strategy, n, seed = planned
        drawn = draw(transfer.labels, pool, shots=n, seed=seed)
        cost = Footprint(strategy.name, country=country, human_minutes=human_minutes, count_flops=True)
        said = f"{strategy.name}, {n} a class, seed {seed}"
        spent = replace(effort, reporting=reporting.named(said, model=transfer.model, source=transfer.source))
        return run_once(transfer, strategy, drawn, key, config, n, seed, spent, cost)

    with tqdm(total=len(plan), initial=len(plan) - len(todo), desc="compare", unit="run", disable=not progress) as bar:
        not_begun = False
        for run in (map if executor is None else executor.map)(begin, _shown(todo, bar)):
            if run is None:
                not_begun = True
                continue
            ledger.append(run)
            bar.update()
        if not_begun:
            spent = f"the budget of {budget} is spent; the same call does the {len(plan) - bar.n} others"
            notes = (*notes, spent if budget else f"runs that are still to be done: {len(plan) - bar.n}")
    unseen = [name for i, name in enumerate(transfer.classes) if i not in transfer.labels[transfer.test]]
    if unseen:
        notes = (*notes, f"no test sample is of class {', '.join(map(repr, unseen))}: accuracies say nothing of it")
    keys = [one[0] for one in plan]
    runs = [run for key, run in ledger.read().items() if key in keys]

    def fit(name: str) -> Classifier:
        strategy = next(one for one in found if one.name == name)
        drawn = draw(transfer.labels, pool, shots=len(pool), seed=0)
        fitted = strategy.fit(transfer, drawn.train, drawn.validation, effort=effort, seed=0)
        if fitted.to_classifier is None:
            raise InputError(f"strategy {name!r} makes no classifier that could be saved")
        return fitted.to_classifier()

    notes = (*transfer.task.notes, *notes)
    return Comparison.of(runs, transfer, counts=counts, planned=len(plan), notes=notes, fit=fit)


def run_once(
    transfer: Transfer,
    strategy: Strategy,
    drawn: Draw,
    key: str,
    config: Mapping[str, Any],
    shots: int,
    seed: int,
    effort: Effort,
    footprint: Footprint,
    *,
    evaluated: np.ndarray | None = None,
) -> Run:
    """One fit, evaluated on the test samples, or on others."""
    evaluated = transfer.test if evaluated is None else evaluated
    n = len(drawn.train) + len(drawn.validation)  # one pass reads the samples of all runs; each bears its own share
    reading = transfer.reading_cost(n, country=footprint.country) if isinstance(strategy, FeatureExtraction) else None
    with footprint:
        fitted = strategy.fit(transfer, drawn.train, drawn.validation, effort=effort, seed=seed)
        footprint.add(samples=0 if reading else fitted.samples_seen, experiments=fitted.trials - 1)
    country = footprint.country
    footprint = footprint if reading is None else footprint + reading
    for part in fitted.elsewhere:
        part.country = country
        part.set_energy(part.energy)
        footprint = footprint + part
    predicted = fitted.predict(evaluated)
    return Run(
        key=key,
        strategy=strategy.name,
        shots=shots,
        seed=seed,
        config=config,
        train=tuple(map(int, drawn.train)),
        validation=tuple(map(int, drawn.validation)),
        setting=fitted.setting,
        trials=fitted.trials,
        validation_accuracy=fitted.validation,
        test_accuracy=float((predicted == transfer.labels[evaluated]).mean()),
        predicted=tuple(map(int, predicted)),
        samples_seen=fitted.samples_seen,
        stopped=fitted.stopped,
        footprint=footprint.to_dict(),
        versions={name: version(name) for name in PACKAGES},
        change={} if fitted.network is None else _change(transfer, fitted.network, seed=seed),
    )


def _change(transfer: Transfer, trained: Network, *, seed: int) -> dict[str, tuple[float, float]]:
    """Layer -> its depth and the relative change of its weights, of layers that have any."""
    found = measure_change(transfer.network(seed=seed).model, trained.model)
    layers = zip(found.layers, found.depths, found.relative, strict=True)
    return {name: (round(float(d), 4), float(f"{c:.4g}")) for name, d, c in layers if np.isfinite(c)}


def settle(effort: Effort, transfer: Transfer, strategies: Sequence[Strategy]) -> tuple[Effort, tuple[str, ...]]:
    """What is spent with bfloat16 or without it, where that is to be measured; and what was found, in a sentence."""
    if effort.bf16 != "auto":
        return effort, ()
    if all(isinstance(one, FeatureExtraction) for one in strategies):  # nothing is trained
        return replace(effort, bf16=False), ()
    return replace(effort, bf16=transfer.acceleration.bf16), (f"trainings: {transfer.acceleration}",)


def run_config(
    transfer: Transfer, strategy: Strategy, *, shots: int, seed: int, effort: Effort, samples: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """What decides the result of a run; samples are those that it may draw from and those that it is evaluated on."""
    return {
        "model": transfer.model,
        "transfer": transfer.fingerprint,
        "image_size": transfer.image_size,
        "strategy": repr(strategy),
        "shots": shots,
        "seed": seed,
        "effort": effort.to_dict(),
        "samples": fingerprint_json([list(part) for part in samples])[:16],
    }


def _shown(todo: Iterable[Planned], bar: tqdm) -> Iterator[Planned]:
    """The runs, each on the bar as it is begun."""
    for planned in todo:
        _, _, strategy, n, seed = planned
        bar.set_postfix_str(f"{strategy.name}, {n} a class, seed {seed}")
        yield planned


Planned = tuple[str, dict[str, Any], Strategy, int, int]


def _plan(
    transfer: Transfer,
    strategies: Sequence[Strategy],
    shots: Sequence[int],
    seeds: int,
    effort: Effort,
    pool: np.ndarray,
) -> Iterator[Planned]:
    """Key, config, strategy, samples per class and seed of each run; a ledger that is cut is as even as it can be."""
    samples = (pool.tolist(), transfer.test.tolist())
    for seed, n, strategy in product(range(seeds), shots, strategies):
        config = run_config(transfer, strategy, shots=n, seed=seed, effort=effort, samples=samples)
        yield fingerprint_json([strategy.name, config])[:16], config, strategy, n, seed
