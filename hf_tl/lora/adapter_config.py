"""adapter_config.json, PEFT's description of an adapter: read with suspicion, written the same byte for byte."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from hf_tl.errors import InputError
from hf_tl.lora.adapter_file import open_regular, write_whole
from hf_tl.lora.config import NOT_IMPLEMENTED, PEFT_FIELDS, WITHOUT_EFFECT, check_field


CONFIG_NAME = "adapter_config.json"
_LARGEST = 4 * 2**20  # bytes; real ones hold a few kB


def read_config(folder: Path) -> dict[str, object]:
    """The checked fields of a LoRA adapter's configuration, under PEFT's names.

    Fields that only matter before training (`eva_config`, `runtime_config`, ...) are left out; so are unknown ones
    that are null, false or empty. Nothing that the file names is imported, opened or fetched.

    Raises:
        InputError: no such file, not JSON, another method than LoRA, a value of the wrong kind, or an option that
            changes what the tensors mean and is not spoken here.
    """
    path = folder / CONFIG_NAME
    with open_regular(path, largest=_LARGEST) as file:
        data = file.read()
    try:
        raw = json.loads(data.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_no_doubles)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise InputError(f"{path} should hold an object, got {type(raw).__name__}")
    return check_config(raw, where=str(path))


def check_config(raw: Mapping[str, object], *, where: str) -> dict[str, object]:
    """`read_config` for an object that is in memory already; `where` names it in errors."""
    method = raw.get("peft_type")
    if method != "LORA":
        raise InputError(f"{where} has peft_type={method!r}; hf_tl loads LORA only, load other methods with peft")
    checked: dict[str, object] = {}
    for name, value in raw.items():
        if name in PEFT_FIELDS:
            check_field(name, value, where=f"{where}: ")
            checked[name] = value
        elif name in _OWN_FIELDS:
            expected, accepts = _OWN_FIELDS[name]
            if not accepts(value):
                raise InputError(f"{where}: {name} should be {expected}, got {_short(value)}")
            checked[name] = value
        elif name in NOT_IMPLEMENTED and not _is_inert(value):
            raise InputError(
                f"{where} has {name}={_short(value)}, {NOT_IMPLEMENTED[name]}, which hf_tl does not implement; "
                f"load it with peft"
            )
        elif name not in WITHOUT_EFFECT and not _is_inert(value):
            raise InputError(f"{where} has {name}={_short(value)}, which hf_tl does not know; load it with peft")
    _check_init(checked.get("init_lora_weights", True), where)
    return checked


def write_config(folder: Path, fields: Mapping[str, object]) -> None:
    """Writes the fields sorted, with no time, place or set order in them: one configuration, one file."""
    text = json.dumps(fields, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    write_whole(folder / CONFIG_NAME, f"{text}\n".encode())


_OWN_FIELDS: dict[str, tuple[str, Callable[[object], bool]]] = {  # of the file, beside those of LoraConfig
    "peft_type": ("a string", lambda value: isinstance(value, str)),
    "peft_version": ("a string or null", lambda value: value is None or isinstance(value, str)),
    "auto_mapping": ("an object or null", lambda value: value is None or isinstance(value, dict)),
}

_PLAIN_INITS = (True, False, "gaussian", "gaussian_b", "kaiming", "orthogonal", "eva")
_SPLIT_INITS = ("pissa", "olora")


def _check_init(init: object, where: str) -> None:
    """Some inits take the adapter's first value out of the base weight, so that loading has to do it again."""
    if isinstance(init, str) and init not in (*_PLAIN_INITS, *_SPLIT_INITS):
        raise InputError(
            f"{where} has init_lora_weights={_short(init)}, after which the base weight is no longer the pre-trained "
            f"one; hf_tl cannot repeat that: load it with peft, or save it with peft's "
            f"path_initial_model_for_weight_conversion"
        )


def is_split(config: Mapping[str, object]) -> bool:
    """Whether the adapter was trained beside a base weight that its init had changed (PiSSA, OLoRA)."""
    return config.get("init_lora_weights") in _SPLIT_INITS


def _is_inert(value: object) -> bool:
    return value is None or value is False or value == [] or value == {}


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _no_doubles(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        name, times = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"{_short(name)} stands {times} times in one object")
    return found


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
