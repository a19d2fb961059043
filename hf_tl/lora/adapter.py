"""An adapter as it is on disk: the update of each layer, what else was trained, and the configuration."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from hf_tl.errors import InputError
from hf_tl.hub import is_hub_id, pull_files
from hf_tl.lora.adapter_config import CONFIG_NAME, read_config, write_config
from hf_tl.lora.adapter_file import TENSORS_NAME, read_tensors, write_tensors
from hf_tl.names import match_pattern


DEFAULT_RANK = 8
DEFAULT_ALPHA = 8

_PARTS = {
    "lora_A.weight": "A",
    "lora_B.weight": "B",
    "lora_B.bias": "bias",
    "lora_embedding_A": "A",
    "lora_embedding_B": "B",
    "lora_magnitude_vector": "magnitude",
}
_ENDING = re.compile(rf"(?:^|\.)({'|'.join(re.escape(name) for name in _PARTS)})$")


@dataclass(frozen=True)
class LayerUpdate:
    """The low-rank update of one layer: W + scale * B A (Hu et al., ICLR 2022, eq. 3).

    Attributes:
        name: the layer's name in the network.
        A: (rank, in), with kernel axes behind for a convolution, (rank, vocabulary) for an embedding.
        B: (out, rank), with kernel axes of 1 behind for a convolution; (out, rank / groups) where it is grouped.
        scale: alpha / rank, or alpha / sqrt(rank) with rsLoRA.
        embedding: whether it updates an embedding, whose weight is (vocabulary, out).
        bias: (out,) bias of B, or None.
        magnitude: DoRA's norm of each row of W, or None.
    """

    name: str
    A: Tensor
    B: Tensor
    scale: float
    embedding: bool = False
    bias: Tensor | None = None
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        """The number of rows of A."""
        return self.A.shape[0]

    @property
    def groups(self) -> int:
        """In how many groups of channels the layer works; 1 but for grouped convolutions."""
        return self.rank // self.B.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the update as a matrix; the axes of a kernel belong to `in`."""
        return self.B.shape[0], self.A[0].numel()

    @property
    def n_parameters(self) -> int:
        """Number of scalars that are stored for this layer."""
        parts = (self.A, self.B, self.bias, self.magnitude)
        return sum(part.numel() for part in parts if part is not None)

    def matrix(self) -> Tensor:
        """scale * B A in float64, (out, in); the rows of a grouped B meet their own rows of A only."""
        B, A = self.factors()
        return self.scale * (B @ A)

    def factors(self) -> tuple[Tensor, Tensor]:
        """B (out, rank) and A (rank, in) in float64, such that the update is scale * B A."""
        A = self.A.reshape(self.rank, -1).double()
        B = self.B.reshape(self.B.shape[:2]).double()
        if self.groups > 1:
            B = torch.block_diag(*B.chunk(self.groups))
        return B, A

    def weight(self) -> Tensor:
        """The update as a weight, in float64: (out, in, *kernel), (vocabulary, out) for an embedding.

        A grouped convolution's weight is smaller than this: there every group of the update sees all inputs.
        """
        if self.embedding:
            return self.matrix().T
        return self.matrix().reshape(self.B.shape[0], *self.A.shape[1:])


