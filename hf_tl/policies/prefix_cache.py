"""The output of the frozen beginning of a network on each sample, kept on disk from the first epoch for all others.

A sample is known by its content, so that the dataset need not number its samples, and one that is augmented anew
simply misses. Nothing is taken for granted: the first batch goes through the network several times, to see that the
frozen part is deterministic and that the rest does the same on what is remembered; and the frozen weights are compared
with those of the step before.

Where a batch is known, the modules of the frozen part return tensors of the right shape, the last of them the
remembered one. What runs between modules still runs, on values that nobody reads.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from hf_tl.policies.cut import Cut, find_cuts, holds
from hf_tl.policies.plan import Plan
from hf_tl.trace import same_buffers


log = logging.getLogger(__name__)

NOT_READ = ("labels", "label", "label_ids", "start_positions", "end_positions", "num_items_in_batch")  # by the prefix
PATIENCE = 64  # samples after the first epoch before the hit rate counts


class PrefixCache:
    """Activations of the frozen prefix, by the content of samples; for `PolicyCallback(..., cache=PrefixCache())`.

    Args:
        folder: where the file goes; the system's folder for temporary files by default.
        dtype: torch.float16 or torch.bfloat16 to halve its size; that of the activations by default.
        share: the largest share of the free space on that disk that it may take.

    Attributes:
        hits: samples that were not computed since the phase began.
        lookups: samples that were looked for.
        off: why it does not work, "" if it does.
        cut: where the network is split; None before the first batch.
    """

    def __init__(self, *, folder: str | Path | None = None, dtype: torch.dtype | None = None, share: float = 0.8):
        self.folder, self.dtype, self.share = folder, dtype, share
        self.hits = self.lookups = 0
        self.off = "it has not begun"
        self.cut: Cut | None = None
        self._hooks = ExitStack()
        self._pass = ExitStack()  # of the forward pass that runs now
        self._store: _Store | None = None

    def begin(self, model: nn.Module, plan: Plan, *, n_samples: int, ranks: int = 1) -> None:
        """Works on this network from now on, forgetting what it knows.

        Args:
            model: the network.
            plan: what is frozen.
            n_samples: of the training set, which the file has to hold.
            ranks: processes among which samples are dealt out anew in each epoch.
        """
        self.end()
        self.n_samples, self.ranks = n_samples, ranks
        self.hits = self.lookups = 0
        self.cut, self.off, self._busy = None, "", False
        self._candidates = find_cuts(plan)
        self._weights: list[tuple] = []
        if not self._candidates:
            self._stop("no frozen, deterministic layer from which a single tensor passes on")
            return
        self._hooks.callback(model.register_forward_pre_hook(self._before, with_kwargs=True).remove)
        self._hooks.callback(model.register_forward_hook(self._after, always_call=True).remove)

    def end(self) -> None:
        """Takes the hooks away and removes the file."""
        self._hooks.close()
        self._pass.close()
        if self._store is not None:
            self._store.file.close()
        self._store = None

    def _stop(self, why: str) -> None:
        self.end()
        self.off = why
        log.warning("the prefix cache is off: %s", why)

    def _before(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        if self._busy or not model.training:
            return
        if self.cut is None:
            with self._without_side_effects(model):
                self.cut = next((cut for cut in self._candidates if holds(model, cut, args, kwargs)), None)
            if self.cut is None:
                self._stop("the frozen part draws random numbers, or more than one tensor passes on from it")
                return
        weights = self.cut.weights()
        if weights != self._weights:
            self._weights, self._store = weights, None
            self.hits = self.lookups = 0
        keys, signature = _keys(args, kwargs)
        known = [key in self._store.places for key in keys] if self._store is not None else []
        self.lookups += len(keys)
        self.hits += sum(known)
        if self._misses_too_often():
            return
        if self._store is not None and all(known) and signature in self._store.outputs:
            self.cut.outputs = self._store.outputs[signature]
            self._pass.enter_context(self.cut.replaying(self._store.read(keys)))
        else:
            self._pass.enter_context(self.cut.capturing())
            self._pass.callback(self._keep, keys, signature)

    def _after(self, model: nn.Module, args: tuple, output: Any) -> None:
        if not self._busy:
            self._pass.close()

    def _keep(self, keys: list[bytes], signature: tuple) -> None:
        """Writes what the pass that ends has captured."""
        assert self.cut is not None
        value, self.cut.captured = self.cut.captured, None
        if value is None:  # the pass failed on its way
            return
        if value.shape[0] != len(keys):
            self._stop(f"the tensor behind {self.cut.layer.name!r} does not have an entry for each sample")
            return
        try:
            self._store = self._store or self._open(value)
            self._store.write(keys, value)
        except (OSError, OverflowError) as error:
            self._stop(str(error))
            return
        self._store.outputs[signature] = self.cut.outputs

    def _open(self, value: Tensor) -> _Store:
        assert self.cut is not None
        dtype = self.dtype or value.dtype
        size = self.n_samples * value[0].numel() * dtype.itemsize
        folder = Path(self.folder or tempfile.gettempdir())
        free = shutil.disk_usage(folder).free
        if size > self.share * free:
            raise OSError(
                f"{self.n_samples:,} samples behind {self.cut.layer.name!r} need {size / 2**20:,.1f} MiB, and "
                f"{folder} has {free / 2**20:,.1f} MiB free; give PrefixCache another folder, or dtype=torch.float16"
            )
        log.info(
            "the prefix cache keeps %s samples behind %r, %.1f MiB", self.n_samples, self.cut.layer.name, size / 2**20
        )
        return _Store(tempfile.TemporaryFile(buffering=0, prefix="hf-tl-prefix-", dir=folder), value, dtype)

    def _misses_too_often(self) -> bool:
        """Whether samples that should be known are not: the first epoch is over, and less than half of them hit."""
        later = self.lookups - self.n_samples // self.ranks
        if later < PATIENCE or self.hits >= later * 0.5 / self.ranks:
            return False
        self._stop(
            f"{self.hits} of {later} samples after the first epoch were known; the inputs change from epoch to epoch, "
            f"by random augmentation or by padding to the batch"
        )
        return True

    @contextmanager
    def _without_side_effects(self, model: nn.Module) -> Iterator[None]:
        """Passes within leave no trace: not in buffers, not in random numbers."""
        devices = sorted({p.device.index for p in model.parameters() if p.is_cuda})
        self._busy = True
        try:
            with torch.random.fork_rng(devices), torch.no_grad(), same_buffers(model):
                yield
        finally:
            self._busy = False


class _Store:
    """A file of activations, one sample after the other.

    Plain writes: where the disk is full, they fail with a sentence, and memory-mapped ones by SIGBUS.

    Attributes:
        places: number of each sample that is known.
        outputs: what the modules of the frozen part returned, by the shapes of the inputs; see `Cut`.
    """

    def __init__(self, file: BinaryIO, value: Tensor, dtype: torch.dtype):
        self.file, self.dtype, self.shape = file, dtype, tuple(value.shape[1:])
        self.original, self.device = value.dtype, value.device
        self.places: dict[bytes, int] = {}
        self.outputs: dict[tuple, list] = {}

    def write(self, keys: Sequence[bytes], value: Tensor) -> None:
        """Adds the samples that are new; those of another shape are left out."""
        if tuple(value.shape[1:]) != self.shape:
            return
        kept = value.to(self.dtype)
        if not torch.equal(kept.isfinite(), value.isfinite()):
            raise OverflowError(
                f"activations of up to {value.abs().max().item():.3g} overflow {self.dtype}; "
                f"use dtype=torch.bfloat16, or leave it out"
            )
        for key, entry in zip(keys, kept.cpu(), strict=True):
            if key not in self.places:
                data = _bytes(entry)
                self.file.seek(len(self.places) * len(data))
                if (self.file.write(data) or 0) < len(data):
                    raise OSError("the disk is full; give PrefixCache another folder")
                self.places[key] = len(self.places)

    def read(self, keys: Sequence[bytes]) -> Tensor:
        """The activations of some samples: (samples, ...)."""
        value = torch.empty((len(keys), *self.shape), dtype=self.dtype)
        for key, entry in zip(keys, value, strict=True):
            data = _bytes(entry)
            self.file.seek(self.places[key] * len(data))
            self.file.readinto(data)  # type: ignore[attr-defined]  # of every raw file, though BinaryIO has it not
        return value.to(self.device, self.original)


def _keys(args: tuple, kwargs: Mapping[str, Any]) -> tuple[list[bytes], tuple]:
    """A digest of each sample of the inputs, and the shapes of all inputs."""
    named = [(str(i), value) for i, value in enumerate(args)]
    named += [(name, value) for name, value in sorted(kwargs.items()) if name not in NOT_READ]
    tensors = [(name, value.detach().cpu().contiguous()) for name, value in named if isinstance(value, Tensor)]
    n = next((value.shape[0] for _, value in tensors if value.ndim), 0)
    rest = repr([(name, value) for name, value in named if not isinstance(value, Tensor)])
    signature = (rest, *((name, tuple(value.shape), value.dtype) for name, value in tensors))
    common = hashlib.sha256(repr((rest, [(name, value.shape[1:], value.dtype) for name, value in tensors])).encode())
    per_sample = [value for _, value in tensors if value.ndim and value.shape[0] == n]
    for value in (value for _, value in tensors if not value.ndim or value.shape[0] != n):
        common.update(_bytes(value))
    keys = []
    for i in range(n):
        digest = common.copy()
        for value in per_sample:
            digest.update(_bytes(value[i]))
        keys.append(digest.digest()[:16])
    return keys, signature


def _bytes(value: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    return value.detach().reshape(-1).view(torch.uint8).numpy().data
