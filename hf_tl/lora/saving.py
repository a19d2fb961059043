"""save_adapter: an adapter as a folder that PEFT, transformers and hf_tl load."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from torch import nn

from hf_tl.errors import InputError
from hf_tl.lora.adapter import Adapter, write_adapter
from hf_tl.lora.adapter_file import is_finite
from hf_tl.lora.config import LoraConfig
from hf_tl.lora.pattern import match_pattern
from hf_tl.lora.placement import base_modules, is_adaptable
from hf_tl.lora.record import PREFIX, AdapterRecord, adapter_state_dict, record_of
from hf_tl.lora.resize import rank_fields


_HEADS = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}
"""What PEFT expects in the file by itself where the configuration names one of these tasks."""


_FIELDS = ("lora_dropout", "bias", "use_rslora", "use_dora", "lora_bias", "revision", "fan_in_fan_out")


def save_adapter(model: nn.Module, folder: str | Path, *, adapter: str = "default") -> Path:
    """Writes adapter_config.json and adapter_model.safetensors: the adapter, not the network.

    The folder loads with `load_adapter`, `PeftModel.from_pretrained`, `AutoPeftModelFor...from_pretrained`,
    transformers' `model.load_adapter` and, if the network has a name or folder that transformers finds,
    `AutoModelFor...from_pretrained(folder)`. The same adapter gives the same bytes.

    Args:
        model: a network with adapters, also inside DistributedDataParallel or torch.compile.
        folder: is made; an adapter that is in it is replaced.
        adapter: which one.

    Returns:
        The folder.

    Raises:
        InputError: no such adapter, a folder that cannot be written, or values that are NaN or infinite.
    """
    return write_adapter(adapter_on(model, adapter=adapter), folder)


def adapter_on(model: nn.Module, *, adapter: str = "default") -> Adapter:
    """What `save_adapter` would write and `read_adapter` would read; the tensors are the live ones."""
    record = record_of(model)
    if adapter not in record.configs:
        known = ", ".join(repr(name) for name in record.configs)
        raise InputError(f"there is no adapter {adapter!r} to save; there are {known}")
    tensors = {key.removeprefix(PREFIX): value for key, value in adapter_state_dict(model, adapter=adapter).items()}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not is_finite(tensor):
            raise InputError(f"{name!r} of adapter {adapter!r} holds NaN or infinite values; nothing was saved")
    return Adapter(config_fields(record, adapter), tensors, f"adapter {adapter!r}")


def config_fields(record: AdapterRecord, adapter: str) -> dict[str, object]:
    """adapter_config.json of an adapter: what is not PEFT's default, and what loaders look for in any case."""
    config = record.configs[adapter]
    defaults = LoraConfig()
    layers = {name: layer for name, layer in record.layers.items() if adapter in layer.r}
    found: dict[str, object] = {"peft_type": "LORA", "inference_mode": True}
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    found |= {name: values[name] for name in _FIELDS if values[name] != getattr(defaults, name)}
    found["base_model_name_or_path"] = config.base_model_name_or_path or _name_of(record.model)
    saved = sorted(name for name, module in record.saved.items() if adapter in module.modules_to_save)
    if saved:
        found["modules_to_save"] = saved
    found["target_modules"] = _targets(record.model, list(layers), saved)
    found |= _ranks(config, layers, adapter)
    found["task_type"] = _task(record.model, config.task_type, saved)
    if found["task_type"] is None and _name_of(record.model) is not None:
        kind = type(record.model)
        found["auto_mapping"] = {"base_model_class": kind.__name__, "parent_library": kind.__module__}
    if config.init_lora_weights in ("pissa", "olora"):  # PEFT takes the first factors out of the weight again
        found["init_lora_weights"] = config.init_lora_weights
    return found


def _ranks(config: LoraConfig, layers: Mapping, adapter: str) -> dict[str, object]:
    """r and lora_alpha with the config's patterns, if they still say what the layers have, or exact ones."""
    ranks = {name: layer.r[adapter] for name, layer in layers.items()}
    alphas = {name: layer.lora_alpha[adapter] for name, layer in layers.items()}
    found: dict[str, object] = {}
    faithful = True
    for field, pattern, values in (("r", "rank_pattern", ranks), ("lora_alpha", "alpha_pattern", alphas)):
        usual, special = getattr(config, field), dict(getattr(config, pattern))
        found[field] = usual
        if special:
            found[pattern] = special
        for name, value in values.items():
            matched = match_pattern(special, name)
            faithful &= value == (usual if matched is None else matched)
    if faithful:
        return found
    scales = {name: layer.scaling[adapter] for name, layer in layers.items()}
    return rank_fields({"use_rslora": config.use_rslora}, ranks, scales)


def _targets(model: nn.Module, names: Sequence[str], saved: Sequence[str]) -> list[str] | str:
    """The shortest way in PEFT's language to choose exactly these layers: last names, whole names or a pattern."""
    candidates = [name for name, module in base_modules(model) if name and is_adaptable(module)]
    candidates = [name for name in candidates if not any(name == s or name.startswith(f"{s}.") for s in saved)]
    wanted = set(names)
    for entries in (sorted({name.rpartition(".")[2] for name in names}), sorted(names)):
        chosen = {name for name in candidates if any(name == e or name.endswith(f".{e}") for e in entries)}
        if chosen == wanted:
            return entries
    return "|".join(re.escape(name) for name in sorted(names))


def _task(model: nn.Module, task: str | None, saved: Sequence[str]) -> str | None:
    """The task's name, unless PEFT would then look for a head that is not in the file."""
    children = {name for name, _ in model.named_children()}
    heads = [name for name in _HEADS.get(task or "", ()) if name in children]
    return task if all(head in saved for head in heads) else None


def _name_of(model: nn.Module) -> str | None:
    """The Hub id or folder that transformers loaded the network from."""
    from transformers import PreTrainedModel

    return (model.name_or_path or None) if isinstance(model, PreTrainedModel) else None