@dataclass(frozen=True)
class Adapter:
    """What a folder of PEFT's format holds.

    Attributes:
        config: the fields of adapter_config.json that mean something here, under PEFT's names.
        tensors: name in the network -> tensor.
        folder: where it was read, for messages.
    """

    config: Mapping[str, object]
    tensors: Mapping[str, Tensor]
    folder: str = "adapter"

    @cached_property
    def updates(self) -> dict[str, LayerUpdate]:
        """Layer name -> its update, in the order of the file.

        Raises:
            InputError: a factor without its partner, or factors that do not fit together or to the configuration.
        """
        parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
        embeddings = set()
        for key, tensor in self.tensors.items():
            name, part = split_key(key)
            if part is None:
                continue
            if _PARTS[part] in parts[name]:
                raise InputError(f"{self.folder}: layer {name!r} has its {_PARTS[part]} twice")
            parts[name][_PARTS[part]] = tensor
            if part.startswith("lora_embedding"):
                embeddings.add(name)
        if not parts:
            raise InputError(
                f"{self.folder} holds no lora_A and lora_B; its first tensor is {next(iter(self.tensors))!r}"
            )
        return {name: self._update(name, found, name in embeddings) for name, found in parts.items()}

    @cached_property
    def others(self) -> dict[str, Tensor]:
        """The tensors that belong to no update: heads, biases, running statistics, embeddings."""
        return {key: tensor for key, tensor in self.tensors.items() if split_key(key)[1] is None}

    @property
    def n_parameters(self) -> int:
        """Number of scalars in the file."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    def alpha_of(self, name: str) -> float:
        """alpha of a layer: of the first pattern that matches its name, or lora_alpha."""
        found = match_pattern(self.config.get("alpha_pattern") or {}, _patterned(name))
        return float(self.config.get("lora_alpha", DEFAULT_ALPHA) if found is None else found)

    def rank_of(self, name: str) -> int:
        """The rank that the configuration promises for a layer."""
        found = match_pattern(self.config.get("rank_pattern") or {}, _patterned(name))
        return int(self.config.get("r", DEFAULT_RANK) if found is None else found)

    def _update(self, name: str, parts: Mapping[str, Tensor], embedding: bool) -> LayerUpdate:
        missing = [letter for letter in "AB" if letter not in parts]
        if missing:
            kind = "lora_embedding" if embedding else "lora"
            raise InputError(f"{self.folder}: layer {name!r} has no {kind}_{missing[0]}; the file is incomplete")
        A, B = parts["A"], parts["B"]
        for part, tensor in parts.items():
            if not tensor.is_floating_point():
                raise InputError(
                    f"{self.folder}: {part} of layer {name!r} is of {tensor.dtype}, expected floating point"
                )
        kernel = A.ndim - 2
        fits = (
            (A.ndim == B.ndim == 2 if embedding else 2 <= A.ndim <= 5 and A.ndim == B.ndim)
            and A.shape[0] % B.shape[1] == 0
            and B.shape[0] % (A.shape[0] // B.shape[1]) == 0
            and tuple(B.shape[2:]) == (1,) * kernel
            and (kernel > 0 or A.shape[0] == B.shape[1])
        )
        if not fits:
            raise InputError(
                f"{self.folder}: the factors of layer {name!r} do not fit together: A is {tuple(A.shape)}, "
                f"B is {tuple(B.shape)}; expected (rank, in) and (out, rank)"
            )
        rank, promised = A.shape[0], self.rank_of(name)
        if rank != promised:
            raise InputError(
                f"{self.folder}: layer {name!r} has rank {rank} in the tensors, {promised} in adapter_config.json"
            )
        for part in ("bias", "magnitude"):
            if part in parts and parts[part].numel() != B.shape[0]:
                raise InputError(
                    f"{self.folder}: {part} of layer {name!r} is {tuple(parts[part].shape)}; "
                    f"expected {B.shape[0]} values, one a row of B"
                )
        for part, option in (("bias", "lora_bias"), ("magnitude", "use_dora")):
            if (part in parts) != bool(self.config.get(option, False)):
                says = str(bool(self.config.get(option, False))).lower()
                holds = "a" if part in parts else "no"
                raise InputError(f"{self.folder}: layer {name!r} has {holds} {part}, but {option} is {says}")
        scale = self.alpha_of(name) / (rank**0.5 if self.config.get("use_rslora", False) else rank)
        return LayerUpdate(name, A, B, scale, embedding, parts.get("bias"), parts.get("magnitude"))


def read_adapter(folder: str | Path, *, revision: str | None = None) -> Adapter:
    """Reads adapter_config.json and adapter_model.safetensors; nothing in them is run, imported or followed.

    Args:
        folder: where they are; or "user/name", a repository of the Hub.
        revision: branch, tag or commit of a repository; None for main.

    Raises:
        InputError: files that are missing, damaged or of another method than LoRA; a repository that cannot be had.
    """
    if is_hub_id(folder):
        place = pull_files(folder, [CONFIG_NAME, TENSORS_NAME], revision=revision)
    else:
        place = _folder(folder, revision)
    adapter = Adapter(read_config(place), read_tensors(place), str(folder))
    adapter.updates  # noqa: B018  # checks every factor, now rather than at first use
    return adapter


def _folder(folder: str | Path, revision: str | None) -> Path:
    try:
        there = Path(folder).is_dir()
    except ValueError as error:  # a null byte in the name
        raise InputError(f"{str(folder)!r} is not a folder name: {error}") from error
    if not there:
        raise InputError(f"adapter folder {str(folder)!r} does not exist; give a folder with an adapter_config.json")
    if revision is not None:
        raise InputError(f"revision={revision!r} is for a repository of the Hub, and {str(folder)!r} is a folder here")
    return Path(folder)


def write_adapter(adapter: Adapter, folder: str | Path) -> Path:
    """Writes both files into a folder, which is made; returns the folder."""
    place = Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{str(folder)!r} cannot be made a folder: {error.strerror}") from error
    write_tensors(place, adapter.tensors)
    write_config(place, adapter.config)
    return place


def split_key(key: str) -> tuple[str, str | None]:
    """A tensor's name -> the layer and which part of its update it is; None where it is of no update."""
    found = _ENDING.search(key)
    return (key, None) if found is None else (key[: found.start()], found.group(1))


def layer_names(keys: Iterable[str]) -> list[str]:
    """The layers that have an update among these tensors."""
    return list(dict.fromkeys(name for name, part in map(split_key, keys) if part is not None))


def _patterned(name: str) -> str:
    """The name that patterns are matched with: the output projection of attention goes with the attention."""
    return name.partition(".base_layer.")[0]
