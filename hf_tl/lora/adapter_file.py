"""adapter_model.safetensors: the tensors of an adapter, read as a file from a stranger."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from hf_tl.errors import InputError, in_one_line
from hf_tl.lora.record import PREFIX


TENSORS_NAME = "adapter_model.safetensors"

_LONGEST_NAME = 512
_MOST_TENSORS = 200_000
_LARGEST = 64 * 2**30  # bytes
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.bool)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Name in the network -> tensor, sorted, in memory of its own: a file that changes later changes nothing here.

    Raises:
        InputError: no such file, a pickle in its place, a file that is damaged, a tensor without values, of another
            type than floating point, integer or boolean, or with NaN or infinite values.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = folder / TENSORS_NAME
    pickled = folder / "adapter_model.bin"
    if not path.exists() and pickled.exists():
        raise InputError(
            f"{str(folder)!r} holds {pickled.name}, a pickle, which can run code when it is read; hf_tl reads "
            f"{TENSORS_NAME} only: if you trust its author, load and save it again with peft"
        )
    with open_regular(path, largest=_LARGEST) as file:
        data = file.read()
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise InputError(f"{path} is damaged or not a safetensors file: {in_one_line(error)}") from error
    if not tensors:
        raise InputError(f"{path} holds no tensors")
    if len(tensors) > _MOST_TENSORS:
        raise InputError(f"{path} holds {len(tensors):,} tensors; hf_tl reads at most {_MOST_TENSORS:,}")
    found: dict[str, Tensor] = {}
    for key, tensor in sorted(tensors.items(), key=lambda item: _by_number(item[0])):
        _check_tensor(key, tensor, path)
        name = key.removeprefix(PREFIX)
        if name in found:
            raise InputError(f"{path} holds {name!r} twice, with {PREFIX!r} before it and without")
        found[name] = tensor
    return found


def write_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> Path:
    """Writes name in the network -> tensor, sorted; whoever has the old file open keeps the old file.

    Returns:
        The path of the file.
    """
    from safetensors.torch import save

    named = {PREFIX + name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    return write_whole(folder / TENSORS_NAME, save(named, metadata={"format": "pt"}))


def write_whole(path: Path, data: bytes) -> Path:
    """Writes a file that is there whole or not at all, whenever the process ends; returns its path."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        unfinished.write_bytes(data)
        os.replace(unfinished, path)
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be written: {in_one_line(error)}") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return path


@contextmanager
def open_regular(path: Path, *, largest: int) -> Iterator[BinaryIO]:
    """Opens a regular file of at most `largest` bytes: no pipe that never ends, no device.

    Links are followed: the Hub's cache is made of them.
    """
    try:
        # a named pipe without a writer would block an ordinary open
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise InputError(
            f"{str(path.parent)!r} holds no adapter: {path.name} is missing; give a folder that save_adapter, "
            f"hf-tl or peft wrote"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} cannot be read: {in_one_line(error)}") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size > largest:
        os.close(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{str(path)!r} is not a regular file")
        raise InputError(f"{str(path)!r} has {status.st_size:,} bytes; hf_tl reads at most {largest:,}")
    with os.fdopen(descriptor, "rb") as file:
        yield file


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
    if tensor.is_floating_point() and not is_finite(tensor):
        raise InputError(f"{path}: {key!r} holds NaN or infinite values")


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite."""
    # a finite sum proves it in one pass without a mask; half precision may overflow on sound values
    return math.isfinite(tensor.sum().item()) or bool(torch.isfinite(tensor).all())
