"""Whether channels last and bfloat16 are faster here: a network's own steps on a few samples, timed in turn."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hf_tl.errors import InputError, in_one_line
from hf_tl.files import parse_json, read_untrusted, write_once
from hf_tl.trace import Batch, evaluating, first_float, forward, n_samples, same_buffers


if TYPE_CHECKING:
    from transformers import TrainingArguments

Way = tuple[bool, bool]
"""Whether channels are last, and whether it computes in bfloat16."""

FASTER = 0.9  # the share of the time from which another way is taken; above, the difference is noise, or not felt
SAMPLES, ROUNDS, SECONDS = 8, 5, 4.0  # of a measurement: no round is begun after so many seconds
LARGEST = 10_000  # bytes of a file


@dataclass(frozen=True)
class Acceleration:
    """How a network runs fastest on this machine.

    Attributes:
        channels_last: whether the weights of convolutions are laid out with channels last.
        bf16: whether it computes in bfloat16: under `torch.autocast` where it is trained.
        milliseconds: of a sample, for each way that was tried; empty where nothing was measured.
    """

    channels_last: bool
    bf16: bool
    milliseconds: tuple[tuple[Way, float], ...] = ()

    def apply(self, model: nn.Module, arguments: TrainingArguments | None = None) -> None:
        """Lays a network out, and has the Trainer that is built next compute in bfloat16 where that was chosen.

        Args:
            model: in place; its values stay.
            arguments: of the Trainer; a precision that they ask for stays.
        """
        set_layout(model, channels_last=self.channels_last)
        if arguments is not None and self.bf16:
            use_bf16(arguments)

    def save(self, path: Path) -> Acceleration:
        """Writes a JSON file, unless there is one; what it says from then on, to every process that asks."""
        rows = [[*way, ms] for way, ms in self.milliseconds]
        write_once(path, {"channels_last": self.channels_last, "bf16": self.bf16, "milliseconds": rows})
        return self.load(path)

    @classmethod
    def load(cls, path: Path) -> Acceleration:
        """That of a file.

        Raises:
            FileNotFoundError: there is none.
            InputError: it is none of `save`.
        """
        said = parse_json(read_untrusted(path, largest=LARGEST), path)
        try:
            rows = tuple(((bool(last), bool(bf16)), float(ms)) for last, bf16, ms in said["milliseconds"])
            return cls(said["channels_last"] is True, said["bf16"] is True, rows)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{str(path)!r} says of no acceleration: {in_one_line(error)}; delete it") from error

    def __str__(self) -> str:
        """What was chosen and what was measured, in one line."""
        chosen, times = (self.channels_last, self.bf16), dict(self.milliseconds)
        if chosen not in times:
            return f"{_in_words(chosen)}, unmeasured"
        others = ", ".join(f"{_in_words(way)}: {ms:.3g}" for way, ms in times.items() if way != chosen)
        return f"{_in_words(chosen)}: {times[chosen]:.3g} ms a sample" + (f" ({others})" if others else "")


def measure_acceleration(
    model: nn.Module, batch: Batch, *, train: bool, bf16: bool | None = None, channels_last: bool | None = None
) -> Acceleration:
    """What is fastest: float32 with channels first, unless another way takes less than 90 % of the time.

    Steps of each way in turn, a few seconds in all where a step takes less than one. Weights, gradients, statistics,
    modes, random numbers and the layout are afterwards as they were.

    Args:
        model: on the device that it is to run on.
        batch: of a few samples, on that device; to train, with labels where the network takes them.
        train: whether steps go backward too.
        bf16: the precision, bfloat16 under `torch.autocast` to train, else in a copy; None to try both.
        channels_last: the layout; None to try both where there are convolutions.
    """
    convolutions = any(isinstance(module, nn.Conv2d) for module in model.modules())
    layouts = [channels_last] if channels_last is not None else [False, True] if convolutions else [False]
    ways = [(layout, precision) for precision in ([False, True] if bf16 is None else [bf16]) for layout in layouts]
    times: dict[Way, list[float]] = {way: [] for way in ways}
    begun = time.perf_counter()
    lower = model if train or bf16 is False else copy.deepcopy(model).to(torch.bfloat16)
    models = {False: (model, batch), True: (lower, batch if train else _as_bfloat16(batch))}
    with _undone(model, train=train), torch.set_grad_enabled(train):
        lower.train(train)
        for _ in range(ROUNDS):
            for way in list(times):
                stepped, inputs = models[way[1]]
                set_layout(stepped, channels_last=way[0])
                try:
                    _step(stepped, inputs, autocast=train and way[1])  # warms up
                    times[way].append(_step(stepped, inputs, autocast=train and way[1]))
                except RuntimeError:  # an operator that there is not in bfloat16
                    if way[1] == ways[0][1]:
                        raise
                    del times[way]
            if time.perf_counter() - begun > SECONDS:
                break
    n = n_samples(batch)
    medians = {way: statistics.median(seconds) for way, seconds in times.items()}
    return Acceleration(*_fastest(medians), tuple((way, 1000 * value / n) for way, value in medians.items()))


def use_bf16(arguments: TrainingArguments) -> None:
    """Has the Trainer that is built next compute in bfloat16, on a CPU too, where `bf16=True` asks for `use_cpu`."""
    arguments.bf16, arguments.mixed_precision = True, "bf16"  # the latter is what __init__ makes of the former


def set_layout(model: nn.Module, *, channels_last: bool) -> None:
    """Lays the weights of convolutions out, in place; others may be of a kind that is not to be touched."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _fastest(seconds: Mapping[Way, float]) -> Way:
    """Of each precision the faster layout, then of those the faster one; float32 and channels first if in doubt."""
    best: list[Way] = []
    for precision in sorted({way[1] for way in seconds}):
        ways = sorted(way for way in seconds if way[1] == precision)
        best.append(ways[-1] if seconds[ways[-1]] < FASTER * seconds[ways[0]] else ways[0])
    return best[-1] if seconds[best[-1]] < FASTER * seconds[best[0]] else best[0]


