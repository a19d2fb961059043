"""An adapter on disk in PEFT's format, adapter_config.json and adapter_model.safetensors, read as untrusted files."""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import Tensor

from hf_tl.errors import InputError
from hf_tl.files import make_folder, pack_tensors, read_untrusted, unpack_tensors, write_whole
from hf_tl.hub import is_hub_id, pull_files
from hf_tl.lora.config import NOT_IMPLEMENTED, PEFT_FIELDS, SPLIT_BASE, LoraConfig, check_fields, shortened
from hf_tl.names import match_pattern, peft_matcher


CONFIG_NAME = "adapter_config.json"
TENSORS_NAME = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""Stands before every name in the file of tensors."""

_PARTS = {
    "lora_A.weight": "A",
    "lora_B.weight": "B",
    "lora_B.bias": "bias",
    "lora_embedding_A": "A",
    "lora_embedding_B": "B",
    "lora_magnitude_vector": "magnitude",
}
_ENDING = re.compile(rf"(?:^|\.)({'|'.join(re.escape(name) for name in _PARTS)})$")

_SECOND = re.compile(r"(.+)\.(modules_to_save|original_module)\.(.+)$")

_LARGEST_CONFIG = 4 * 2**20  # bytes; real ones hold a few kB
_LARGEST_TENSORS = 64 * 2**30
_MOST_TENSORS = 200_000
_LONGEST_NAME = 512
_PATTERN_SECONDS = 10.0  # of the processor's time, for all names of a file; a thousandth is usual
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.bool)

_WHICH_MODULES = (
    "target_modules",
    "target_parameters",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "trainable_token_indices",
)
_DEFAULTS: dict[str, object] = {
    **{name: value for name, value in vars(LoraConfig()).items() if name in PEFT_FIELDS},
    "peft_type": "LORA",
    "inference_mode": True,
    "init_lora_weights": True,
    "auto_mapping": None,
    "peft_version": None,
    "megatron_core": "megatron.core",
    "loftq_config": {},
    "eva_config": None,
    "corda_config": None,
    "lora_ga_config": None,
    "qalora_group_size": 16,
    **dict.fromkeys(NOT_IMPLEMENTED),
    "use_qalora": False,
    "ensure_weight_tying": False,
}
"""Every field of PEFT's files with its default: some readers take them for granted."""


