"""The footprint of a Trainer's training in one line: `Trainer(..., callbacks=[FootprintCallback(country="ESP")])`."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from types import MethodType
from typing import Any, cast

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_tl.analysis.energy import Amount, PowerModel
from hf_tl.analysis.flops import FlopCounter, samples_in
from hf_tl.analysis.footprint import Footprint
from hf_tl.errors import InputError


KEY = "hf_tl.footprint"
FILE = "footprint.json"
FIRST, THEN = 3, 20  # passes whose operations are counted: the first few, then one in so many


class FootprintCallback(TrainerCallback):
    """Measures each `train()`, its evaluations with it; the sum is in `footprint` and in footprint.json.

    Operations are counted in some steps, and taken for those between: counting all would slow the training. A
    checkpoint holds the footprint up to it, so that a resumed training has that of both parts. In several processes,
    each measures itself, and process 0 has the sum.

    Operations are counted while a forward pass runs, and while a layer's gradients are computed; those of a loss
    outside the network are left out. Trainer tells no callback of an error: after one, time and memory are measured on
    until the next training, or for as long as the Trainer lives. Of `torch.nn.DataParallel`, whose threads no counter
    sees, the operations stay unknown.

    Args:
        name: of the work.
        country: where it runs; see `Footprint`.
        grid_intensity: g CO2 a kWh, instead of a country.
        pue: see `Footprint`.
        power: what is assumed of parts without a counter.
        human_minutes: of people, for this training.

    Attributes:
        footprint: of all trainings so far; None before the first has ended.

    Raises:
        InputError: an unknown country.
    """

    def __init__(
        self,
        name: str = "training",
        *,
        country: str | None = None,
        grid_intensity: float | None = None,
        pue: float = 1.0,
        power: PowerModel | None = None,
        human_minutes: float = 0.0,
    ):
        self._new = Footprint(
            name,
            country=country,
            grid_intensity=grid_intensity,
            pue=pue,
            power=power or PowerModel(),
            human_minutes=human_minutes,
        )
        self.footprint: Footprint | None = None
        self._before: Footprint | None = None
        self._running: Footprint | None = None
        self._passes: _Passes | None = None
        self._end: weakref.finalize | None = None  # where no event ends the measurement

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts to measure; a checkpoint's footprint is what it goes on from."""
        self._stop()  # a training that an error ended, such as a batch that was too large
        resumed = state.global_step > 0
        held = _kept(state).get(KEY) if resumed else None
        self._before = Footprint.from_dict(held) if isinstance(held, dict) else self.footprint
        self._running = replace(self._new, experiments=0 if resumed and self._before else 1)
        self._running.__enter__()
        self._passes = _Passes(kwargs["model"], count=args.n_gpu <= 1)
        self._end = weakref.finalize(self, _abandon, self._passes, self._running)
        self._end.atexit = False

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Counts the operations of some steps."""
        if self._passes is not None:
            self._passes.begin_step()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Puts the footprint so far into a checkpoint that is about to be written."""
        if self._passes is not None:
            self._passes.end_step()
            if control.should_save or control.should_training_stop:
                _kept(state)[KEY] = self._read().to_dict()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """As after a step: with save_strategy="epoch" the checkpoint is written now."""
        if self._passes is not None and control.should_save:
            _kept(state)[KEY] = self._read().to_dict()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ends the measurement, adds the other processes' and writes footprint.json."""
        if self._running is None:
            return
        self.footprint = self._read()
        self._stop()
        if args.world_size > 1:
            self.footprint = _of_all_processes(self.footprint, args)
        if state.is_world_process_zero:
            self.footprint.save(Path(str(args.output_dir)) / FILE)

    def _read(self) -> Footprint:
        running, passes = self._running, self._passes
        if running is None or passes is None:
            raise InputError("the FootprintCallback measures nothing; it is read while a Trainer trains")
        running.read()
        running.samples = passes.n_samples
        running.flops = passes.amount()
        so_far = Footprint.from_dict(running.to_dict())
        return so_far if self._before is None else _as_one(self._before + so_far, so_far)

    def _stop(self) -> None:
        if self._end is not None:
            self._end.detach()
        if self._passes is not None:
            self._passes.close()
        if self._running is not None:
            self._running.__exit__()
        self._running = self._passes = self._end = None


def _abandon(passes: _Passes, running: Footprint) -> None:
    """Ends a measurement whose callback is gone: the network is as before, nothing looks at the memory any more."""
    passes.close()
    running.abandon()


