"""The full-network embedding on a Ray cluster: statistics and features of Ray Datasets, written as Parquet shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import clone

from hf_tl.cluster.block_reader import INPUT, BlockFeatures, BlockStatistics, ReadingPlan
from hf_tl.cluster.ray_data import check_actors, connect, map_blocks, own_errors, require_ray_data, send
from hf_tl.cluster.statistics_row import merge_statistics
from hf_tl.data import Samples, as_samples
from hf_tl.embedding.batches import Execution
from hf_tl.embedding.embedding import Embedding, LayerColumns
from hf_tl.embedding.full_network import FullNetworkEmbedding
from hf_tl.embedding.passes import LOOKED_AT
from hf_tl.embedding.recipe import Scaler, Statistics, find_recipe
from hf_tl.embedding.shards import ROWS_PER_GROUP, WRITE, ShardCodec, label_type, shard_schema
from hf_tl.embedding.taps import Tap
from hf_tl.errors import InputError, in_one_line
from hf_tl.files import make_folder
from hf_tl.labels import LABEL_NAMES
from hf_tl.names import closest


if TYPE_CHECKING:
    import ray.data


FILE = {"bytes", "path"}  # what Ray and `datasets` make of one
ROWS_PER_FILE = 8192
MERGED_AT_ONCE = 64  # rows of statistics, of three float64 numbers a feature each


@dataclass
class RayEmbedding:
    """Reads Ray Datasets with a full-network embedding, on all machines of a Ray cluster.

    Actors load the network once and read one block of samples after the other. Which actor reads which block, what is
    read again where an actor or a whole machine is lost, and how much is on its way at a time, is up to Ray Data.
    Without `ray.init(address=...)` it starts Ray on this machine.

    Samples are a `ray.data.Dataset` of images, recordings or texts, with a column of integers that numbers them; or
    whatever `FullNetworkEmbedding` takes, which all machines must be able to read: then only numbers travel.

        fne = FullNetworkEmbedding.from_pretrained("timm/resnet50.a1_in1k")
        on_ray = RayEmbedding(fne)
        on_ray.fit(ray.data.read_parquet("s3://bucket/train"))
        features = on_ray.to_parquet(on_ray.transform(dataset), "s3://bucket/features")  # an `Embedding`

    Args:
        embedding: what is read, and how: taps, recipe, batch size, device, precision, what becomes of bad samples.
            `fit` fits it, and it may be saved, loaded and used on one machine like any other.
        inputs: the column of raw inputs, or two that are read as pairs; None to find it in the first rows.
        index: the column that numbers the samples.
        label: the column of labels; None for one that is called so.
        class_names: names of integer labels.
        block_size: samples that an actor reads at a time, and reads again where it was lost.
        actors: how many there are, or (least, most); None for as many as the cluster has room for.
        num_cpus: of each actor.
        num_gpus: of each actor; None for one where the embedding's device is "cuda", else none.
    """

    embedding: FullNetworkEmbedding
    _: KW_ONLY
    inputs: str | Sequence[str] | None = None
    index: str = "index"
    label: str | None = None
    class_names: Sequence[str] | None = None
    block_size: int = 256
    actors: int | tuple[int, int] | None = None
    num_cpus: float = 1.0
    num_gpus: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.embedding, FullNetworkEmbedding):
            raise InputError(
                f"embedding should be a FullNetworkEmbedding, such as from_pretrained gives, got "
                f"{type(self.embedding).__name__}"
            )
        if self.block_size < 1:
            raise InputError(f"block_size should be at least 1, got {self.block_size}")
        on_gpu = self.embedding.device.startswith("cuda")
        if self.num_gpus is None:
            self.num_gpus = float(on_gpu)
        if on_gpu != (self.num_gpus > 0):
            raise InputError(
                f"device={self.embedding.device!r} with num_gpus={self.num_gpus}: actors on GPUs take both "
                f"device='cuda' and num_gpus above 0, others neither"
            )
        check_actors(self.actors, num_cpus=self.num_cpus, num_gpus=self.num_gpus)
        if self.embedding.dtype == "auto":
            raise InputError("dtype='auto' is what is fastest on one machine; on Ray give 'float32' or 'bfloat16'")
        if self.embedding.torch_compile:
            raise InputError("torch_compile=True would compile anew for each block; leave it out on Ray")

    def fit(self, samples: ray.data.Dataset | Samples | Sequence) -> RayEmbedding:
        """Learns mean and standard deviation of each feature: those of each block, merged.

        Args:
            samples: the training samples; the column that numbers them may be missing here.

        Raises:
            InputError: Ray is not installed, fewer than two samples, or samples that cannot be read.
        """
        data = require_ray_data()
        with own_errors():
            dataset, reading, head = self._open(samples, data)
            taps, layers = self._find_taps(head)
            blocks = self._mapped(dataset, replace(reading, taps=tuple(taps)), BlockStatistics)
            merged = Statistics(layers[-1].stop)
            for row in blocks.map_batches(merge_statistics, batch_size=MERGED_AT_ONCE, num_cpus=0).iter_rows():
                merged = merged.merge(Statistics.from_state(row))
        if merged.n < 2:
            raise InputError(f"training statistics need two samples or more, got {merged.n}")
        self.embedding.taps_ = tuple(taps)
        self.embedding.fit_with(layers, merged)
        return self

    def transform(
        self, samples: ray.data.Dataset | Samples | Sequence, *, codec: ShardCodec | None = None
    ) -> ray.data.Dataset:
        """The features of samples, as rows of shards: read when the Dataset is consumed or written.

        Args:
            samples: what is read.
            codec: as of `Embedding.to_parquet`; None for the embedding's own of discretised features, else "float32".

        Returns:
            Columns "index" and, where there are labels, "label"; and one of each layer, packed as the codec says.

        Raises:
            NotFittedError: `fit` comes first.
            InputError: Ray is not installed, no column numbers the samples, or the codec cannot hold the features.
        """
        self.embedding.check_fitted()
        scaler = self.embedding.scaler()
        discrete = scaler.recipe.thresholds is not None
        if codec in ("2bit", "int8") and not discrete:
            name = self.embedding.recipe
            raise InputError(f"codec {codec!r} holds -1, 0 and 1, which recipe {name!r} does not give")
        codec = codec or (self.embedding.codec if discrete else "float32")
        return self._features(samples, scaler, codec)

    def activations(
        self, samples: ray.data.Dataset | Samples | Sequence, *, codec: ShardCodec = "float32"
    ) -> ray.data.Dataset:
        """The raw activations of samples, as rows of shards; nothing is fitted, nothing scaled.

        Args:
            samples: what is read.
            codec: "float32", or "float16" for half the bytes and eleven bits of each value.

        Raises:
            InputError: Ray is not installed, or no column numbers the samples.
        """
        if codec not in ("float32", "float16"):
            raise InputError(f"raw activations are kept as 'float32' or 'float16', got {codec!r}")
        return self._features(samples, None, codec)

    def to_parquet(
        self, rows: ray.data.Dataset, folder: str | Path, *, rows_per_file: int = ROWS_PER_FILE
    ) -> Embedding:
        """Writes what `transform` or `activations` gave as Parquet shards; when it returns, all are there.

        Args:
            rows: what is written.
            folder: a new one, or an empty one, that all machines see; or a URL that fsspec knows, "s3://bucket/name".
            rows_per_file: samples in a shard, at least, which wait for one another in Ray's object store; those of a
                machine that is lost before are read again.

        Returns:
            The embedding, in the order of its samples, whose rows stay in the shards until they are asked for.

        Raises:
            InputError: the folder holds shards already or cannot be written, or samples cannot be read.
        """
        from fsspec.core import url_to_fs

        if not isinstance(rows, require_ray_data().Dataset):
            raise InputError(f"rows should be what transform or activations gave, got {type(rows).__name__}")
        if rows_per_file < 1:
            raise InputError(f"rows_per_file should be at least 1, got {rows_per_file}")
        options: dict[str, Any] = {}
        if "://" in str(folder):
            from pyarrow.fs import FSSpecHandler, PyFileSystem

            try:
                fs, path = url_to_fs(str(folder))
            except (OSError, ValueError, ImportError) as error:
                raise InputError(f"{str(folder)!r} cannot be written: {in_one_line(error)}") from error
            options["filesystem"] = PyFileSystem(FSSpecHandler(fs))
        else:
            fs, path = url_to_fs(str(make_folder(folder).resolve()))
        if fs.glob(f"{path.rstrip('/')}/*.parquet"):
            raise InputError(f"{str(folder)!r} holds Parquet files already; choose another folder")
        with own_errors():
            rows.write_parquet(
                path,
                ray_remote_args={"num_cpus": 0},
                min_rows_per_file=rows_per_file,
                row_group_size=ROWS_PER_GROUP,
                **WRITE,
                **options,
            )
        return Embedding.load(folder)

    def _features(
        self,
        samples: ray.data.Dataset | Samples | Sequence,
        scaler: Scaler | None,
        codec: ShardCodec,
    ) -> ray.data.Dataset:
        data = require_ray_data()
        with own_errors():
            dataset, reading, head = self._open(samples, data)
        if reading.index is None:
            raise InputError(
                f"no column of {dataset.columns()} is called {self.index!r}: shards say of each row which sample it "
                f"is; number the samples where they are written, and name that column with index=..."
            )
        if scaler is None:
            taps, layers = self._find_taps(head)
        else:
            taps, layers = self.embedding.find_fitted_taps(), self.embedding.layers_
            modules = {name for name, _ in reading.network.model.named_modules()}
            missing = next((tap.reading.module for tap in taps if tap.reading.module not in modules), None)
            if missing is not None:
                raise InputError(
                    f"the network has no module {missing!r}, which the fit read; use the network of the fit"
                )
        found = reading.samples or head
        like = Embedding(
            values=np.empty((0, layers[-1].stop), np.float32),
            layers=tuple(layers),
            indices=np.empty(0, np.int64),
            class_names=found.class_names if self.class_names is None else tuple(self.class_names),
            activation=reading.activation,
            network=reading.network.name,
        )
        schema = shard_schema(like.describe(), codec=codec, label=label_type(found.labels))
        return self._mapped(dataset, replace(reading, taps=tuple(taps)), BlockFeatures, scaler, schema)

    def _find_taps(self, head: Samples) -> tuple[Sequence[Tap], Sequence[LayerColumns]]:
        """What is read of the network, found here on the first samples; this machine need not have a GPU."""
        scout = clone(self.embedding)
        scout.device, scout.progress = "cpu", False
        layers = scout.activations(head).layers
        return scout.taps_, layers

    def _open(
        self, samples: ray.data.Dataset | Samples | Sequence, data: ModuleType
    ) -> tuple[ray.data.Dataset, ReadingPlan, Samples]:
        """The samples as a Ray Dataset of the columns that are read, what is read of them, and the first of them."""
        connect(None)
        network = self.embedding.require_network()
        own = {field.name: vars(self.embedding)[field.name] for field in fields(Execution)}
        reading = ReadingPlan(
            network=network,
            taps=(),
            activation=find_recipe(self.embedding.recipe).activation,
            execution=Execution(**{**own, "progress": False}),
            inputs=(),
            index=None,
        )
        if not isinstance(samples, data.Dataset):
            found = as_samples(samples, modality=network.modality)
            if not len(found):
                raise InputError(f"{found.name} has no samples; there is nothing to embed")
            n_blocks = -(-len(found) // self.block_size)
            dataset = data.range(len(found), override_num_blocks=n_blocks)
            reading = replace(reading, index="id", samples=found, name=found.name)
            return dataset, reading, found.select(np.arange(min(LOOKED_AT, len(found))))
        rows = samples.take(LOOKED_AT)
        if not rows:
            raise InputError("the dataset has no samples; there is nothing to embed")
        names = list(rows[0])
        label = self.label or next((name for name in LABEL_NAMES if name in names), None)
        inputs = self._find_inputs(rows, label)
        for name in (*inputs, *([] if label is None else [label])):
            if name not in names:
                raise InputError(f"there is no column {name!r} among {names}; {closest(name, names)}")
        values = [row[inputs[0]] if len(inputs) == 1 else tuple(row[name] for name in inputs) for row in rows]
        labels = None if label is None else np.asarray([row[label] for row in rows])
        head = Samples([{INPUT: value} for value in values], INPUT, labels)
        index = self.index if self.index in names else None
        if index is not None and not isinstance(rows[0][index], (int, np.integer)):
            raise InputError(f"column {index!r} should number the samples, got {type(rows[0][index]).__name__}")
        reading = replace(reading, inputs=inputs, index=index, label=label)
        dataset = samples.select_columns([*inputs, *(name for name in (index, label) if name is not None)])
        if isinstance(
            samples, data.dataset.MaterializedDataset
        ):  # of `datasets` one block, which would be one actor's
            dataset = dataset.repartition(target_num_rows_per_block=self.block_size).materialize()
        return dataset, reading, head

    def _find_inputs(self, rows: list[dict[str, Any]], label: str | None) -> tuple[str, ...]:
        """The columns that were named; else the one that holds files as Ray reads them, or whatever is read."""
        if self.inputs is not None:
            return (self.inputs,) if isinstance(self.inputs, str) else tuple(self.inputs)
        modality, others = self.embedding.require_network().modality, {*rows[0]} - {self.index, label}
        files = [name for name in others if isinstance(rows[0][name], Mapping) and {*rows[0][name]} <= FILE]
        if len(files) == 1:
            return (files[0],)
        if modality != "array":
            try:
                return as_samples(rows, modality=modality, label=label).columns
            except InputError as error:
                raise InputError(
                    f"which of the columns {sorted(others)} holds {modality}s cannot be told; name it with inputs=..."
                ) from error
        if len(others) > 1:
            raise InputError(f"which of the columns {sorted(others)} is read cannot be told; name it with inputs=...")
        return tuple(others)

    def _mapped(
        self, dataset: ray.data.Dataset, reading: ReadingPlan, make: Callable, *arguments: object
    ) -> ray.data.Dataset:
        return map_blocks(
            dataset,
            make,
            (send(reading), *arguments),
            batch_size=self.block_size,
            whole_blocks=reading.samples is not None,
            actors=self.actors,
            num_cpus=self.num_cpus,
            num_gpus=self.num_gpus or 0.0,
        )
