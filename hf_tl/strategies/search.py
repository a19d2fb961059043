"""Learning rates that Trainer's own search proposes, with Optuna in this process or Ray Tune on a cluster."""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import BestRun

from hf_tl.analysis.energy import Amount
from hf_tl.analysis.footprint import Footprint
from hf_tl.errors import InputError
from hf_tl.models import Network
from hf_tl.strategies.strategy import SearchBackend
from hf_tl.strategies.trial import KeepBest, Training, Trial


WITHIN = 10.0  # rates are drawn from the strategy's own over this to the own times this, uniform in the logarithm
RATE = "learning_rate"
EXTRAS = {"optuna": ("optuna", "search"), "ray": ("ray.tune", "ray")}  # module, extra that installs it
AGAIN = 2  # times that a trial of a lost machine is begun again


def require_backend(search: SearchBackend) -> None:
    """Sees that a search can be done.

    Raises:
        InputError: what does it is not installed.
    """
    if search in EXTRAS:
        module, extra = EXTRAS[search]
        try:
            import_module(module)
        except ImportError as error:
            raise InputError(f"search={search!r} is done by {module}: pip install 'hf-tl[{extra}]'") from error


def search_rates(training: Training) -> tuple[list[Trial], tuple[Footprint, ...]]:
    """Trains with rates that `Trainer.hyperparameter_search` proposes, the first one the strategy's own.

    Optuna (TPE, Bergstra et al., NeurIPS 2011; the first half of the rates at random) trains them one after the other,
    and the best network is kept. Ray draws them at random and trains them side by side; their networks stay where they
    were trained, so the best rate is trained once more here. Where there is a deadline, half of the time is for that.

    Args:
        training: with validation samples.

    Returns:
        The trials, one of them with its network; and what they cost in other processes.

    Raises:
        InputError: what does the search is not installed, or a trial fails.
    """
    require_backend(training.effort.search)
    with tempfile.TemporaryDirectory(prefix="hf-tl-search-") as folder:
        if training.effort.search == "optuna":
            return _Search(training, folder).with_optuna(), ()
        trials, elsewhere = _Search(training, folder).on_ray()
    best = min(trials, key=lambda trial: trial.rank)
    return with_one_network([*trials, training.run(best.rate)]), elsewhere


def with_one_network(trials: Sequence[Trial]) -> list[Trial]:
    """The trials, without the networks that are worse than another."""
    best = min((trial for trial in trials if trial.network is not None), key=lambda trial: trial.rank)
    return [trial if trial is best else replace(trial, network=None) for trial in trials]