@dataclass(frozen=True)
class LayerUpdate:
    """The low-rank update of one layer: W + scale * B A (Hu et al., ICLR 2022, eq. 3).

    Attributes:
        name: the layer's name in the network.
        A: (rank, in), with kernel axes behind for a convolution, (rank, vocabulary) for an embedding.
        B: (out, rank), with kernel axes of 1 behind for a convolution; (out, rank / groups) where it is grouped.
        scale: alpha / rank, or alpha / sqrt(rank) with rsLoRA.
        embedding: whether it updates an embedding, whose weight is (vocabulary, out).
        experts: of how many stacked matrices A and B hold the factors; None for parameters, before a network tells.
        bias: (out,) bias of B, or None.
        magnitude: DoRA's L2 norm of each row of W, or None.
    """

    name: str
    A: Tensor
    B: Tensor
    scale: float
    embedding: bool = False
    bias: Tensor | None = None
    magnitude: Tensor | None = None
    experts: int | None = 1

    @property
    def rank(self) -> int:
        """The number of rows of A, for each expert."""
        return self.A.shape[0] // (self.experts or 1)

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
        return sum(part.numel() for part in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors under their names in a file, without that of the layer."""
        names = ("lora_embedding_A", "lora_embedding_B") if self.embedding else ("lora_A.weight", "lora_B.weight")
        found = {names[0]: self.A, names[1]: self.B}
        if self.bias is not None:
            found["lora_B.bias"] = self.bias
        if self.magnitude is not None:
            found["lora_magnitude_vector"] = self.magnitude
        return found

    def factors(self) -> tuple[Tensor, Tensor]:
        """B (out, rank) with the scale in it, and A (rank, in), in float64: the update is B A.

        The rows of a grouped B meet their own rows of A only.

        Raises:
            InputError: factors of stacked experts, which are an update for each.
        """
        if self.experts != 1:
            raise InputError(f"{self.name!r} holds factors of stacked experts, which are no update of one matrix")
        A = self.A.reshape(self.rank, -1).double()
        B = self.scale * self.B.reshape(self.B.shape[:2]).double()
        if self.groups > 1:
            B = torch.block_diag(*B.chunk(self.groups))
        return B, A


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
    def settings(self) -> LoraConfig:
        """The fields that `LoraConfig` has, but for those that choose modules: the tensors name theirs."""
        values: dict[str, Any] = {
            name: value
            for name, value in self.config.items()
            if name in PEFT_FIELDS and name not in _WHICH_MODULES and value is not None
        }
        return LoraConfig(**values)

    @cached_property
    def updates(self) -> dict[str, LayerUpdate]:
        """Layer name -> its update, in the order of the file.

        Raises:
            InputError: a factor without its partner, or factors that do not fit together or to the configuration.
        """
        parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
        embeddings = set()
        for key, tensor in self.tensors.items():
            name, ending = split_key(key)
            if ending is None:
                continue
            if _PARTS[ending] in parts[name]:
                raise InputError(f"{self.folder}: layer {name!r} has its {_PARTS[ending]} twice")
            parts[name][_PARTS[ending]] = tensor
            if ending.startswith("lora_embedding"):
                embeddings.add(name)
        if not parts:
            first = next(iter(self.tensors), "none")
            raise InputError(f"{self.folder} holds no lora_A and lora_B; its first tensor is {first!r}")
        updates = {}
        stop = process_time() + _PATTERN_SECONDS
        for name, found in parts.items():
            if process_time() > stop:
                raise InputError(f"{self.folder}: its rank_pattern and alpha_pattern take too long to match")
            problem = next(self._problems(name, found, embedding=name in embeddings), None)
            if problem is not None:
                raise InputError(f"{self.folder}: {problem}")
            A, B = found["A"], found["B"]
            scale = self.settings.scaling(A.shape[0], self.alpha_of(name))
            bias, magnitude = found.get("bias"), found.get("magnitude")
            experts = None if self.is_stacked(name) else 1
            updates[name] = LayerUpdate(name, A, B, scale, name in embeddings, bias, magnitude, experts)
        return updates

    @cached_property
    def others(self) -> dict[str, Tensor]:
        """The tensors that belong to no update: heads, biases, running statistics, embeddings."""
        return {key: tensor for key, tensor in self.tensors.items() if split_key(key)[1] is None}

    @property
    def n_parameters(self) -> int:
        """Number of scalars in the file."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    @property
    def n_labels(self) -> int | None:
        """Outputs of the head among the modules that come whole: rows of the matrix that no other one follows."""
        wanted = self.settings.modules_to_save or ()
        matrices = [
            tensor
            for key, tensor in self.others.items()
            if tensor.ndim == 2 and any(f"{entry}." in f"{key}." for entry in wanted)
        ]
        last = [
            matrix.shape[0]
            for matrix in matrices
            if not any(other.shape[1] == matrix.shape[0] for other in matrices if other is not matrix)
        ]
        sizes = last or [matrix.shape[0] for matrix in matrices]
        return sizes[-1] if sizes else None

    def is_stacked(self, name: str) -> bool:
        """Whether a layer's tensors are of one of target_parameters, so that the network tells what they stack."""
        wanted: Any = self.config.get("target_modules") or ()
        return bool(self.config.get("target_parameters")) and not peft_matcher(wanted)(name)

    def tokens_of(self, name: str) -> Sequence[int]:
        """The rows of an embedding that trainable_token_indices names, in the order of their tensor."""
        wanted: Any = self.config.get("trainable_token_indices") or ()
        if isinstance(wanted, Mapping):
            return next((rows for word, rows in wanted.items() if name == word or name.endswith(f".{word}")), ())
        return wanted

    def alpha_of(self, name: str) -> float:
        """alpha of a layer: of the first pattern that matches its name, or lora_alpha."""
        return float(match_pattern(self.settings.alpha_pattern, _patterned(name), default=self.settings.lora_alpha))

    def rank_of(self, name: str) -> int:
        """The rank that the configuration promises for a layer."""
        return match_pattern(self.settings.rank_pattern, _patterned(name), default=self.settings.r)

    def _problems(self, name: str, parts: Mapping[str, Tensor], *, embedding: bool) -> Iterator[str]:
        """What is wrong with a layer's tensors; a check counts on those before it, so only the first one holds."""
        for part in "AB":
            if part not in parts:
                factor = f"lora_embedding_{part}" if embedding else f"lora_{part}"
                yield f"layer {name!r} has no {factor}; the file is incomplete"
        for part, tensor in parts.items():
            if not tensor.is_floating_point():
                yield f"{part} of layer {name!r} is of {tensor.dtype}, expected floating point"
        A, B = parts["A"], parts["B"]
        if not _fit_together(A, B, embedding=embedding):
            yield (
                f"the factors of layer {name!r} do not fit together: A is {tuple(A.shape)}, B is {tuple(B.shape)}; "
                f"expected (rank, in) and (out, rank)"
            )
        if A.shape[0] != self.rank_of(name) and not self.is_stacked(name):
            yield f"layer {name!r} has rank {A.shape[0]} in the tensors, {self.rank_of(name)} in {CONFIG_NAME}"
        for part, option, wanted in (
            ("bias", "lora_bias", self.settings.lora_bias),
            ("magnitude", "use_dora", self.settings.use_dora),
        ):
            if part in parts and parts[part].numel() != B.shape[0]:
                shape = tuple(parts[part].shape)
                yield f"{part} of layer {name!r} is {shape}; expected {B.shape[0]} values, one per row of B"
            if (part in parts) != wanted:
                has = "a" if part in parts else "no"
                yield f"layer {name!r} has {has} {part}, but {option} is {str(wanted).lower()}"


def read_adapter(folder: str | Path, *, revision: str | None = None) -> Adapter:
    """Reads adapter_config.json and adapter_model.safetensors; nothing in them is run, imported or followed.

    Args:
        folder: where they are; or "user/name", a repository of the Hub.
        revision: branch, tag or commit of a repository; None for main.

    Raises:
        InputError: files that are missing, damaged or of another method than LoRA; a repository that cannot be had.
    """
    place = _find_folder(folder, revision)
    adapter = Adapter(_read_config(place), _read_tensors(place), str(folder))
    adapter.updates  # noqa: B018  # checks every factor, now rather than at first use
    return adapter


def write_adapter(adapter: Adapter, folder: str | Path) -> Path:
    """Writes both files into a folder, which is made; returns the folder. The same adapter gives the same bytes."""
    place = make_folder(folder)
    text = json.dumps({**_DEFAULTS, **adapter.config}, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    write_whole(
        place / TENSORS_NAME, pack_tensors({PREFIX + name: tensor for name, tensor in adapter.tensors.items()})
    )
    write_whole(place / CONFIG_NAME, f"{text}\n")
    return place


def rank_fields(ranks: Mapping[str, int], alphas: Mapping[str, float]) -> dict[str, object]:
    """r, lora_alpha and their patterns, such that every layer has this rank and alpha."""
    fields: dict[str, object] = {}
    for field, pattern, values in (("r", "rank_pattern", ranks), ("lora_alpha", "alpha_pattern", alphas)):
        common = Counter(values.values()).most_common(1)[0][0]
        fields[field] = common
        fields[pattern] = {f"^{re.escape(name)}": value for name, value in values.items() if value != common}
    return fields


def alpha_for(scale: float, rank: int, *, use_rslora: bool) -> float:
    """The alpha that gives a layer of this rank its scale, without the last digits that rounding leaves."""
    alpha = float(f"{scale * (math.sqrt(rank) if use_rslora else rank):.12g}")
    return int(alpha) if alpha.is_integer() else alpha


def is_split(config: Mapping[str, object]) -> bool:
    """Whether the adapter was trained beside a base weight that its init had changed (PiSSA, OLoRA)."""
    return config.get("init_lora_weights") in SPLIT_BASE


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite."""
    # a finite sum proves it in one pass without a mask; half precision may overflow on sound values
    return not tensor.is_floating_point() or math.isfinite(tensor.sum().item()) or bool(torch.isfinite(tensor).all())


def split_key(key: str) -> tuple[str, str | None]:
    """A tensor's name -> the layer and which part of its update it is; None where it is of no update."""
    found = _ENDING.search(key)
    return (key, None) if found is None else (key[: found.start()], found.group(1))


def _patterned(name: str) -> str:
    """The name that patterns are matched with: the output projection of attention goes with the attention."""
    return name.partition(".base_layer.")[0]


def _fit_together(A: Tensor, B: Tensor, *, embedding: bool) -> bool:
    if A.ndim != B.ndim or not 2 <= A.ndim <= (2 if embedding else 5):
        return False
    rank, kernel = A.shape[0], A.ndim - 2
    groups = rank // B.shape[1]
    whole = groups > 0 and rank == groups * B.shape[1] and B.shape[0] % groups == 0
    return whole and tuple(B.shape[2:]) == (1,) * kernel and (kernel > 0 or groups == 1)


def _find_folder(folder: str | Path, revision: str | None) -> Path:
    try:
        there = Path(folder).is_dir()
    except ValueError as error:  # a null byte in the name
        raise InputError(f"{str(folder)!r} is not a folder name: {error}") from error
    if there and revision is not None:
        raise InputError(f"revision={revision!r} is for a repository of the Hub, and {str(folder)!r} is a folder here")
    if there:
        return Path(folder)
    if is_hub_id(folder):
        return pull_files(str(folder), [CONFIG_NAME, TENSORS_NAME], revision=revision)
    raise InputError(f"adapter folder {str(folder)!r} does not exist; give a folder with an {CONFIG_NAME}")


def _read(path: Path, *, largest: int) -> bytes:
    try:
        return read_untrusted(path, largest=largest)
    except FileNotFoundError as error:
        raise InputError(
            f"{str(path.parent)!r} holds no adapter: {path.name} is missing; give a folder that save_adapter, "
            f"hf-tl or peft wrote"
        ) from error


def _read_config(folder: Path) -> dict[str, object]:
    """The checked fields of a LoRA adapter's configuration, under PEFT's names.

    Fields that only matter before training (`eva_config`, ...) are left out; so are unknown ones that are null, false
    or empty. Nothing that the file names is imported, opened or fetched.

    Raises:
        InputError: no such file, not JSON, another method than LoRA, a value of the wrong kind, or an option that
            changes what the tensors mean and is not implemented here.
    """
    path = folder / CONFIG_NAME
    data = _read(path, largest=_LARGEST_CONFIG)
    try:
        raw = json.loads(data.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_no_doubles)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise InputError(f"{path} should hold an object, got {type(raw).__name__}")
    return check_fields(raw, where=str(path))


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """Name in the network -> tensor, sorted.

    Raises:
        InputError: no such file, a pickle in its place, a file that is damaged, a tensor without values, of another
            type than floating point, integer or boolean, or with NaN or infinite values.
    """
    path, pickled = folder / TENSORS_NAME, folder / "adapter_model.bin"
    if not path.exists() and pickled.exists():
        raise InputError(
            f"{str(folder)!r} holds {pickled.name}, a pickle, which can run code when it is read; hf_tl reads "
            f"{TENSORS_NAME} only: if you trust its author, load and save it again with peft"
        )
    if not path.exists() and (folder / f"{TENSORS_NAME}.index.json").exists():
        raise InputError(
            f"{str(folder)!r} holds an adapter in several files ({TENSORS_NAME}.index.json); hf_tl reads it as one: "
            "load it as it was saved, and save it again with a larger max_shard_size"
        )
    tensors = unpack_tensors(_read(path, largest=_LARGEST_TENSORS), path)
    if len(tensors) > _MOST_TENSORS:
        raise InputError(f"{path} holds {len(tensors):,} tensors; hf_tl reads at most {_MOST_TENSORS:,}")
    found: dict[str, Tensor] = {}
    for key, tensor in sorted(tensors.items(), key=lambda item: _by_number(item[0])):
        _check_tensor(key, tensor, path)
        name = key.removeprefix(PREFIX)
        if name in found:
            raise InputError(f"{path} holds {name!r} twice, with {PREFIX!r} before it and without")
        found[name] = tensor
    return _plain_names(found)


def _plain_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without what PEFT writes twice, under one name each.

    Of a module that trains in full, PEFT adds all live tensors where it saves the vocabulary or every bias: the copy
    under a second name, and the frozen original. The frozen weight of an embedding with trained rows goes by
    `token_adapter.base_layer`.
    """
    found = {}
    for name, tensor in tensors.items():
        second = _SECOND.match(name)
        plain = None if second is None else tensors.get(f"{second[1]}.{second[3]}")
        if second and plain is not None and (second[2] == "original_module" or torch.equal(plain, tensor)):
            continue
        found[name.replace(".token_adapter.base_layer.", ".base_layer.")] = tensor
    return found


def _by_number(name: str) -> list[tuple[int, str]]:
    """Sorts layer 2 before layer 10."""
    return [(len(part), part) if part.isdecimal() else (0, part) for part in name.split(".")]


def _check_tensor(key: str, tensor: Tensor, path: Path) -> None:
    if len(key) > _LONGEST_NAME:
        raise InputError(f"{path} holds a tensor whose name has {len(key):,} characters, from {key[:40]!r}")
    if tensor.dtype not in _DTYPES:
        raise InputError(f"{path}: {key!r} is of {tensor.dtype}; expected floating point, int64, int32 or bool")
    if 0 in tensor.shape:
        raise InputError(
            f"{path}: {key!r} has shape {tuple(tensor.shape)} and no values; it was saved from a shard, "
            f"gather the parameters before saving"
        )
    if not is_finite(tensor):
        raise InputError(f"{path}: {key!r} holds NaN or infinite values")


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _no_doubles(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        name, times = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"{shortened(name)} stands {times} times in one object")
    return found
