"""save_adapter: an adapter as a folder that PEFT, transformers and hf_tl load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from hf_tl.architectures import is_transformers
from hf_tl.errors import InputError
from hf_tl.lora.adapter import Adapter, write_adapter
from hf_tl.lora.adapter_file import is_finite
from hf_tl.lora.config import LoraConfig
from hf_tl.lora.record import PREFIX, AdapterRecord, exported_adapter, record_of
from hf_tl.lora.resize import rank_fields
from hf_tl.lora.targets import base_modules, exact_targets
from hf_tl.names import is_inside, match_pattern, peft_matcher


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
    """What `save_adapter` would write and `read_adapter` would read; the tensors are the live ones where they can be.

    Raises:
        InputError: no such adapter, or values that are NaN or infinite.
    """
    record = record_of(model)
    config, exported = exported_adapter(model, adapter_name=adapter)
    tensors = {key.removeprefix(PREFIX): value for key, value in exported.items()}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not is_finite(tensor):
            raise InputError(f"{name!r} of adapter {adapter!r} holds NaN or infinite values; nothing was saved")
    return Adapter(_config_fields(record, adapter, config, tensors), tensors, f"adapter {adapter!r}")


def _config_fields(
    record: AdapterRecord, adapter: str, config: LoraConfig, tensors: Mapping[str, Tensor]
) -> dict[str, object]:
    """adapter_config.json: what is not PEFT's default, and what loaders look for in any case."""
    model, defaults = record.model, LoraConfig()
    found: dict[str, object] = {"peft_type": "LORA", "inference_mode": True}
    values = {name: getattr(config, name) for name in _FIELDS}
    found |= {name: value for name, value in values.items() if value != getattr(defaults, name)}
    found["base_model_name_or_path"] = config.base_model_name_or_path or _name_of(model)
    saved = sorted(name for name, module in record.saved.items() if adapter in module.modules_to_save)
    if saved:
        found["modules_to_save"] = saved
    layers = {
        name: layer for name, layer in record.layers.items() if adapter in layer.r and ".base_layer." not in name
    }
    found["target_modules"] = _targets(model, list(layers), saved)
    ranks = {name: tensors[f"{name}.{_factor(tensors, name)}"].shape[0] for name in layers}
    scales = {name: layer.scaling[adapter] for name, layer in layers.items()}
    found |= _ranks(config, ranks, scales)
    found["task_type"] = _task(model, config.task_type, saved)
    if found["task_type"] is None and found["base_model_name_or_path"] is not None:
        kind = type(model)
        found["auto_mapping"] = {"base_model_class": kind.__name__, "parent_library": kind.__module__}
    return found


def _factor(tensors: Mapping[str, Tensor], name: str) -> str:
    return "lora_A.weight" if f"{name}.lora_A.weight" in tensors else "lora_embedding_A"


def _ranks(config: LoraConfig, ranks: Mapping[str, int], scales: Mapping[str, float]) -> dict[str, object]:
    """r and lora_alpha with the config's own patterns if they say what the layers have, else with exact ones."""
    own = {"r": config.r, "lora_alpha": config.lora_alpha}
    patterns = {"rank_pattern": dict(config.rank_pattern), "alpha_pattern": dict(config.alpha_pattern)}
    for name, rank in ranks.items():
        said_rank, said_alpha = (
            match_pattern(patterns["rank_pattern"], name),
            match_pattern(patterns["alpha_pattern"], name),
        )
        said_rank = config.r if said_rank is None else said_rank
        said_alpha = config.lora_alpha if said_alpha is None else said_alpha
        if rank != said_rank or config.scaling(rank, said_alpha) != scales[name]:
            return rank_fields({"use_rslora": config.use_rslora}, ranks, scales)
    return own | {name: found for name, found in patterns.items() if found}


def _targets(model: nn.Module, names: Sequence[str], saved: Sequence[str]) -> list[str] | str:
    """The shortest way in PEFT's language to choose exactly these layers: last names, whole names or a pattern."""
    # all modules, since PEFT takes words at their word and fails at a container that has the name of a convolution
    free = {n: m for n, m in base_modules(model).items() if n and not is_inside(n, saved)}
    shortest = sorted({name.rpartition(".")[2] for name in names})
    matches = peft_matcher(shortest)
    if {name for name in free if matches(name)} == set(names):
        return shortest
    return exact_targets(names, free)


def _task(model: nn.Module, task: str | None, saved: Sequence[str]) -> str | None:
    """The task's name, unless PEFT would then look for a head that is not in the file."""
    children = {name for name, _ in model.named_children()}
    heads = [name for name in _HEADS.get(task or "", ()) if name in children]
    return task if all(head in saved for head in heads) else None


def _name_of(model: nn.Module) -> str | None:
    """The Hub id or folder that transformers loaded the network from."""
    return (model.name_or_path or None) if is_transformers(model) else None