class _Search:
    """A Trainer that makes and trains a fresh classifier for each trial."""

    def __init__(self, training: Training, folder: str):
        self.training, self.folder, self.home = training, folder, os.getcwd()
        self.until = time.time() + training.effort.deadline - time.monotonic()  # a clock that machines have in common
        self.trials: list[Trial] = []
        self._running: tuple[Network, KeepBest, Sequence[TrainerCallback]] | None = None
        self._trial: Any = None
        network = training.network()
        self.own, self._first = training.rate(network), [network.model]
        self.trainer = training.trainer(folder, network, self.own, model_init=self.begin)

    def with_optuna(self) -> list[Trial]:
        """One after the other, here."""
        import optuna

        n, seed, name = self.training.effort.trials, self.training.seed, "learning rate"
        storage = optuna.storages.InMemoryStorage()
        with _quiet(optuna.logging):
            study = optuna.create_study(storage=storage, study_name=name, direction="maximize")
            study.enqueue_trial({RATE: self.own})
            self.trainer.hyperparameter_search(
                hp_space=self._suggest,
                hp_name=self._name,
                compute_objective=self._objective,
                n_trials=n,
                direction="maximize",
                backend="optuna",
                storage=storage,
                study_name=name,
                load_if_exists=True,
                sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=math.ceil(n / 2)),
                pruner=optuna.pruners.NopPruner(),  # a trial is a training, as with any other search
            )
        self._end()
        return self.trials

    def on_ray(self) -> tuple[list[Trial], tuple[Footprint, ...]]:
        """Side by side, wherever there is room; without networks."""
        import ray
        from ray import tune
        from ray.tune.search import BasicVariantGenerator

        if not ray.is_initialized():
            ray.init(log_to_driver=False)
        self.trainer.accelerator.gradient_state.dataloader_references = [None]  # weak ones, of trainings before
        self.until -= (self.until - time.time()) / 2 if math.isfinite(self.until) else 0.0
        try:
            found = self.trainer.hyperparameter_search(
                hp_name=self._name,
                hp_space=lambda _: {RATE: tune.loguniform(self.own / WITHIN, self.own * WITHIN)},
                compute_objective=self._objective,
                n_trials=self.training.effort.trials,
                direction="maximize",
                backend="ray",
                search_alg=BasicVariantGenerator(
                    points_to_evaluate=[{RATE: self.own}], random_state=self.training.seed
                ),
                storage_path=os.path.join(self.folder, "ray"),
                max_failures=AGAIN,
                reuse_actors=True,  # which have imported everything
                verbose=0,
            )
        except tune.TuneError as error:
            raise InputError(f"trials of the search on Ray failed: {error}") from error
        assert isinstance(found, BestRun)
        assert found.run_summary is not None
        results = [trial.last_result for trial in found.run_summary.trials]
        trials = [Trial(*json.loads(one["trial"])) for one in results]
        return trials, tuple(Footprint.from_dict(json.loads(one["footprint"])) for one in results)

    def begin(self, trial: Any) -> nn.Module:
        """Trainer's `model_init`: the classifier of a trial, after the end of the one before."""
        if self._first:  # the Trainer is being built
            return self._first.pop()
        if os.path.isdir(self.home):
            os.chdir(self.home)  # Ray's workers are elsewhere, and networks are named from here
        self._end()
        self._trial = trial
        left = self.until - time.time()
        effort = replace(self.training.effort, deadline=time.monotonic() + left)
        network, keep = self.training.network(), KeepBest(effort)
        rate, reporting = self._rate(trial), effort.reporting
        self.trainer.args.run_name = reporting.run_name(rate)
        callbacks = [*self.training.adapted(network.model), keep, *reporting.callbacks(rate)]
        if self.training.effort.search == "ray":
            callbacks.append(_Report(keep))
        for callback in callbacks:
            callback.on_init_end(self.trainer.args, TrainerState(), TrainerControl(), model=network.model)
            self.trainer.add_callback(callback)
        self._running = network, keep, callbacks
        return network.model

    def _end(self) -> None:
        if self._running is not None:
            network, keep, callbacks = self._running
            for callback in callbacks:
                self.trainer.remove_callback(callback)
            self.trials = with_one_network([*self.trials, self.training.trial(network, keep, self.trainer)])
            self._running = None

    def _suggest(self, trial: Any) -> dict[str, float]:
        return {RATE: trial.suggest_float(RATE, self.own / WITHIN, self.own * WITHIN, log=True)}

    def _rate(self, trial: Any) -> float:
        return trial[RATE] if self.training.effort.search == "ray" else self._suggest(trial)[RATE]

    def _name(self, _: Any) -> str:
        """Which backends that rename the runs of a search give them back."""
        return self.trainer.args.run_name or ""

    def _objective(self, _: dict[str, float]) -> float:
        """The rank of the best epoch so far as one number: samples that are right, and less than one for the loss."""
        assert self._running is not None
        keep = self._running[1]
        if self.training.effort.search == "optuna" and keep.effort.is_over:
            self._trial.study.stop()
        if math.isnan(keep.accuracy):
            return -1.0
        return round(keep.accuracy * len(self.training.validation)) + math.exp(-keep.loss)


class _Report(TrainerCallback):
    """Puts a trial, and what it cost, into the metrics that Ray carries to the process that searches."""

    def __init__(self, keep: KeepBest):
        self.keep, self.cost = keep, Footprint("trial on Ray", count_flops=True, experiments=0)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts to measure."""
        self.cost.__enter__()

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Says what there is so far; the last word holds."""
        self.cost.read()
        self.cost.wall_seconds = Amount(0.0, "measured", "the clock of who waits")
        keep = self.keep
        said = (args.learning_rate, None, keep.accuracy, keep.loss, float(state.epoch or 0.0), keep.stopped)
        kwargs["metrics"] |= {"trial": json.dumps(said), "footprint": json.dumps(self.cost.to_dict())}

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ends the measurement."""
        self.cost.abandon()


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Without Optuna's line for each trial, and its warning of trainings that are evaluated twice as they end."""
    level = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The reported value is ignored because this `step")
            yield
    finally:
        logging.set_verbosity(level)
