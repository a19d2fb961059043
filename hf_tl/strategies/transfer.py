"""A network and a task, as every strategy reads them: fresh networks, prepared samples, stored activations."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.utils import logging

from hf_tl.acceleration import SAMPLES, Acceleration, measure_acceleration, set_layout
from hf_tl.analysis.flops import count_flops
from hf_tl.analysis.footprint import Footprint
from hf_tl.analysis.twins import twin_groups
from hf_tl.architectures import is_convolution, n_parameters
from hf_tl.data import Samples, Task, load_task
from hf_tl.embedding.embedding import Embedding
from hf_tl.embedding.fingerprint import fingerprint_json, fingerprint_samples
from hf_tl.embedding.full_network import FullNetworkEmbedding
from hf_tl.errors import InputError
from hf_tl.models import Network, find_modality, load_network
from hf_tl.training import DataCollator, TaskDataset, find_classes


PREPARED_BYTES = 2 * 10**9  # of prepared images that are kept in memory; beyond, they are read again in each epoch


@dataclass(frozen=True, eq=False)
class Transfer:
    """A pre-trained network and the task that it is to learn.

    Samples are numbered: those of the task's training part first, those of its test part behind them.

    Attributes:
        model: a name or folder that `load_network` loads.
        task: with a class for each sample.
        image_size: side of the square images in pixels; None for the size of pre-training.
        folder: keeps the activations of the network, so that a later process need not read them again.
        source: what the task is loaded from, for the scripts that a strategy writes.
    """

    model: str
    task: Task
    image_size: int | None = None
    folder: Path | None = None
    source: str = "DATA"
    _reading: list[Footprint] = field(default_factory=list, init=False, repr=False)
    _prepared: dict[int, dict[str, Tensor]] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(
        cls, model: str, task: str | Task, *, image_size: int | None = None, folder: Path | None = None
    ) -> Transfer:
        """That of names.

        Raises:
            InputError: a network that has no name, or samples without one class each.
        """
        if not isinstance(model, str):
            raise InputError(
                f"strategies load the network anew for each fit, by a name or folder, got {type(model).__name__}; "
                f"save it first, with save_pretrained or timm.models.save_for_hf, and give the folder"
            )
        source = task if isinstance(task, str) else "DATA"
        loaded = load_task(task, modality=find_modality(model), groups=twin_groups) if isinstance(task, str) else task
        for samples in (loaded.train, loaded.test):
            labels = None if samples.labels is None else np.asarray(samples.labels)
            if labels is None or labels.ndim != 1 or labels.dtype.kind == "f":
                raise InputError(f"strategies are compared on samples of one class each; {samples.name} has others")
        return cls(model, loaded, image_size, folder, source)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Their names, in the order of a classifier's outputs."""
        return find_classes(self.task)

    @cached_property
    def labels(self) -> np.ndarray:
        """(n,) number of the class of each sample."""
        return np.concatenate([TaskDataset(part, self.classes).labels for part in (self.task.train, self.task.test)])

    @property
    def n_train(self) -> int:
        """Number of training samples: those behind are for evaluation."""
        return len(self.task.train)

    @property
    def test(self) -> np.ndarray:
        """Indices of the samples to evaluate on."""
        return np.arange(self.n_train, len(self.labels))

    @cached_property
    def samples(self) -> Samples:
        """All of them, training samples first."""
        rows = _Rows((self.task.train, self.task.test))
        return Samples(rows, "input", self.labels, self.classes, name="samples")

    def part(self, indices: np.ndarray, *, name: str = "samples") -> Samples:
        """Some of them, in this order."""
        return Samples(
            _Rows((self.task.train, self.task.test), indices), "input", self.labels[indices], self.classes, name=name
        )

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the network's name, the samples and how they are prepared."""
        parts = [fingerprint_samples(part) for part in (self.task.train, self.task.test)]
        return fingerprint_json([self.model, self.image_size, list(self.classes), parts])[:16]

    def network(self, *, seed: int = 0) -> Network:
        """A fresh classifier of the task's classes, its new head drawn by seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            with _unsaid():
                network = load_network(self.model, classes=self.classes, image_size=self.image_size)
        set_layout(network.model, channels_last=self.has_channels_last(network.model))
        return network

    @cached_property
    def acceleration(self) -> Acceleration:
        """What full fine-tuning is fastest with here, measured once; kept in `folder`, for later processes."""
        kept = None if self.folder is None else self.folder / "acceleration" / f"{self.fingerprint}.json"
        if kept is not None and kept.is_file():
            return Acceleration.load(kept)
        network = self.network()
        batch = self.collator(network)([{"index": i} for i in range(min(SAMPLES, self.n_train))])
        found = measure_acceleration(network.model, batch, train=True)
        return found if kept is None else found.save(kept)

    def has_channels_last(self, model: nn.Module) -> bool:
        """Whether a network of this task is trained so: as was measured, else where most weights are convolutions'."""
        measured = vars(self).get("acceleration")
        return self.is_convolutional(model) if measured is None else measured.channels_last

    def collator(self, network: Network) -> _PreparedOnce:
        """Indices -> batches of the network; an image is decoded and prepared once, not in every epoch."""
        return _PreparedOnce(self, network)

    @cached_property
    def raw(self) -> Embedding:
        """Raw activations of every layer, and of the last one, for all samples: one pass, kept in `folder`."""
        network = load_network(self.model, image_size=self.image_size)
        reader = FullNetworkEmbedding(
            network,
            recipe="raw",
            taps=["auto", "last"],
            progress=False,
            channels_last=self.is_convolutional(network.model),
        )
        out = None if self.folder is None else self.folder / "activations" / self.fingerprint
        cost = None if out is None else out.with_suffix(".footprint.json")
        with Footprint("reading") as footprint:
            found = reader.activations(self.samples, out=out)
        if cost is not None and cost.is_file():  # an earlier process has read them
            footprint = Footprint.load(cost)
        else:
            batch = network.prepare([self.samples[0]])
            footprint.add(samples=len(self.samples))
            footprint.add(
                flops=len(self.samples) * count_flops(network.model, batch), source="one sample's, times all"
            )
            if cost is not None:
                footprint.save(cost)
        self._reading.append(footprint)
        return found

    def reading_cost(self, n: int, *, country: str | None = None) -> Footprint:
        """The share of `n` samples in what the one pass over all of them cost, in a country."""
        self.raw  # noqa: B018  the pass
        return _scaled(self._reading[0], n / len(self.samples), country)

    def pace(self, batch_size: int, *, bf16: bool = False) -> Pace:
        """What training costs here, by the clock, measured on a few steps of full fine-tuning.

        Args:
            batch_size: samples a step.
            bf16: whether they compute in bfloat16.
        """
        begun = time.monotonic()
        network = self.network()
        load = time.monotonic() - begun
        batch = self.collator(network)([{"index": i} for i in range(min(batch_size, self.n_train))])
        n, model = len(batch["labels"]), network.model.train()
        for turn in range(3):
            if turn == 1:  # the first one warms up
                begun = time.monotonic()
            with torch.autocast(batch["labels"].device.type, torch.bfloat16, enabled=bf16):
                loss = model(**batch).loss
            loss.backward()
        train = (time.monotonic() - begun) / (2 * n)
        with torch.inference_mode():
            begun = time.monotonic()
            model.eval()(**batch)
        return Pace(load, train, (time.monotonic() - begun) / n)

    @staticmethod
    def is_convolutional(model: nn.Module) -> bool:
        """Whether most of its weights are convolutions': channels last is faster, and rates are higher."""
        inside = sum(n_parameters(part) for part in model.modules() if is_convolution(part))
        return 2 * inside > n_parameters(model)


