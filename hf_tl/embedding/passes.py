"""One pass of a dataset through a network: planned from an example, into memory or into a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FunctionType

import numpy as np

from hf_tl.data import Samples
from hf_tl.embedding.batches import load_batch
from hf_tl.embedding.embedding import Embedding, LayerColumns, describe_labels, write_index
from hf_tl.embedding.execution import Execution
from hf_tl.embedding.extraction import Block, extract, move, to_device
from hf_tl.embedding.fingerprint import fingerprint_batch, fingerprint_json, fingerprint_rows, fingerprint_weights
from hf_tl.embedding.pooling import POOLINGS, Pooling
from hf_tl.embedding.processes import Processes
from hf_tl.embedding.store import Store
from hf_tl.embedding.tap import Selection, Tap
from hf_tl.embedding.taps import find_taps, with_pooling
from hf_tl.errors import InputError
from hf_tl.models import Network
from hf_tl.plugins import plugin_origin
from hf_tl.trace import Batch


@dataclass(frozen=True)
class Pass:
    """A pass that is planned, not run.

    Attributes:
        network: what the rows go through.
        rows: the dataset.
        taps: what is read, found on the first two rows.
        example: those rows, prepared.
        activation: whether layers are read "after" their activation or "before" it.
        execution: how.
        processes: who takes part.
    """

    network: Network
    rows: Samples
    taps: Sequence[Tap]
    example: Batch
    activation: str
    execution: Execution
    processes: Processes

    @property
    def columns(self) -> tuple[LayerColumns, ...]:
        """The columns of each tap."""
        stops = np.cumsum([tap.n_features for tap in self.taps]).tolist()
        return tuple(
            LayerColumns(tap.name, stop - tap.n_features, stop, tap.depth, tap.kind, tap.place)
            for tap, stop in zip(self.taps, stops, strict=True)
        )

    def blocks(self, *, into: np.ndarray | None = None) -> Iterator[Block]:
        """This process's share of the pass, block by block; as in `extract`."""
        return self._extract(self.processes.share(self.execution.batches(len(self.rows))), into=into)

    def into_memory(
        self, change: Callable[[np.ndarray], np.ndarray] | None = None, *, dtype: np.dtype | str = "float32"
    ) -> Embedding:
        """The raw activations of all rows; with `change`, what it makes of each block of them, in `dtype`.

        Raises:
            InputError: no row can be used; several processes, which share no memory.
        """
        if self.processes.count > 1:
            raise InputError(
                f"{self.processes.count} processes share a folder, not memory: give out=..., a folder they all see"
            )
        values = np.empty((len(self.rows), self.columns[-1].stop), dtype)
        kept, n = np.empty(len(self.rows), np.int64), 0
        for block in self.blocks(into=values if change is None else None):
            here = slice(n, n + len(block.rows))  # from the top; what skipped rows left over is cut
            if change is not None:
                values[here] = change(block.values)
            kept[here] = block.rows
            n = here.stop
        self._check_some(n)
        labels = self.rows.labels
        return Embedding(
            values=values[:n],
            layers=self.columns,
            rows=kept[:n],
            labels=None if labels is None else labels[kept[:n]],
            class_names=self.rows.class_names,
            activation=self.activation,
            network=self.network.name,
        )

    def into_store(self, folder: str | Path) -> Store:
        """Reads the rows that the folder does not hold yet; when it returns, all processes have.

        Raises:
            InputError: the folder holds an embedding of something else; a bad row; no row can be used.
        """
        manifest = self._manifest()
        store = Store.create(folder, manifest) if self.processes.main else None
        self.processes.wait()
        store = store or Store.open(folder)
        done = np.ones(store.n_rows, bool)
        if store.has_raw:
            done = store.verify() if self.processes.main else done
            done = self.processes.gather(done)[0]
        missing = [wanted for wanted in self.execution.batches(store.n_rows) if not done[wanted].all()]
        for block in self._extract(self.processes.share(missing)):
            store.write_rows(block.rows, block.values)
            store.skip_rows(block.skipped)
        self.processes.wait()
        if (store.checksums == 0).any():
            raise InputError(
                f"{str(folder)!r} lacks rows that another process has written: give a folder that all machines share"
            )
        self._check_some(len(store.positions))
        if self.processes.main:
            write_index(store.folder, np.arange(store.n_rows), self.rows.labels)
        self.processes.wait()
        return store

    def _extract(self, batches: Sequence[range], *, into: np.ndarray | None = None) -> Iterator[Block]:
        if not len(batches):
            return iter(())
        return extract(self.network, self.rows, self.taps, batches, execution=self.execution, into=into)

    def _check_some(self, n: int) -> None:
        if n == 0:
            raise InputError(f"none of the {len(self.rows)} rows of {self.rows.name} can be used; all were skipped")

    def _manifest(self) -> dict:
        taps = [
            [tap.name, tap.n_features, _reading(tap), _pooling_name(tap.pool), tap.prefix, list(tap.strides)]
            for tap in self.taps
        ]
        layers = [asdict(layer) for layer in self.columns]
        return {
            "network": self.network.name,
            "activation": self.activation,
            "n_rows": len(self.rows),
            **describe_labels(self.rows.labels, self.rows.class_names),
            "layers": layers,
            "fingerprints": {
                "weights": fingerprint_weights(self.network.model),
                "taps": fingerprint_json([self.activation, taps]),
                "preprocessing": fingerprint_batch(self.example),
                "dataset": fingerprint_rows(self.rows),
                "dtype": self.execution.dtype,
            },
        }


def plan_pass(
    network: Network,
    rows: Samples,
    *,
    selection: Selection,
    top: float,
    activation: str,
    pool: str | Pooling | Mapping[str, str | Pooling],
    execution: Execution,
    processes: Processes,
) -> Pass:
    """Finds the taps on the first two usable rows.

    Raises:
        InputError: no usable row; a network that cannot run on them; a selection that chooses nothing.
    """
    if len(rows) == 0:
        raise InputError(f"{rows.name} has no rows; there is nothing to embed")
    example = _example(network, rows, on_bad_rows=execution.on_bad_rows)
    move(network.model, execution.device)
    placed = to_device(example, execution.device)
    taps, _ = find_taps(network, placed, activation=activation, selection=selection, top=top)
    return Pass(network, rows, with_pooling(taps, pool, network), example, activation, execution, processes)


def _reading(tap: Tap) -> list:
    """Where a tap is read, as JSON can hold it."""
    reading = tap.reading
    return [reading.module, reading.call, reading.side, [step.function.__name__ for step in reading.steps]]


def _pooling_name(pool: str | Pooling) -> str:
    if isinstance(pool, str):
        return pool if pool in POOLINGS else plugin_origin("pooling", pool)
    if isinstance(pool, FunctionType):
        return f"{pool.__module__}.{pool.__qualname__}"
    settings = sorted(vars(pool).items())
    return f"{type(pool).__module__}.{type(pool).__qualname__}{settings}"


def _example(network: Network, rows: Samples, *, on_bad_rows: str) -> Batch:
    """A batch of the first two usable rows; of the same row twice where there is only one."""
    found: list[int] = []
    for index in range(len(rows)):
        kept, _ = load_batch(network.prepare, rows, [index], on_bad_rows=on_bad_rows)
        found += kept
        if len(found) == 2:
            break
    if not found:
        raise InputError(f"none of the {len(rows)} rows of {rows.name} can be used")
    return network.prepare([rows[index] for index in (found * 2)[:2]])
