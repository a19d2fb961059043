"""The footprint of a Trainer's training in one line: `Trainer(..., callbacks=[FootprintCallback(country="ESP")])`."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode
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

    Trainer tells no callback of an error. A forward pass that fails ends the counting itself; after any other error it
    ends with the next pass or training of the network, and with the Trainer.

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
        self._passes = _Passes(kwargs["model"])

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Counts the operations of some steps."""
        if self._passes is not None:
            self._passes.begin_step()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ends the counting: all gradients are there."""
        if self._passes is not None:
            self._passes.stop_counting()

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
        if self._passes is not None:
            self._passes.close()
        if self._running is not None:
            self._running.__exit__()
        self._running = self._passes = None

    def __del__(self) -> None:  # the thread that looks at the memory would go on
        if getattr(self, "_running", None) is not None:
            self._stop()


class _Passes:
    """The samples that go through a network, and the operations that this takes."""

    def __init__(self, model: nn.Module):
        self.n_samples = 0
        self._flops = 0.0
        self._seen = {True: 0, False: 0}  # passes, in training and in evaluation
        self._each = {True: 0.0, False: 0.0}  # operations a sample, in the last pass that was counted
        self._in_step = 0
        self._counted = self._passed = 0
        self._due = False
        self._counter: FlopCounter | None = None  # on from the first forward pass of a step to its last backward pass
        self._found: int | None = None  # operations of the step that was counted
        self._evaluation = ExitStack()
        self._hooks = [
            model.register_forward_pre_hook(self._enter, with_kwargs=True),
            model.register_forward_hook(self._leave, always_call=True),
        ]

    def amount(self) -> Amount:
        """The operations so far."""
        if self._counted == self._passed:
            return Amount(self._flops, "measured", "counted by operation")
        return Amount(self._flops, "estimated", f"counted in {self._counted} of {self._passed} steps")

    def begin_step(self) -> None:
        self.end_step()
        self._due = self._is_due(training=True)

    def stop_counting(self) -> None:
        """What the counter has found is kept for the end of the step."""
        if self._counter is not None:
            if _get_current_dispatch_mode() is self._counter:  # not so in another thread
                self._counter.__exit__(None, None, None)
            self._found, self._counter = self._counter.total, None

    def end_step(self) -> None:
        self.stop_counting()
        if self._in_step:
            self._book(self._in_step, self._found, training=True)
        self._in_step, self._found, self._due = 0, None, False

    def close(self) -> None:
        self.end_step()
        self._evaluation.close()
        for hook in self._hooks:
            hook.remove()

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
        n = samples_in(args, kwargs)
        self._evaluation.close()  # of a pass that was interrupted
        self.n_samples += n
        if model.training:
            self._in_step += n
            if self._due and self._counter is None:
                self._counter = FlopCounter()
                self._counter.__enter__()
            return
        self.stop_counting()  # of a step that failed
        due, counter = self._is_due(training=False), FlopCounter()
        self._evaluation.callback(lambda: self._book(n, counter.total if due else None, training=False) if n else None)
        if due:
            self._evaluation.enter_context(counter)

    def _leave(self, model: nn.Module, args: tuple, output: object) -> None:
        self._evaluation.close()
        if output is None:  # it raised
            self.stop_counting()


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
