"""Files: written whole or not at all, and read with care where others wrote them."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_tl.errors import InputError, in_one_line


if TYPE_CHECKING:
    from torch import Tensor


def make_folder(folder: str | Path) -> Path:
    """Makes a folder, with its parents; it may be there already.

    Raises:
        InputError: a file of that name, a disk that is full, a name that no folder can have.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # a ValueError for a null byte in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{str(folder)!r} cannot be made a folder: {reason}") from error
    return Path(folder)


@contextmanager
def writing_to(path: str | Path) -> Iterator[None]:
    """Around what a library writes to a path: where the disk refuses, the error is a sentence that names the path.

    Raises:
        InputError: a disk that is full, a folder that may not be written.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be written: {in_one_line(error)}") from error


def write_whole(path: Path, data: bytes | str) -> Path:
    """Writes a file that is there whole or not at all, whenever the process ends; returns its path.

    Args:
        path: of the file; its folder is made.
        data: its content; text as UTF-8.

    Raises:
        InputError: a disk that is full, a folder that may not be written.
    """
    make_folder(path.parent)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with writing_to(path):
            unfinished.write_bytes(data.encode() if isinstance(data, str) else data)
            os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def write_json(path: Path, value: object) -> Path:
    """Writes what JSON can hold, as `write_whole` does."""
    return write_whole(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_once(path: Path, value: object) -> None:
    """Writes what JSON can hold, whole, unless the file is there: of several processes the first one's stays."""
    own = write_json(path.with_name(f"{path.name}.{os.getpid()}"), value)
    try:
        os.link(own, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        os.replace(own, path)
    finally:
        own.unlink(missing_ok=True)


def read_untrusted(path: Path, *, largest: int) -> bytes:
    """The content of a regular file of at most `largest` bytes; never a device, or a pipe that does not end.

    Links are followed: the Hub's cache is made of them.

    Raises:
        FileNotFoundError: no such file.
        InputError: anything else that cannot be read.
    """
    try:
        status = path.stat()
        regular = stat.S_ISREG(status.st_mode)
        data = path.read_bytes() if regular and status.st_size <= largest else b""
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # a ValueError for a null byte in the name
        raise InputError(f"{str(path)!r} cannot be read: {in_one_line(error)}") from error
    if not regular:
        raise InputError(f"{str(path)!r} is not a regular file")
    if status.st_size > largest:
        raise InputError(f"{str(path)!r} has {status.st_size:,} bytes; hf_tl reads at most {largest:,}")
    return data


def parse_json(data: bytes, path: Path) -> dict[str, Any]:
    """The object that a JSON file is, once it was read.

    Args:
        data: its content.
        path: what messages call it.

    Raises:
        InputError: no JSON, JSON that is nested too deeply, or anything but an object.
    """
    try:
        said = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{str(path)!r} is not JSON: {in_one_line(error)}") from error
    if not isinstance(said, dict):
        raise InputError(f"{str(path)!r} should be a JSON object, got a {type(said).__name__}")
    return said


def leads_out(path: Path, *, root: Path | None = None) -> bool:
    """Whether a file is a link out of its folder, other than into the blobs of the Hub's cache.

    Args:
        path: of the file.
        root: the folder, where the file lies in a sub-folder of it; None for the one that it lies in.
    """
    if not path.is_symlink():
        return False
    try:
        folder, target = (root or path.parent).resolve(), path.resolve(strict=True)
    except (OSError, RuntimeError):  # links in a circle, or to nothing
        return True
    blobs = folder.parents[1] / "blobs" if len(folder.parents) > 1 else folder
    return not (target.is_relative_to(folder) or target.parent == blobs)


def pack_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """A safetensors file, sorted by name; of tensors that share memory, each is written."""
    from safetensors.torch import save

    return save(with_memory_each({name: tensors[name] for name in sorted(tensors)}), metadata={"format": "pt"})


def with_memory_each(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU and contiguous, as safetensors wants them; those that share memory are copied."""
    found: dict[str, Tensor] = {}
    memory = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        address = plain.untyped_storage().data_ptr()
        found[name] = plain.clone() if address in memory else plain
        memory.add(address)
    return found


def unpack_tensors(data: bytes, path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file that was read, in memory of their own: a change of the file changes nothing.

    Raises:
        InputError: a file that is damaged, or holds nothing.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise InputError(f"{path} is damaged or not a safetensors file: {in_one_line(error)}") from error
    if not tensors:
        raise InputError(f"{path} holds no tensors")
    return tensors
