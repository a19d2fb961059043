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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from hf_tl.layers import Layer
from hf_tl.policies.plan import Plan
from hf_tl.trace import first_float


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
                self.cut = next((cut for cut in self._candidates if _holds(model, cut, args, kwargs)), None)
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
            with torch.random.fork_rng(devices), torch.no_grad(), _same_buffers(model):
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


@dataclass(frozen=True)
class Blank:
    """The place of a tensor in what a module returned."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


@dataclass
class Cut:
    """A place at which a network can be split, since one tensor is all that passes.

    Attributes:
        layer: the last layer before it.
        modules: those that need not run, in execution order; the last returns the tensor.
        outputs: what they returned in the pass that was captured, tensors left blank.
        captured: the tensor that passed.
    """

    layer: Layer
    modules: tuple[nn.Module, ...]
    outputs: list[Any] = field(default_factory=list)
    captured: Tensor | None = None

    def weights(self) -> list[tuple]:
        """What changes with the weights before the cut, in whatever way they are written."""
        every = (tensor for module in self.modules for tensor in (*module.parameters(), *module.buffers()))
        tensors = [tensor for tensor in every if tensor.numel()]
        sums = torch.stack([_weighted_sum(tensor) for tensor in tensors]).tolist()
        return [(tensor.data_ptr(), tensor._version, own) for tensor, own in zip(tensors, sums, strict=True)]

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """Within, a pass of the network leaves what its modules return here."""
        self.outputs, self.captured = [None] * len(self.modules), None

        def keep(i: int) -> Callable:
            def hook(module: nn.Module, args: tuple, output: Any) -> None:
                self.outputs[i] = _blank(output)
                if i == len(self.modules) - 1:
                    found = first_float(output)
                    self.captured = None if found is None else found.detach().clone()

            return hook

        with ExitStack() as stack:
            for i, module in enumerate(self.modules):
                stack.callback(module.register_forward_hook(keep(i)).remove)
            yield

    @contextmanager
    def replaying(self, value: Tensor) -> Iterator[None]:
        """Within, the modules return what they returned, and the last of them `value`."""
        own = [vars(module).get("forward") for module in self.modules]  # accelerate's hooks leave one there
        for i, module in enumerate(self.modules):
            put = [value] if i == len(self.modules) - 1 else []
            module.forward = _returning(self.outputs[i], put)
        try:
            yield
        finally:
            for module, forward in zip(self.modules, own, strict=True):
                del module.forward
                if forward is not None:
                    module.forward = forward


def find_cuts(plan: Plan) -> list[Cut]:
    """The cuts behind layers that are frozen and draw no random numbers, the deepest first."""
    found: list[Cut] = []
    modules: list[nn.Module] = []
    for setting in plan.settings:
        layer = setting.layer
        steady = setting.norm == "eval" and setting.dropout == "off"
        if plan.tunes(layer) or setting.trains or not steady or layer.calls > 1:
            break
        own = [module for _, module in layer.modules if next(module.parameters(), None) is not None]
        modules += own
        if layer.split_point and own:
            found.insert(0, Cut(layer, tuple(modules)))
    return found


def _holds(model: nn.Module, cut: Cut, args: tuple, kwargs: dict) -> bool:
    """Whether the network, split here, does the same: with other random numbers before, with the same after."""

    def run(seed: int, rows: Callable[[Any], Any] = lambda value: value) -> Any:
        torch.manual_seed(seed)
        with _same_buffers(model):
            return model(*map(rows, args), **{name: rows(value) for name, value in kwargs.items()})

    outputs, values = [], []
    for seed in (0, 1):
        try:
            with cut.capturing():
                outputs.append(run(seed))
        except NotImplementedError:
            return False
        values.append(cut.captured)
    first, second = values
    if first is None or second is None or not torch.equal(first, second):
        return False
    run(0, _rolled)  # what a frozen module has left in an attribute is of other samples now
    with cut.replaying(first.clone()):
        return _same(outputs[0], run(0))


@contextmanager
def _same_buffers(model: nn.Module) -> Iterator[None]:
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)


def _rolled(value: Any) -> Any:
    return value.roll(1, 0) if isinstance(value, Tensor) and value.ndim else value


def _same(one: Any, other: Any) -> bool:
    """Whether two outputs of a network hold the same tensors, bit for bit."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, Sequence) and not isinstance(one, str):
        return len(one) == len(other) and all(_same(*pair) for pair in zip(one, other, strict=True))
    return True


def _weighted_sum(tensor: Tensor) -> Tensor:
    """A number that any change of the entries moves, an exchange of two as well; one read of the memory."""
    matrix = tensor.detach().reshape(tensor.shape[0] if tensor.ndim else 1, -1)
    matrix = matrix.float()
    rows, columns = (1 + torch.arange(n, device=tensor.device).remainder(997).cos() for n in matrix.shape)
    return matrix @ columns @ rows


def _blank(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Blank(tuple(value.shape), value.dtype, value.device)
    if isinstance(value, Mapping):
        raise NotImplementedError
    if isinstance(value, (list, tuple)):
        return type(value)([_blank(item) for item in value])
    return value


def _returning(output: Any, put: list[Tensor]) -> Callable:
    return lambda *args, **kwargs: _fill(output, list(put))


def _fill(value: Any, put: list[Tensor]) -> Any:
    """Tensors for blanks: the first of floating point is the one to put there, if there is one."""
    if isinstance(value, Blank):
        if put and value.dtype.is_floating_point:
            return put.pop()
        return torch.zeros(value.shape, dtype=value.dtype, device=value.device)
    if isinstance(value, (list, tuple)):
        return type(value)([_fill(item, put) for item in value])
    return value


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