@dataclass(frozen=True)
class Pace:
    """Seconds of training here.

    Attributes:
        load: of a fresh network.
        train: of one sample forward and backward, every weight trained.
        evaluate: of one sample forward.
    """

    load: float
    train: float
    evaluate: float


@dataclass(frozen=True)
class _Rows(Sequence[Mapping[str, object]]):
    """Several samples, one behind the other; all of them, or some."""

    parts: tuple[Samples, ...]
    indices: np.ndarray | None = None

    def __len__(self) -> int:
        return sum(map(len, self.parts)) if self.indices is None else len(self.indices)

    def __getitem__(self, index: int) -> Mapping[str, object]:  # type: ignore[override]  # nobody asks for a slice
        if self.indices is not None:
            index = int(self.indices[index])
        for part in self.parts:
            if index < len(part):
                return {"input": part[index]}
            index -= len(part)
        raise IndexError(index)


def _scaled(footprint: Footprint, share: float, country: str | None) -> Footprint:
    """That of a part of the work."""
    said = json.loads(json.dumps(footprint.to_dict()))  # nothing of it is the footprint's own, or there twice
    for amount in (*said.values(), *said["energy"].values()):
        if isinstance(amount, dict) and "value" in amount:
            amount["value"] = share * amount["value"]
    if said["memory_bytes"] is not None:
        said["memory_bytes"]["value"] /= share
    said |= {"samples": round(share * footprint.samples), "experiments": 0, "country": country}
    part = Footprint.from_dict(said)
    part.set_energy(part.energy)
    return part


@contextmanager
def _unsaid() -> Iterator[None]:
    """Without transformers' report of a head that does not fit, which is meant."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


class _PreparedOnce:
    """A collator of {"index", "label"}: prepared images stay in memory, as long as they fit."""

    def __init__(self, transfer: Transfer, network: Network):
        self.transfer, self.network = transfer, network
        self.keeps = network.modality == "image"  # texts are padded to their batch
        self.channels_last = transfer.has_channels_last(network.model)
        self.collate = DataCollator(network)

    def __call__(self, items: Sequence[Mapping[str, int]]) -> dict[str, Tensor]:
        indices = [item["index"] for item in items]
        batch = self._inputs(indices)
        return {**batch, "labels": torch.from_numpy(self.transfer.labels[indices])}

    def _inputs(self, indices: Sequence[int]) -> dict[str, Tensor]:
        kept = self.transfer._prepared
        new = [i for i in dict.fromkeys(indices) if i not in kept]
        fresh = self._prepare(new) if new else {}
        if not self.keeps:
            return {name: values for name, values in self._prepare(indices).items() if name != "labels"}
        rows = {i: {name: values[k] for name, values in fresh.items()} for k, i in enumerate(new)}
        size = sum(value.nbytes for value in rows[new[0]].values()) if new else 0
        if len(kept) * size < PREPARED_BYTES:
            kept.update(rows)
        whole = [rows.get(i) or kept[i] for i in indices]
        return {name: self._stacked([row[name] for row in whole]) for name in whole[0]}

    def _prepare(self, indices: Sequence[int]) -> dict[str, Tensor]:
        samples = self.transfer.samples
        batch = self.collate([{"input": samples[i], "label": 0} for i in indices])
        return {name: values for name, values in batch.items() if name != "labels"}

    def _stacked(self, values: list[Tensor]) -> Tensor:
        stacked = torch.stack(values)
        if self.channels_last and stacked.ndim == 4:
            return stacked.contiguous(memory_format=torch.channels_last)
        return stacked


def items(indices: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
    """Samples by index, as a dataset of Trainer's."""
    return [{"index": int(i), "label": int(labels[i])} for i in indices]
