"""The hooks that read a network's taps, pooled, in one forward pass."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hf_tl.embedding.pooling import pool
from hf_tl.embedding.taps import Tap
from hf_tl.errors import InputError
from hf_tl.trace import Batch, evaluating, first_float, forward, n_samples, uncompiled


class _AllRead(BaseException):
    """Ends a forward pass behind the last tap; no `except Exception` of the network's holds it up."""


class TapReader:
    """Runs a network and returns its taps, pooled; the hooks live inside the `with` block only.

    Each value is pooled the moment its module returns it, so nothing spatial is kept and an in-place operation
    that follows cannot change it. Where layers follow the last tap, the pass ends there. The network runs in eval mode
    under `torch.inference_mode`; afterwards every module has its own training flag again. Another thread that wants
    to read the same network waits.

        with TapReader(model, taps) as read:
            values = read(batch)        # (n, n_features) float32

    Args:
        model: the network.
        taps: from `find_taps` on the same network.
        torch_compile: whether the network runs through `torch.compile`, its hooks with it, and always to its end.
    """

    def __init__(self, model: nn.Module, taps: Sequence[Tap], *, torch_compile: bool = False):
        self.model = model
        self.taps = list(taps)
        self.n_features = sum(tap.n_features for tap in taps)
        self.torch_compile = torch_compile
        self._stops = not torch_compile and not any(tap.final for tap in taps)
        self._calls_of = {tap.reading.module: tap.calls for tap in taps if tap.name == tap.reading.module}
        self._stack = ExitStack()
        self._run: nn.Module = model
        self._thread: int | None = None  # of the call that is running

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
            if self.torch_compile:
                # A compiled network runs the hooks that it had when it was compiled, and silently no others.
                stack.enter_context(torch._dynamo.config.patch(skip_nnmodule_hook_guards=False))
                self._run = cast(nn.Module, torch.compile(self.model))
            else:
                stack.enter_context(uncompiled())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._run = self.model
        self._stack.close()

    def __call__(self, batch: Batch, *, out: Tensor | None = None) -> Tensor:
        """One forward pass: (n, n_features), in float32 (float64 for a float64 network) or as `out`.

        Args:
            batch: what the network is called with.
            out: (n or more, n_features) on the CPU, for the values; new memory costs more than copying into it. Not
                for a compiled network.

        Raises:
            InputError: a tap that was not reached, or came out in another shape than in the trace.
        """
        self._n = n_samples(batch)
        mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
        padded = mask is not None and mask.ndim == 2 and not bool(mask.all())
        self._mask = mask if padded else None
        self._calls: dict[tuple[str, str], int] = {}
        self._values = None if out is None else out[: self._n]
        self._memory = None if self._values is None else self._values.numpy()  # of the values, where numpy writes them
        self._unread = {tap.name for tap in self.taps}
        self._thread = threading.get_ident()
        try:
            with torch.inference_mode():
                forward(self._run, batch)
        except _AllRead:
            pass
        finally:
            self._thread = None
        if self._unread:
            missed = [tap.name for tap in self.taps if tap.name in self._unread]
            raise InputError(
                f"{len(missed)} of {len(self.taps)} layers did not run on this batch, the first {missed[0]!r}; "
                f"the network's path depends on its input: leave those layers out with taps=[...]"
            )
        for name, expected in self._calls_of.items():
            if self._calls.get((name, "output"), 0) > expected:
                raise InputError(
                    f"layer {name!r} ran {self._calls[name, 'output']} times on this batch and {expected} times on "
                    f"the example; the network's path depends on its input: leave it out with taps=[...]"
                )
        values, self._values, self._memory = self._values, None, None
        return cast(Tensor, values)  # every tap was read

    def _hook(
        self, module: nn.Module, key: tuple[str, str], calls: Mapping[int, list[tuple[Tap, int]]]
    ) -> RemovableHandle:
        def read(value: Tensor | None) -> None:
            if not self.torch_compile and self._thread != threading.get_ident():
                return  # the network runs for somebody else
            call = self._calls.get(key, 0)
            self._calls[key] = call + 1
            for tap, column in calls.get(call, ()):
                self._read(tap, column, value)
            if self._stops and not self._unread:
                raise _AllRead

        if key[1] == "input":
            return module.register_forward_pre_hook(
                lambda module, args, kwargs: read(first_float([args, kwargs])), with_kwargs=True
            )
        return module.register_forward_hook(lambda module, args, output: read(first_float(output)))

    def _read(self, tap: Tap, column: int, value: Tensor | None) -> None:
        if value is None:
            raise InputError(f"layer {tap.name!r} gave no numbers on this batch; leave it out with taps=[...]")
        try:
            pooled = pool(
                tap.reading.finish(value),
                n=self._n,
                channels_last=tap.channels_last,
                mask=self._mask,
                how=tap.pool,
                prefix=tap.prefix,
                strides=tap.strides,
            )
        except (ValueError, RuntimeError) as error:
            raise InputError(
                f"layer {tap.name!r} cannot be averaged per sample: {error}; "
                f"leave it out with taps=[...], or use batch_size=1"
            ) from error
        if self._values is None:
            self._values = pooled.new_empty(self._n, self.n_features)
            self._memory = None if self.torch_compile or pooled.device.type != "cpu" else self._values.numpy()
        columns = slice(column, column + tap.n_features)
        if self._memory is None:
            self._values[:, columns] = pooled
        else:  # numpy's copy does not wake torch's threads, which takes longer than to copy that little
            self._memory[:, columns] = pooled.numpy()
        self._unread.discard(tap.name)
