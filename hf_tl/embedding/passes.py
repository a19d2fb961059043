"""One pass of a dataset through a network: raw activations with their indices, into memory or into a folder."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from hf_tl.acceleration import measure_acceleration
from hf_tl.data import Samples
from hf_tl.embedding.autotune import LONG, Autotune, Choice
from hf_tl.embedding.batches import Execution, Processes, load_batch, loaded_batches, to_device
from hf_tl.embedding.embedding import Embedding, LayerColumns, describe_labels, index_tensors
from hf_tl.embedding.fingerprint import (
    fingerprint_batch,
    fingerprint_json,
    fingerprint_pooling,
    fingerprint_samples,
    fingerprint_weights,
)
from hf_tl.embedding.isolation import batch_shapes
from hf_tl.embedding.reader import TapReader
from hf_tl.embedding.store import INDEX, MANIFEST, Store
from hf_tl.embedding.stored_array import StoredArray
from hf_tl.embedding.taps import Tap
from hf_tl.errors import InputError, in_one_line
from hf_tl.example import shapes_of
from hf_tl.models import Network
from hf_tl.trace import Batch, n_samples


LOOKED_AT = 16  # samples, for some of different lengths
FEW = 4  # rows that are read again where a pass resumes
SAME = {True: 0.01, False: 0.1}  # relative difference that rounding explains, in float32 or not


@dataclass(frozen=True)
class Chunk:
    """Raw activations of some samples.

    Attributes:
        indices: (n,) of the samples in the dataset, ascending.
        values: (n, n_features) float32; the next chunk writes over them unless `into` was given.
        skipped: indices of samples of the same batch that were left out.
    """

    indices: np.ndarray
    values: np.ndarray
    skipped: np.ndarray


class Pass:
    """A pass that is planned, not run.

    Args:
        network: what the samples go through; it is moved to the device.
        samples: the dataset.
        activation: whether layers are read "after" their activation or "before" it.
        execution: how.
        processes: who takes part.

    Attributes:
        taps: what is read, to be set before the pass runs.
        choice: what was chosen where the execution is "auto", by this pass or an earlier one; may be set likewise.
        samples: the dataset; may be set to another one, such as the next block of many.

    Raises:
        InputError: no samples, settings out of range, or a device that does not exist here.
    """

    def __init__(
        self,
        network: Network,
        samples: Samples,
        *,
        activation: Literal["after", "before"],
        execution: Execution,
        processes: Processes,
    ):
        execution.check()
        if len(samples) == 0:
            raise InputError(f"{samples.name} has no samples; there is nothing to embed")
        move(network.model, execution.device)
        self.network, self.samples, self.activation = network, samples, activation
        self.execution, self.processes = execution, processes
        self.taps: Sequence[Tap] = ()
        self.choice: Choice = {}
        self._models: dict[bool | str, nn.Module] = {}  # a copy for each memory layout

    @property
    def _execution(self) -> Execution:
        """The execution with what was chosen; of a short pass without a layout, for which the network is copied."""
        execution, choice = self.execution, self.choice
        if execution.batch_size == "auto" and "batch_size" in choice:
            execution = replace(execution, batch_size=choice["batch_size"])
        if execution.channels_last == "auto" and "channels_last" in choice and len(self.samples) >= LONG:
            execution = replace(execution, channels_last=choice["channels_last"])
        return execution

    @property
    def columns(self) -> tuple[LayerColumns, ...]:
        """The columns of each tap."""
        stops = np.cumsum([tap.n_features for tap in self.taps]).tolist()
        return tuple(
            LayerColumns(tap.name, stop - tap.n_features, stop, tap.depth, tap.kind, tap.place)
            for tap, stop in zip(self.taps, stops, strict=True)
        )

    @cached_property
    def alone(self) -> dict[int, Batch]:
        """Some usable samples, by index, each prepared by itself: up to four of different shapes among the first ones.

        Where all have one shape the first two, and one where there is only one.

        Raises:
            InputError: no sample can be used.
        """
        found: dict[int, Batch] = {}
        shapes: dict[tuple, int] = {}
        for index in range(len(self.samples)):
            how = self.execution.on_bad_samples
            _, batch = load_batch(self.network.prepare, self.samples, [index], on_bad_samples=how)
            if batch is None:
                continue
            found[index] = batch
            shapes.setdefault(batch_shapes(batch), index)
            masked = isinstance(batch, Mapping) and "attention_mask" in batch
            if len(found) == (LOOKED_AT if masked else 2) or len(shapes) == 4:
                break
        if not found:
            name, what = self.samples.name, "what prepares them gives nothing"
            try:
                load_batch(self.network.prepare, self.samples, [0], on_bad_samples="raise")
            except InputError as error:
                what = in_one_line(error.__cause__ or error)
            raise InputError(f"none of the {len(self.samples)} samples of {name} can be used, the first: {what}")
        chosen = list(shapes.values()) if len(shapes) > 1 else list(found)[:2]
        return {index: found[index] for index in chosen}

    @cached_property
    def example(self) -> Batch:
        """A batch of the first two of those samples; of the same sample twice where there is only one."""
        return self._batch_of((list(self.alone) * 2)[:2])

    @cached_property
    def together(self) -> Batch:
        """A batch of all those samples."""
        indices = list(self.alone)
        return self.example if len(indices) == 2 else self._batch_of(indices)

    def _batch_of(self, indices: Sequence[int]) -> Batch:
        """Some usable samples in one batch.

        Raises:
            InputError: they fit no common one.
        """
        return cast(Batch, load_batch(self.network.prepare, self.samples, indices, on_bad_samples="raise")[1])

    def chunks(self, indices: Sequence[int] | None = None, *, into: np.ndarray | None = None) -> Iterator[Chunk]:
        """This process's share of the pass, one chunk of raw activations a batch.

        Args:
            indices: (n,) by which the samples are known where they are one block of many; None for 0, 1, 2, ...
            into: (n, n_features) float32, in which the values of all chunks are put one below the other.

        Raises:
            InputError: a bad sample, named by its index, before its chunk is handed on.
        """
        batches = self._execution.batches(len(self.samples))
        if indices is not None:
            return self._read([indices[batch.start : batch.stop] for batch in batches], into=into)
        return self._read(self.processes.share(batches), into=into)

    def into_memory(
        self, scale: Callable[[np.ndarray], np.ndarray] | None = None, *, dtype: np.dtype | str = "float32"
    ) -> Embedding:
        """The raw activations of all samples; with `scale`, what it makes of each chunk of them, in `dtype`.

        Raises:
            InputError: no sample can be used; several processes, which share no memory.
        """
        if self.processes.count > 1:
            raise InputError(
                f"{self.processes.count} processes share a folder, not memory: give out=..., a folder they all see"
            )
        columns = self.columns
        values = np.empty((len(self.samples), columns[-1].stop), dtype)
        indices, n = np.empty(len(self.samples), np.int64), 0
        for chunk in self.chunks(into=values if scale is None else None):
            here = slice(n, n + len(chunk.indices))  # from the top; what skipped samples left over is cut off
            if scale is not None:
                values[here] = scale(chunk.values)
            indices[here] = chunk.indices
            n = here.stop
        self._check_some(n)
        labels = self.samples.labels
        return Embedding(
            values=values[:n],
            layers=columns,
            indices=indices[:n],
            labels=None if labels is None else labels[indices[:n]],
            class_names=self.samples.class_names,
            activation=self.activation,
            network=self.network.name,
        )

    def into_store(self, folder: str | Path) -> Store:
        """Reads the samples that the folder does not hold yet; when it returns, all processes have.

        Raises:
            InputError: the folder holds an embedding of something else; a bad sample; no sample can be used.
        """
        store = Store.create(folder, self._manifest()) if self.processes.main else None
        self.processes.wait()
        store = store or Store.open(folder)
        self.choice.update(store.choice)
        done = np.ones(store.n_rows, bool)
        if store.has_raw:
            if self.processes.main:
                done = store.verify()
                self._check_same(store, done, store.raw, lambda values: values)
            done = self.processes.gather(done)[0]
        missing = [wanted for wanted in self._execution.batches(store.n_rows) if not done[wanted].all()]
        for chunk in self._read(self.processes.share(missing)):
            store.write_rows(chunk.indices, chunk.values)
            store.skip_rows(chunk.skipped)
            if self.processes.main:
                store.keep_choice(self.choice)
        self.processes.wait()
        if (store.sums == 0).any():
            raise InputError(
                f"{str(folder)!r} lacks samples that another process has written: give a folder that all machines "
                f"share"
            )
        self._check_some(len(store.positions))
        if self.processes.main:
            store.write_tensors(INDEX, index_tensors(np.arange(store.n_rows), self.samples.labels))
        self.processes.wait()
        return store

    def find_dtype(self, folder: str | Path | None) -> str:
        """The precision that is faster for the first samples, in which they are read from here on.

        Args:
            folder: of the pass; one that holds a part of it already says which.
        """
        found = ""
        if self.processes.main and folder is not None and (Path(folder) / MANIFEST).is_file():
            found = str(Store.open(folder).manifest["fingerprints"]["dtype"])
        elif self.processes.main:
            move(self.network.model, self.execution.device)
            example = to_device(self.example, self.execution.device)
            measured = measure_acceleration(self.network.model, example, train=False)
            found = "bfloat16" if measured.bf16 else "float32"
            if self.execution.progress:
                tqdm.write(f"measured on the first samples: {measured}", file=sys.stderr)
        self.execution = replace(self.execution, dtype=self.processes.gather(found)[0])
        return self.execution.dtype_name

    def check_features(self, store: Store, scale: Callable[[np.ndarray], np.ndarray]) -> None:
        """Refuses features that the network does not give any more, where no raw activations are left to tell it."""
        self._check_same(store, np.ones(store.n_rows, bool), store.features, scale)

    def _check_same(
        self,
        store: Store,
        done: np.ndarray,
        stored: Callable[[np.ndarray], StoredArray],
        scale: Callable[[np.ndarray], np.ndarray],
    ) -> None:
        """Reads the first rows of a store again: a few, or all of their batch where those differ, as company may.

        No digest covers all that a network computes with: hooks, attributes, globals of its code. What it gives for
        samples that were read before shows a change of any of them, as far as those samples do.
        """
        layer = None
        for n in (FEW, len(self.samples)):
            positions, values = self._read_again(store, done, n)
            layer = self._differing(scale(values), stored(positions)[:])
            if layer is None:
                return
        raise InputError(
            f"{str(store.folder)!r} holds an embedding that {self.network.name} does not give any more: layer "
            f"{layer!r} differs, though weights, preprocessing and samples are the same; nothing was changed: "
            f"choose another folder, delete this one, or repeat what made it"
        )

    def _read_again(self, store: Store, done: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        """At most `n` rows of a store, of one batch, read anew: positions (n,) and raw activations (n, n_features)."""
        first = next((wanted for wanted in self._execution.batches(store.n_rows) if done[wanted].any()), range(0))
        if n < len(first):
            first = first[int(done[first].argmax()) :][:n]
        quiet = copy.copy(self)
        quiet.execution, quiet.choice = replace(self.execution, progress=False), Choice(**self.choice)
        for chunk in quiet._read([first] if first else []):
            held = np.isin(chunk.indices, store.positions)
            return chunk.indices[held], chunk.values[held]
        return np.empty(0, np.int64), np.empty((0, store.width), np.float32)

    def _differing(self, now: np.ndarray, then: np.ndarray) -> str | None:
        """The first layer in which rows differ by more than rounding explains."""
        limit = SAME[self.execution.dtype_name == "float32"]
        for layer in self.columns if len(now) else ():
            new, old = (rows[:, layer.start : layer.stop] for rows in (now, then))
            if (np.mean(new != old) / 5 if old.dtype.kind == "i" else _distance(new, old)) > limit:
                return layer.name
        return None

    def _read(self, batches: Sequence[Sequence[int]], *, into: np.ndarray | None = None) -> Iterator[Chunk]:
        if not len(batches):
            return
        parts = Autotune(self._execution, self.network.model, batches)
        landing = _Landing(self._execution, (max(map(len, batches)), self.columns[-1].stop), into)
        with tqdm(
            total=len(self.samples),
            initial=len(self.samples) - sum(map(len, batches)),
            desc=f"embedding {self.samples.name}",
            unit="sample",
            disable=not self.execution.progress,
        ) as bar:
            skipped = 0
            for execution, part in parts:
                if parts.choice:
                    self.choice.update(parts.choice)
                    bar.write(str(parts), file=sys.stderr) if self.execution.progress else None
                if execution.channels_last not in self._models:
                    self._models[execution.channels_last] = execution.own_model(self.network.model)
                model = self._models[execution.channels_last]
                for chunk in self._read_part(model, part, execution, landing, parts):
                    yield chunk
                    skipped += len(chunk.skipped)
                    if skipped:
                        bar.set_postfix(skipped=skipped)
                    bar.update(len(chunk.indices) + len(chunk.skipped))

    def _read_part(
        self,
        model: nn.Module,
        batches: Sequence[Sequence[int]],
        execution: Execution,
        landing: _Landing,
        parts: Autotune,
    ) -> Iterator[Chunk]:
        move(model, execution.device)
        with TapReader(model, self.taps, torch_compile=execution.torch_compile) as read:
            for wanted, kept, batch in loaded_batches(self.network, self.samples, batches, execution):
                used, values = np.asarray(kept, np.int64), np.empty((0, read.n_features), np.float32)
                if batch is not None:
                    started = time.perf_counter()
                    try:
                        values = landing.read(read, execution.placed(batch))
                    except (InputError, MemoryError, torch.OutOfMemoryError):
                        raise
                    except Exception as error:  # the network is the user's, and so are its errors
                        raise InputError(
                            f"{self.network.name} cannot run on samples {kept[0]} to {kept[-1]} of "
                            f"{self.samples.name}, {shapes_of(batch)}: {in_one_line(error)}; check what prepares them"
                        ) from error
                    parts.took(time.perf_counter() - started, len(kept))
                    finite = self._finite(values, kept)
                    used, values = used[finite], landing.keep(values, finite)
                left_out = np.setdiff1d(wanted, used) if len(used) < len(wanted) else np.empty(0, np.int64)
                yield Chunk(used, values, left_out)

    def _finite(self, values: np.ndarray, kept: Sequence[int]) -> np.ndarray:
        """(n,) bool: which samples have finite activations only."""
        finite = np.isfinite(values).all(axis=1)
        if not finite.all() and self.execution.on_bad_samples == "raise":
            row = int(np.flatnonzero(~finite)[0])
            column = int(np.flatnonzero(~np.isfinite(values[row]))[0])
            layer = next(layer for layer in self.columns if column < layer.stop)
            raise InputError(
                f"sample {kept[row]} of {self.samples.name} gives NaN or infinite activations, first in layer "
                f"{layer.name!r}; expected finite numbers: check the sample and the network's dtype, or leave such "
                f"samples out with on_bad_samples='skip' (--on-bad-samples skip)"
            )
        return finite

    def _check_some(self, n: int) -> None:
        if n == 0:
            raise InputError(
                f"none of the {len(self.samples)} samples of {self.samples.name} can be used; all were skipped"
            )

    def _manifest(self) -> dict:
        taps = [
            [tap.name, tap.n_features, _reading(tap), fingerprint_pooling(tap.pool), tap.prefix, list(tap.strides)]
            for tap in self.taps
        ]
        return {
            "network": self.network.name,
            "activation": self.activation,
            "n_samples": len(self.samples),
            **describe_labels(self.samples.labels, self.samples.class_names),
            "layers": [asdict(layer) for layer in self.columns],
            "fingerprints": {
                "weights": fingerprint_weights(self.network.model),
                "taps": fingerprint_json([self.activation, taps]),
                "preprocessing": fingerprint_batch(self.example),
                "dataset": fingerprint_samples(self.samples),
                "dtype": self.execution.dtype_name,
            },
        }


class _Landing:
    """Where batches come to lie on the host: one below the other in an array of the caller, or all in one buffer.

    A reader on the CPU writes there itself. From a GPU there is one copy, through pinned memory.
    """

    def __init__(self, execution: Execution, shape: tuple[int, int], into: np.ndarray | None):
        kind = torch.device(execution.device).type
        self._direct = kind == "cpu" and not execution.torch_compile
        self._pinned = torch.empty(shape, pin_memory=True) if kind == "cuda" else None
        self._below = into is not None
        self._array = np.empty(shape, np.float32) if into is None else into
        self._next = 0

    def read(self, read: TapReader, batch: Batch) -> np.ndarray:
        """(n, n_features) float32, of the next batch."""
        n = n_samples(batch)
        space = torch.from_numpy(self._array[self._next : self._next + n])
        if self._direct:
            return read(batch, out=space).numpy()
        values = read(batch)
        if self._pinned is not None:
            self._pinned[:n].copy_(values, non_blocking=True)
            torch.cuda.current_stream(values.device).synchronize()
            values = self._pinned[:n]
        return space.copy_(values).numpy()

    def keep(self, values: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """Those of the samples just read for which `kept` is true, from the top; the next batch goes below them."""
        if not kept.all():
            values[: kept.sum()] = values[kept]
            values = values[: kept.sum()]
        self._next += len(values) if self._below else 0
        return values


def move(model: nn.Module, device: str) -> None:
    """Puts a network on a device, in place.

    Raises:
        InputError: a device that does not exist here.
    """
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise InputError(
            f"device {device!r} cannot be used here: {in_one_line(error)}; use 'cpu', or 'cuda' where there is one"
        ) from error


def _distance(new: np.ndarray, old: np.ndarray) -> float:
    return float(np.linalg.norm(new - old) / max(np.linalg.norm(old), np.finfo(np.float32).tiny))


def _reading(tap: Tap) -> list:
    """Where a tap is read, as JSON can hold it."""
    reading = tap.reading
    return [reading.module, reading.call, reading.side, [step.function.__name__ for step in reading.steps]]
