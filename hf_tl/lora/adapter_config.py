"""adapter_config.json, PEFT's description of an adapter: read with suspicion, written the same byte for byte."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from hf_tl.errors import InputError
from hf_tl.lora.adapter_file import open_regular, write_whole


CONFIG_NAME = "adapter_config.json"
_LARGEST = 4 * 2**20  # bytes; real ones hold a few kB
_MOST_PATTERNS = 4096
_LONGEST_PATTERN = 512


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
        if name in _FIELDS:
            expected, accepts = _FIELDS[name]
            if not accepts(value):
                raise InputError(f"{where}: {name} should be {expected}, got {_short(value)}")
            checked[name] = value
        elif name in _REFUSED and not _is_inert(value):
            raise InputError(
                f"{where} has {name}={_short(value)}, {_REFUSED[name]}, which hf_tl does not implement; "
                f"load it with peft"
            )
        elif name not in _WITHOUT_EFFECT and not _is_inert(value):
            raise InputError(f"{where} has {name}={_short(value)}, which hf_tl does not know; load it with peft")
    _check_init(checked.get("init_lora_weights", True), where)
    return checked


def write_config(folder: Path, fields: Mapping[str, object]) -> None:
    """Writes the fields sorted, with no time, place or set order in them: one configuration, one file."""
    text = json.dumps(fields, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    write_whole(folder / CONFIG_NAME, f"{text}\n".encode())


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= 4096


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_rank(value: object) -> bool:
    return _is_integer(value) and 1 <= value <= 2**20


def _is_number(value: object) -> bool:
    return (isinstance(value, float) or _is_integer(value)) and abs(value) < 1e30 and math.isfinite(value)


def _is_list(value: object, kind: Callable[[object], bool]) -> bool:
    return isinstance(value, list) and all(kind(item) for item in value)


def _is_patterns(value: object, kind: Callable[[object], bool]) -> bool:
    return value is None or (
        isinstance(value, dict)
        and len(value) <= _MOST_PATTERNS
        and all(len(name) <= _LONGEST_PATTERN and kind(item) for name, item in value.items())
    )


_OPTIONAL_TEXT = ("a string or null", lambda value: value is None or _is_text(value))
_NAMES = (
    "a string, a list of strings or null",
    lambda value: value is None or _is_text(value) or _is_list(value, _is_text),
)
_FLAG = ("true or false", lambda value: isinstance(value, bool))

_FIELDS: dict[str, tuple[str, Callable[[object], bool]]] = {
    "peft_type": _OPTIONAL_TEXT,
    "task_type": _OPTIONAL_TEXT,
    "base_model_name_or_path": _OPTIONAL_TEXT,
    "revision": _OPTIONAL_TEXT,
    "peft_version": _OPTIONAL_TEXT,
    "auto_mapping": ("an object or null", lambda value: value is None or isinstance(value, dict)),
    "inference_mode": _FLAG,
    "r": ("a whole number from 1", _is_rank),
    "lora_alpha": ("a finite number", _is_number),
    "lora_dropout": ("a number from 0 to below 1", lambda value: _is_number(value) and 0 <= value < 1),
    "target_modules": _NAMES,
    "exclude_modules": _NAMES,
    "layers_pattern": _NAMES,
    "layers_to_transform": (
        "a whole number, a list of them or null",
        lambda value: value is None or _is_integer(value) or _is_list(value, _is_integer),
    ),
    "modules_to_save": ("a list of strings or null", lambda value: value is None or _is_list(value, _is_text)),
    "bias": ('"none", "all" or "lora_only"', lambda value: value in ("none", "all", "lora_only")),
    "fan_in_fan_out": _FLAG,
    "use_rslora": _FLAG,
    "use_dora": _FLAG,
    "lora_bias": _FLAG,
    "rank_pattern": (
        f"an object of at most {_MOST_PATTERNS} patterns and whole numbers from 1, or null",
        lambda value: _is_patterns(value, _is_rank),
    ),
    "alpha_pattern": (
        f"an object of at most {_MOST_PATTERNS} patterns and finite numbers, or null",
        lambda value: _is_patterns(value, _is_number),
    ),
    "init_lora_weights": ("true, false or a string", lambda value: isinstance(value, bool) or _is_text(value)),
}
"""The fields that hf_tl speaks: what each should be, in words, and the check."""

_REFUSED = {
    "use_qalora": "quantisation-aware LoRA",
    "trainable_token_indices": "trained rows of an embedding",
    "layer_replication": "layers that are stacked several times",
    "target_parameters": "LoRA on parameters outside of layers (mixtures of experts)",
    "megatron_config": "layers of Megatron",
    "alora_invocation_tokens": "activated LoRA",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
    "use_bdlora": "block-diagonal LoRA",
    "arrow_config": "routing among adapters (Arrow)",
    "kasa_config": "KaSA",
    "ensure_weight_tying": "tied copies of adapted layers",
}
_WITHOUT_EFFECT = frozenset(  # on an adapter that is trained
    ("runtime_config", "eva_config", "corda_config", "lora_ga_config", "loftq_config", "megatron_core")
) | {"qalora_group_size"}

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
