"""Which values of a network are read, and the hooks that read them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hf_tl.embedding.pooling import pool
from hf_tl.errors import InputError, in_one_line
from hf_tl.layers import head_names, is_inside, match_names
from hf_tl.models import Network
from hf_tl.trace import (
    Batch,
    Reading,
    Trace,
    evaluating,
    first_float,
    forward,
    is_fully_connected,
    trace,
)


LAST = "last"  # the name of the tap on what the classifier reads

Selection = str | Sequence[str]
"""Which taps: "auto" (every convolution and fully connected layer), "last" (what the classifier reads), or glob
patterns over layer names, such as ["blocks.1*", "last"]."""


@dataclass(frozen=True)
class Tap:
    """One value that is read in each forward pass.

    Attributes:
        name: the layer's name, with "#2" for its second call in a pass and so on; "last" for the classifier's input.
        depth: 0 for the first tap to be reached, 1 for the last.
        reading: where the value is read.
        n_features: its number of channels.
        channels_last: whether channels are its last axis.
        chain: what stands between the layer's own output and the value: a norm, an activation, both or nothing.
    """

    name: str
    depth: float
    reading: Reading
    n_features: int
    channels_last: bool
    chain: tuple[str, ...] = ()


def find_taps(
    network: Network, example: Batch, *, activation: Literal["after", "before"]
) -> tuple[list[Tap], dict[str, str]]:
    """Every convolution and fully connected layer outside the classifier, in execution order, and the tap "last".

    Args:
        network: any network.
        example: a batch of two rows or more.
        activation: whether a layer is read after its norm and activation, or its own output before them.

    Returns:
        The taps, and the layers that are left out: name -> reason.

    Raises:
        InputError: the network cannot run on the example.
    """
    rows = n_rows(example)
    try:
        record = trace(network.model, example)
    except Exception as error:  # the network is the user's, and so are its errors
        raise InputError(
            f"{network.name} cannot run on its prepared inputs, {_shapes(example)}: {in_one_line(error)}; "
            f"check the image size and what prepares the inputs"
        ) from error
    heads = head_names(network.model, record)
    taps, left_out = [], {}
    repeated = Counter(layer.name for layer in record.layers)
    for layer in record.layers:
        name = layer.name if repeated[layer.name] == 1 else f"{layer.name}#{layer.call + 1}"
        if is_inside(layer.name, heads):
            left_out[name] = "the classifier of the source task"
        elif is_inside(layer.name, network.untrained):
            left_out[name] = "its weights are not in the checkpoint"
        elif not layer.shape or layer.shape[0] % rows:
            left_out[name] = f"its output {layer.shape} does not have the batch's {rows} rows first"
        else:
            channels_last = is_fully_connected(layer.module)
            reading = layer.after if activation == "after" else layer.before
            chain = layer.chain if activation == "after" else ()
            taps.append(Tap(name, 0.0, reading, layer.shape[-1 if channels_last else 1], channels_last, chain))
    deepest = max(len(taps) - 1, 1)
    taps = [replace(tap, depth=i / deepest) for i, tap in enumerate(taps)]
    last = _last_tap(record, heads, rows)
    return ([*taps, last] if last is not None else taps), left_out


def select_names(names: Sequence[str], taps: Selection, top: float = 1.0) -> list[str]:
    """The tap names that a selection keeps, in the order of `names`.

    Args:
        names: tap names from data to task.
        taps: see `Selection`.
        top: the share of the selected taps to keep, counted from the task side, rounded down, at least one.

    Raises:
        InputError: a pattern that matches nothing, or a share outside (0, 1].
    """
    if not 0 < top <= 1:
        raise InputError(f"top must be above 0 and at most 1, the share of layers to keep, got {top}")
    kept: set[str] = set()
    for pattern in [taps] if isinstance(taps, str) else taps:
        if pattern == "auto":
            kept.update(name for name in names if name != LAST)
        else:
            kept.update(match_names([pattern], names if pattern == LAST else [n for n in names if n != LAST]))
    chosen = [name for name in names if name in kept]
    if not chosen:
        raise InputError(f"taps={taps!r} selects none of the {len(names)} layers of the network")
    return chosen[-max(1, int(top * len(chosen))) :]


class TapReader:
    """Runs a network and returns its taps, pooled; the hooks live inside the `with` block only.

    Each value is pooled the moment its module returns it, so nothing spatial is kept and an in-place operation
    that follows cannot change it. The network runs in eval mode under `torch.inference_mode`; afterwards every
    module has its own training flag again.

        with TapReader(model, taps) as read:
            values = read(batch)        # (rows, n_features) float32
    """

    def __init__(self, model: nn.Module, taps: Sequence[Tap]):
        self.model = model
        self.taps = list(taps)
        self.n_features = sum(tap.n_features for tap in taps)
        self._stack = ExitStack()

    def __enter__(self) -> TapReader:
        modules = dict(self.model.named_modules())
        wanted: dict[tuple[str, str], dict[int, list[tuple[Tap, int]]]] = defaultdict(lambda: defaultdict(list))
        column = 0
        for tap in self.taps:
            wanted[tap.reading.module, tap.reading.side][tap.reading.call].append((tap, column))
            column += tap.n_features
        with self._stack as stack:  # whatever fails below, what was registered is removed
            stack.enter_context(evaluating(self.model))
            for (name, side), calls in wanted.items():
                stack.callback(self._hook(modules[name], (name, side), calls).remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception) -> None:
        self._stack.close()

    def __call__(self, batch: Batch) -> Tensor:
        """One forward pass: (rows, n_features), in float32 (float64 for a float64 network).

        Raises:
            InputError: a tap that was not reached, or came out in another shape than in the trace.
        """
        self._rows = n_rows(batch)
        mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
        self._mask = mask if mask is not None and mask.ndim == 2 else None
        self._calls: Counter[tuple[str, str]] = Counter()
        self._values: Tensor | None = None
        self._unread = {tap.name for tap in self.taps}
        with torch.inference_mode():
            forward(self.model, batch)
        if self._unread:
            missed = [tap.name for tap in self.taps if tap.name in self._unread]
            raise InputError(
                f"{len(missed)} of {len(self.taps)} layers did not run on this batch, the first {missed[0]!r}; "
                f"the network's path depends on its input: leave those layers out with taps=[...]"
            )
        values, self._values = self._values, None
        return values

    def _hook(
        self, module: nn.Module, key: tuple[str, str], calls: Mapping[int, list[tuple[Tap, int]]]
    ) -> RemovableHandle:
        def read(value: Tensor | None) -> None:
            call = self._calls[key]
            self._calls[key] += 1
            for tap, column in calls.get(call, ()):
                self._read(tap, column, value)

        if key[1] == "input":
            return module.register_forward_pre_hook(
                lambda module, args, kwargs: read(first_float([args, kwargs])), with_kwargs=True
            )
        return module.register_forward_hook(lambda module, args, output: read(first_float(output)))

    def _read(self, tap: Tap, column: int, value: Tensor) -> None:
        try:
            pooled = pool(tap.reading.finish(value), rows=self._rows, channels_last=tap.channels_last, mask=self._mask)
        except (ValueError, RuntimeError) as error:
            raise InputError(
                f"layer {tap.name!r} cannot be averaged per row: {error}; "
                f"leave it out with taps=[...], or use batch_size=1"
            ) from error
        if self._values is None:
            self._values = pooled.new_empty(self._rows, self.n_features)
        self._values[:, column : column + tap.n_features] = pooled
        self._unread.discard(tap.name)


def n_rows(batch: Batch) -> int:
    """Number of rows of a batch: the length of its first tensor."""
    return len(batch) if isinstance(batch, Tensor) else len(next(iter(batch.values())))


def _shapes(batch: Batch) -> str:
    parts = {"input": batch} if isinstance(batch, Tensor) else batch
    return ", ".join(f"{name} {tuple(value.shape)}" for name, value in parts.items())


def _last_tap(record: Trace, heads: Sequence[str], rows: int) -> Tap | None:
    """What the classifier reads; where there is no classifier, what the network returns."""
    if heads:
        reading, shape = Reading(heads[0], 0, side="input"), record.given.get(heads[0])
    else:
        reading, shape = Reading("", 0), None if record.output is None else tuple(record.output.shape)
    if shape is None or len(shape) < 2 or shape[0] != rows:
        return None
    channels_last = len(shape) != 4
    return Tap(LAST, 1.0, reading, shape[-1 if channels_last else 1], channels_last)