def _as_bfloat16(batch: Batch) -> Batch:
    def cast(value: Tensor) -> Tensor:
        return value.to(torch.bfloat16) if isinstance(value, Tensor) and value.is_floating_point() else value

    return cast(batch) if isinstance(batch, Tensor) else {name: cast(value) for name, value in batch.items()}


def _step(model: nn.Module, batch: Batch, *, autocast: bool) -> float:
    """Seconds of a step: forward, and backward where gradients are on."""
    device = next(model.parameters()).device
    begun = time.perf_counter()
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        output = forward(model, batch)
        loss = getattr(output, "loss", None)
        if loss is None and (value := first_float(output)) is not None:
            loss = value.square().mean()
    if loss is not None and loss.requires_grad:
        loss.backward()
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - begun


@contextmanager
def _undone(model: nn.Module, *, train: bool) -> Iterator[None]:
    """Training or eval mode inside; on the way out everything is as it was, but for time."""
    device, last = next(model.parameters()).device, _is_channels_last(model)
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    untouched = torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type)
    with untouched, evaluating(model), same_buffers(model):
        model.train(train)
        for parameter, _ in gradients:
            parameter.grad = None
        try:
            yield
        finally:
            set_layout(model, channels_last=last)
            for parameter, gradient in gradients:
                parameter.grad = gradient


def _in_words(way: Way) -> str:
    return f"channels {'last' if way[0] else 'first'}, {'bfloat16' if way[1] else 'float32'}"


def _is_channels_last(model: nn.Module) -> bool:
    """Whether a kernel larger than one pixel is laid out so: others look like both."""
    kernels = (module.weight for module in model.modules() if isinstance(module, nn.Conv2d))
    return any(w.is_contiguous(memory_format=torch.channels_last) and not w.is_contiguous() for w in kernels)