class _Passes:
    """The samples that go through a network, and the operations that this takes.

    Args:
        model: whose `forward` counts from now on.
        count: whether operations are counted.
    """

    def __init__(self, model: nn.Module, *, count: bool):
        self.n_samples = 0
        self._flops = 0.0
        self._seen = {True: 0, False: 0}  # passes, in training and in evaluation
        self._each = {True: 0.0, False: 0.0}  # operations a sample, in the last pass that was counted
        self._in_pass = self._in_step = 0  # samples
        self._counted = self._passed = 0
        self._step: FlopCounter | None = None  # of a step that is counted
        self._hook = model.register_forward_pre_hook(self._enter, with_kwargs=True)
        self._put_back = _counting(model, self) if count else None

    def amount(self) -> Amount | None:
        """The operations so far; None where none were counted."""
        if not self._counted:
            return None
        if self._counted == self._passed:
            return Amount(self._flops, "measured", "counted by operation")
        return Amount(self._flops, "estimated", f"counted in {self._counted} of {self._passed} steps")

    def run(self, training: bool, call: Callable[[], Any]) -> Any:
        """One pass; the counter is on while it runs, and while a node of its graph computes gradients.

        Args:
            training: whether a step will use its gradients.
            call: runs it.
        """
        if training:
            if self._step is None:
                return call()
            with self._step:
                output = call()
            self._step.count_gradients(output)
            return output
        n, counter = self._in_pass, FlopCounter() if self._is_due(training=False) else None
        with counter or nullcontext():
            output = call()
        if n:
            self._book(n, None if counter is None else counter.total, training=False)
        return output

    def begin_step(self) -> None:
        self.end_step()
        self._step = FlopCounter() if self._put_back and self._is_due(training=True) else None

    def end_step(self) -> None:
        if self._in_step:
            self._book(self._in_step, None if self._step is None else self._step.total, training=True)
        self._in_step, self._step = 0, None

    def close(self) -> None:
        self.end_step()
        self._hook.remove()
        if self._put_back is not None:
            self._put_back()

    def _is_due(self, *, training: bool) -> bool:
        return self._seen[training] < FIRST or self._seen[training] % THEN == 0

    def _book(self, n_samples: int, counted: int | None, *, training: bool) -> None:
        if counted is not None:
            self._each[training] = counted / n_samples
            self._counted += 1
        self._passed += 1
        self._seen[training] += 1
        self._flops += n_samples * self._each[training]

    def _enter(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        self._in_pass = samples_in(args, kwargs)
        self.n_samples += self._in_pass
        if model.training:
            self._in_step += self._in_pass


def _counting(model: nn.Module, passes: _Passes) -> Callable[[], None]:
    """Lets a network's `forward` count; returns what puts the former one back.

    Hooks would not do: none is called after a KeyboardInterrupt.
    """
    former, state, known = model.forward, vars(model), weakref.ref(passes)
    is_own = isinstance(former, MethodType) and former.__self__ is model
    function = cast(MethodType, former).__func__ if is_own else former

    @wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        found = None if torch.compiler.is_compiling() else known()
        if found is None or (is_own and args[0] is not model):  # a copy of the network
            return function(*args, **kwargs)
        return found.run(model.training, partial(function, *args, **kwargs))

    before = state.get("forward")
    mine = MethodType(counted, model) if is_own else counted  # a method: a deep copy of the network calls itself

    def put_back() -> None:
        if state.get("forward") is not mine:  # somebody else's stands over it
            return
        if before is None:
            del state["forward"]
        else:
            state["forward"] = before

    state["forward"] = mine
    return put_back


def _as_one(total: Footprint, like: Footprint) -> Footprint:
    """A sum without parts, named and placed like one of them."""
    total.name, total.parts = like.name, ()
    total.country, total.grid_intensity, total.pue, total.power = (
        like.country,
        like.grid_intensity,
        like.pue,
        like.power,
    )
    return total


def _of_all_processes(mine: Footprint, args: TrainingArguments) -> Footprint:
    """What the processes spent together, in the time of the slowest; RAPL counts a machine, not a process."""
    if args.local_process_index > 0:
        shared = [name for name, one in mine.energy.items() if one is not None and one.source.startswith("RAPL")]
        mine.set_energy({**mine.energy, **{name: Amount(0.0, "measured", "") for name in shared}})
    gathered: list[Any] = [None] * args.world_size
    torch.distributed.all_gather_object(gathered, mine.to_dict())
    found = [Footprint.from_dict(said) for said in gathered]
    total = _as_one(sum(found[1:], found[0]), mine)
    total.experiments, total.human_minutes = mine.experiments, mine.human_minutes
    total.wall_seconds = max((one.wall_seconds for one in found if one.wall_seconds), key=lambda one: one.value)
    return total


def _kept(state: TrainerState) -> dict[str, Any]:
    """What callbacks keep in checkpoints; Trainer has made a dictionary of the list that the type promises."""
    return cast(dict[str, Any], state.stateful_callbacks)
