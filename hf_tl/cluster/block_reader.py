"""What an actor of Ray Data does with a block of samples: statistics of its activations, or rows of shards.

An actor unpickles the network once and keeps it for all blocks that it gets. What it gives of a block depends on that
block alone, so a block that is read again, by whichever actor, gives the same rows: Ray decides when that has to be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from hf_tl.cluster.ray_data import receive
from hf_tl.cluster.statistics_row import as_row
from hf_tl.data import Samples
from hf_tl.embedding.batches import Execution, Processes
from hf_tl.embedding.passes import Chunk, Pass
from hf_tl.embedding.recipe import Statistics
from hf_tl.embedding.shards import shard_batch
from hf_tl.embedding.taps import Tap
from hf_tl.errors import InputError
from hf_tl.models import Network


if TYPE_CHECKING:
    import pyarrow as pa
    import ray

Block = Mapping[str, np.ndarray]
INPUT = "input"


@dataclass(frozen=True)
class ReadingPlan:
    """What is read of which columns, as it is sent to the actors.

    Attributes:
        network: what the samples go through.
        taps: what of it is read.
        activation: whether "after" or "before" the activation of a layer.
        execution: how.
        inputs: the column of the raw inputs, or the two that are read as pairs.
        index: the column that says which sample of the dataset a row is; None where none does.
        label: the column of the labels, if there is one.
        samples: where the rows of a block are indices alone: what they are the indices of.
        name: what messages call the samples.
    """

    network: Network
    taps: tuple[Tap, ...]
    activation: Literal["after", "before"]
    execution: Execution
    inputs: tuple[str, ...]
    index: str | None
    label: str | None = None
    samples: Samples | None = None
    name: str = "samples"


class BlockReader:
    """Blocks of samples -> their raw activations.

    Args:
        reading: what is read, in Ray's object store.
    """

    def __init__(self, reading: ray.ObjectRef):
        self.reading: ReadingPlan = receive(reading)
        self._pass = Pass(
            self.reading.network,
            Samples([{}], INPUT),  # none of its own; a block takes its place
            activation=self.reading.activation,
            execution=self.reading.execution,
            processes=Processes(),
        )
        self._pass.taps = self.reading.taps
        self.n_features = self._pass.columns[-1].stop

    def chunks(self, block: Block) -> Iterator[Chunk]:
        """The raw activations of a block, a forward pass at a time.

        Raises:
            InputError: a sample that cannot be read, by its index.
        """
        indices = self.indices(block)
        self._pass.samples = self.reading.samples or Samples(cast(Any, self._rows(block, indices)), INPUT)
        self._pass.samples = replace(self._pass.samples, name=self.reading.name)
        return self._pass.chunks(indices)

    def indices(self, block: Block) -> list[int]:
        """(n,) which samples of the dataset they are; where no column says it, their places in the block."""
        if self.reading.index is None:
            return list(range(len(block[self.reading.inputs[0]])))
        found = block[self.reading.index]
        if found.dtype.kind not in "iu":  # Arrow's integers, some of which are missing
            missing = next((i for i, value in enumerate(found) if value is None or not float(value).is_integer()), 0)
            behind = f" behind {found[missing - 1]:g}" if missing else ""
            raise InputError(
                f"column {self.reading.index!r} of {self.reading.name} should number every sample, got "
                f"{found[missing]}{behind}"
            )
        return found.tolist()

    def labels(self, block: Block) -> dict[int, object]:
        """The label of each sample by its index; empty where there are none."""
        indices, samples = self.indices(block), self.reading.samples
        if samples is not None:
            return {} if samples.labels is None else dict(zip(indices, samples.labels[indices].tolist(), strict=True))
        if self.reading.label is None:
            return {}
        found = dict(zip(indices, block[self.reading.label], strict=True))
        missing = [index for index, label in found.items() if label is None or label != label]
        if missing:
            raise InputError(f"sample {missing[0]} of {self.reading.name} has no label; leave such rows out before")
        return found

    def _rows(self, block: Block, indices: list[int]) -> dict[int, dict[str, object]]:
        columns = [block[column] for column in self.reading.inputs]
        values = columns[0] if len(columns) == 1 else zip(*columns, strict=True)
        return {index: {INPUT: value} for index, value in zip(indices, values, strict=True)}


class BlockStatistics:
    """A block of samples -> one row: the statistics of its raw activations, as `Statistics.state` keeps them.

    Args:
        reading: what is read, in Ray's object store.
    """

    def __init__(self, reading: ray.ObjectRef):
        self._reader = BlockReader(reading)

    def __call__(self, block: Block) -> dict[str, np.ndarray]:
        """The row."""
        statistics = Statistics(self._reader.n_features)
        for chunk in self._reader.chunks(block):
            statistics.update(chunk.values)
        return as_row(statistics)


class BlockFeatures:
    """A block of samples -> rows of shards; samples that cannot be used and are to be skipped give none.

    Args:
        reading: what is read, in Ray's object store.
        scale: raw activations (n, n_features) -> what the rows hold.
        schema: of the shards.
    """

    def __init__(self, reading: ray.ObjectRef, scale: Callable[[np.ndarray], np.ndarray] | None, schema: pa.Schema):
        self._reader, self._scale, self._schema = BlockReader(reading), scale, schema

    def __call__(self, block: Block) -> pa.Table:
        """The rows."""
        import pyarrow as pa

        labels, batches = self._reader.labels(block), []
        for chunk in self._reader.chunks(block):
            values = chunk.values if self._scale is None else self._scale(chunk.values)
            own = [labels[index] for index in chunk.indices.tolist()] if labels else None
            batches.append(shard_batch(self._schema, values, chunk.indices, own))
        return pa.Table.from_batches(batches, self._schema)
