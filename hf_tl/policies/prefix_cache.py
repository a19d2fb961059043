"""What the frozen beginning of a network makes of each row, kept on disk from the first epoch for all others.

A row is known by its content, so that the dataset need not number its rows, and a row that is augmented anew simply
misses. Nothing is taken for granted: the first batch goes through the network several times, to see that the frozen
part is deterministic and that the rest does the same on what is remembered.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hf_tl.policies.plan import Plan
from hf_tl.policies.replay import Cut, cuts, same


log = logging.getLogger(__name__)

NOT_READ = ("labels", "label", "label_ids", "start_positions", "end_positions", "num_items_in_batch")  # by the prefix
PATIENCE = 64  # rows after the first epoch before the share of hits is judged


class PrefixCache:
    """Activations of the frozen prefix, by the content of rows; for `PolicyCallback(..., cache=PrefixCache())`.

    Args:
        folder: where the file goes; the system's folder for temporary files by default.
        dtype: torch.float16 or torch.bfloat16 to halve its size; that of the activations by default.
        share: the largest share of the free space on that disk that it may take.

    Attributes:
        hits: rows that were not computed since the phase began.
        lookups: rows that were looked for.
        off: why it does not work, "" if it does.
        cut: where the network is cut; None before the first batch.
    """

    def __init__(self, *, folder: str | Path | None = None, dtype: torch.dtype | None = None, share: float = 0.8):
        self.folder, self.dtype, self.share = folder, dtype, share
        self.hits = self.lookups = 0
        self.off = "it has not begun"
        self.cut: Cut | None = None
        self._handles: list = []
        self._end: Callable[[], None] | None = None
        self._home: tempfile.TemporaryDirectory | None = None

    def begin(self, model: nn.Module, plan: Plan, *, rows: int, ranks: int = 1) -> None:
        """Works on this network from now on, forgetting what it knows.

        Args:
            model: the network.
            plan: what is frozen.
            rows: of the training set, which the file has to hold.
            ranks: processes among which rows are dealt out anew in each epoch.
        """
        self.end()
        self.rows, self.ranks, self.candidates = rows, ranks, cuts(model, plan)
        self.hits = self.lookups = 0
        self.index: dict[bytes, int] = {}
        self.store: Tensor | None = None
        self.cut, self.off, self._busy, self._version = None, "", False, -1
        if not self.candidates:
            self._stop("no frozen, deterministic layer from which a single tensor passes on")
            return
        self._handles = [
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            model.register_forward_hook(self._after, always_call=True),
        ]

    def end(self) -> None:
        """Takes the hooks away and removes the file."""
        for handle in self._handles:
            handle.remove()
        if self._end is not None:
            self._end()
        self._handles, self._end, self.store, self._pending = [], None, None, None
        if self._home is not None:
            self._home.cleanup()
            self._home = None

    def _stop(self, why: str) -> None:
        self.end()
        self.off = why
        log.warning("the prefix cache is off: %s", why)

    def _before(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        if self._busy or not model.training:
            return
        if self.cut is None:
            with self._unseen(model):
                self.cut = next((cut for cut in self.candidates if self._holds(model, cut, args, kwargs)), None)
            if self.cut is None:
                self._stop("the frozen part draws random numbers, or more than one tensor passes on from it")
                return
        version = self.cut.version()
        if version != self._version:  # other weights were loaded
            self.index, self.hits, self.lookups, self._version = {}, 0, 0, version
        keys, signature = _keys(args, kwargs)
        self.lookups += len(keys)
        found = [self.index.get(key) for key in keys]
        known = [place for place in found if place is not None]
        self.hits += len(known)
        if self._disappoints():
            return
        if len(known) == len(keys) and signature in self._outputs:
            self.cut.outputs = self._outputs[signature]
            value = self.store[torch.tensor(found)].to(self._device, self._dtype)
            self._end = self.cut.replay(value)
        else:
            capture = self.cut.capturing()
            capture.__enter__()
            self._pending = (keys, signature)
            self._end = lambda: capture.__exit__(None, None, None)

    def _after(self, model: nn.Module, args: tuple, output: Any) -> None:
        if self._busy or self._end is None:
            return
        self._end()
        pending, self._end, self._pending = self._pending, None, None
        if pending is not None and self.cut.captured is not None:
            self._remember(*pending)

    def _remember(self, keys: list[bytes], signature: tuple) -> None:
        value, self.cut.captured = self.cut.captured, None
        if value.shape[0] != len(keys):
            self._stop(f"the tensor behind {self.cut.layer.name!r} does not have a row for each input")
            return
        if self.store is None and not self._open(value):
            return
        if tuple(value.shape[1:]) != tuple(self.store.shape[1:]):
            return
        self._outputs[signature] = self.cut.outputs
        for key, row in zip(keys, value, strict=True):
            if key not in self.index and len(self.index) < len(self.store):
                self.store[len(self.index)] = row.to(self.store.dtype)
                self.index[key] = len(self.index)

    def _open(self, value: Tensor) -> bool:
        self._device, self._dtype, self._outputs = value.device, value.dtype, {}
        dtype = self.dtype or value.dtype
        numel = self.rows * value[0].numel()
        size = numel * dtype.itemsize
        folder = Path(self.folder or tempfile.gettempdir())
        free = shutil.disk_usage(folder).free
        if size > self.share * free:
            self._stop(
                f"{self.rows:,} rows behind {self.cut.layer.name!r} need {size / 2**20:,.1f} MiB, and {folder} has "
                f"{free / 2**20:,.1f} MiB free; give PrefixCache another folder, or dtype=torch.float16"
            )
            return False
        self._home = tempfile.TemporaryDirectory(prefix="hf-tl-prefix-", dir=folder)
        path = str(Path(self._home.name) / "activations")
        self.store = torch.from_file(path, shared=True, size=numel, dtype=dtype).view(self.rows, *value.shape[1:])
        log.info("the prefix cache keeps %s rows behind %r, %.1f MiB", self.rows, self.cut.layer.name, size / 2**20)
        return True

    def _disappoints(self) -> bool:
        """Whether rows that should be known are not: the first epoch is over, and less than half of them hit."""
        later = self.lookups - self.rows // self.ranks
        if later < PATIENCE or self.hits >= later * 0.5 / self.ranks:
            return False
        self._stop(
            f"{self.hits} of {later} rows after the first epoch were known; the inputs change from epoch to epoch, "
            f"by random augmentation or by padding to the batch"
        )
        return True

    @contextmanager
    def _unseen(self, model: nn.Module) -> Iterator[None]:
        """Passes within leave no trace: not in buffers, not in random numbers."""
        buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        devices = sorted({p.device.index for p in model.parameters() if p.is_cuda})
        self._busy = True
        try:
            with torch.random.fork_rng(devices), torch.no_grad():
                yield
        finally:
            self._busy = False
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)

    def _holds(self, model: nn.Module, cut: Cut, args: tuple, kwargs: dict) -> bool:
        """Whether the network, cut here, does the same: with other random numbers before, with the same after."""
        buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        outputs, values = [], []
        for seed in (0, 1):
            torch.manual_seed(seed)
            try:
                with cut.capturing():
                    outputs.append(model(*args, **kwargs))
            except NotImplementedError:
                return False
            values.append(cut.captured)
            for buffer, value in buffers:
                buffer.copy_(value)
        if values[0] is None or not torch.equal(*values):
            return False
        rolled = [_roll(value) for value in args], {name: _roll(value) for name, value in kwargs.items()}
        model(*rolled[0], **rolled[1])  # what a frozen module has left in an attribute is of other rows now
        for buffer, value in buffers:
            buffer.copy_(value)
        torch.manual_seed(0)
        end = cut.replay(values[0].clone())
        try:
            again = model(*args, **kwargs)
        finally:
            end()
        return same(outputs[0], again)


def _roll(value: Any) -> Any:
    return value.roll(1, 0) if isinstance(value, Tensor) and value.ndim else value


def _keys(args: tuple, kwargs: Mapping[str, Any]) -> tuple[list[bytes], tuple]:
    """A digest of each row of the inputs, and the shapes of all inputs."""
    named = [(str(i), value) for i, value in enumerate(args)]
    named += [(name, value) for name, value in sorted(kwargs.items()) if name not in NOT_READ]
    tensors = [(name, value.detach().cpu().contiguous()) for name, value in named if isinstance(value, Tensor)]
    rows = next((value.shape[0] for _, value in tensors if value.ndim), 0)
    rest = repr([(name, value) for name, value in named if not isinstance(value, Tensor)])
    signature = (rest, *((name, tuple(value.shape), value.dtype) for name, value in tensors))
    common = hashlib.sha256(repr((rest, [(n, tuple(v.shape[1:]), v.dtype) for n, v in tensors])).encode())
    whole = [value for _, value in tensors if value.ndim == 0 or value.shape[0] != rows]
    for value in whole:
        common.update(_bytes(value))
    keys = []
    for i in range(rows):
        digest = common.copy()
        for _, value in tensors:
            if value.ndim and value.shape[0] == rows:
                digest.update(_bytes(value[i]))
        keys.append(digest.digest()[:16])
    return keys, signature


def _bytes(value: Tensor) -> memoryview:
    return memoryview(value.contiguous().reshape(-1).view(torch.uint8).numpy())
