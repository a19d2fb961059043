"""save_adapter: an adapter as a folder that PEFT, transformers and hf_tl load."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from torch import Tensor, nn

from hf_tl.architectures import is_in_pieces, is_transformers
from hf_tl.errors import InputError
from hf_tl.lora.adapted import AdapterRecord, adapter_state_dict, base_modules, known, parameter_names, record_of
from hf_tl.lora.adapter import PREFIX, Adapter, alpha_for, is_finite, rank_fields, split_key, write_adapter
from hf_tl.lora.parameter import LoraParameter
from hf_tl.lora.sharded import in_one_process, whole_adapters
from hf_tl.lora.trained_modules import resized_vocabulary
from hf_tl.names import exact_names, is_inside, listed, match_pattern, peft_matcher


_HEADS = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}
"""What PEFT expects in the file by itself where the configuration names one of these tasks."""

_SETTINGS = ("lora_dropout", "bias", "use_rslora", "use_dora", "lora_bias", "revision", "fan_in_fan_out")


def save_adapter(model: nn.Module, folder: str | Path, *, adapter_name: str = "default") -> Path:
    """Writes adapter_config.json and adapter_model.safetensors: the adapter, not the network.

    The folder loads with `load_adapter`, `PeftModel.from_pretrained`, `AutoPeftModelFor...from_pretrained`,
    transformers' `model.load_adapter` and, if the network has a name or folder that transformers finds,
    `AutoModelFor...from_pretrained(folder)`. The same adapter gives the same bytes.

    Of a network that FSDP2 has sharded (`torch.distributed.fsdp.fully_shard`, Accelerate) every process has to call
    it: all gather the adapter, the first one writes it, and the others wait for it.

    Args:
        model: a network with adapters, also inside DistributedDataParallel or torch.compile.
        folder: is made; an adapter that is in it is replaced.
        adapter_name: which one.

    Returns:
        The folder.

    Raises:
        InputError: no such adapter, a folder that cannot be written, or values that are NaN or infinite.
    """
    adapter = adapter_on(model, adapter_name=adapter_name)
    if not is_in_pieces(model):
        return write_adapter(adapter, folder)
    return in_one_process(model, lambda: write_adapter(adapter, folder)) or Path(folder)


def adapter_on(
    model: nn.Module, *, adapter_name: str = "default", values: Mapping[str, Tensor] | None = None
) -> Adapter:
    """What `save_adapter` would write and `read_adapter` would read; the tensors are the live ones where they can be.

    Args:
        model: a network with adapters; where it is sharded, every process has to call.
        adapter_name: which one.
        values: its state dict, where it is sharded and one process has all of that: no other has to call then.

    Raises:
        InputError: no such adapter, or values that are NaN or infinite.
    """
    record = known(record_of(model), adapter_name)
    stranded = _trained_outside(record)
    if stranded:
        warnings.warn(
            f"{listed(stranded)} require gradients and belong to no adapter: they are not saved with it; name their "
            "modules in modules_to_save, or save the network itself",
            stacklevel=3,
        )
    lost = _vocabulary_outside(record, adapter_name)
    if lost:
        warnings.warn(
            f"the vocabulary was resized after add_lora, and {listed(lost)} is not saved with the adapter: what its "
            "new rows hold, no other process draws; resize first, then add_lora, which saves it",
            stacklevel=3,
        )
    with whole_adapters(record, values) if values is not None or is_in_pieces(model) else nullcontext():
        exported = adapter_state_dict(model, adapter_name=adapter_name, export=True)
    tensors = {_in_file(record, key.removeprefix(PREFIX)): value for key, value in exported.items()}
    for name, tensor in tensors.items():
        if 0 in tensor.shape:
            raise InputError(
                f"{name!r} of adapter {adapter_name!r} is {tuple(tensor.shape)}, as DeepSpeed leaves parameters in "
                "every process; nothing was saved: gather them first (deepspeed.zero.GatheredParameters)"
            )
        if tensor.is_meta:
            raise InputError(f"{name!r} of adapter {adapter_name!r} is on the meta device and has no values to save")
        if not is_finite(tensor):
            raise InputError(f"{name!r} of adapter {adapter_name!r} holds NaN or infinite values; nothing was saved")
    return Adapter(_config_fields(record, adapter_name, tensors), tensors, f"adapter {adapter_name!r}")


def _in_file(record: AdapterRecord, name: str) -> str:
    """A tensor's name in a file: PEFT's layers of single rows stand in another place than those here."""
    owner = name.removesuffix(".base_layer.weight")
    return f"{owner}.token_adapter.base_layer.weight" if owner in record.tokens else name


def _vocabulary_outside(record: AdapterRecord, adapter: str) -> list[str]:
    """Weights of a vocabulary of another size than the checkpoint's that do not travel with an adapter."""
    if record.configs[adapter].base_model_name_or_path is None:  # no checkpoint to compare with
        return []
    carried = (*record.own_names(adapter), *record.saved, *record.tokens)
    names = {name: id(record.model.get_parameter(name)) for name in resized_vocabulary(record.model)}
    held = {weight for name, weight in names.items() if is_inside(name, carried)}  # maybe under one of several names
    return [name for name, weight in names.items() if weight not in held]


def _trained_outside(record: AdapterRecord) -> list[str]:
    """Names of the network's own parameters that train, as somebody has unfrozen them, and go with no adapter."""
    held = {
        id(p) for layer in record.layers.values() for adapter in layer.r for _, p in layer.adapter_tensors(adapter)
    }
    held |= {id(p) for saved in record.saved.values() for p in saved.modules_to_save.parameters()}
    held |= {id(rows) for tokens in record.tokens.values() for rows in tokens.rows.values()}
    own = {name for adapter in record.configs for name in record.own_names(adapter)}
    return [n for n, p in record.model.named_parameters() if p.requires_grad and id(p) not in held and n not in own]


def _config_fields(record: AdapterRecord, adapter: str, tensors: Mapping[str, Tensor]) -> dict[str, object]:
    """adapter_config.json, but for what is PEFT's default."""
    model, config = record.model, record.configs[adapter]
    saved = sorted(name for name, module in record.saved.items() if adapter in module.modules_to_save)
    held = {name: layer for name, layer in record.layers.items() if adapter in layer.r}
    parameters = [name for name, layer in held.items() if isinstance(layer, LoraParameter)]
    places = {record.place_of(name, adapter) for name in parameters}
    ranks = {}
    for key, tensor in tensors.items():
        name, part = split_key(key)
        if part in ("lora_A.weight", "lora_embedding_A") and ".base_layer." not in name and name not in places:
            ranks[name] = tensor.shape[0]
    layers = list(ranks)
    ranks |= {name: record.layers[name].r[adapter] for name in parameters}
    fields = {
        "peft_type": "LORA",
        **{name: getattr(config, name) for name in _SETTINGS},
        **_rank_fields(record, adapter, ranks),
        "base_model_name_or_path": config.base_model_name_or_path,
        "task_type": _task_type(model, config.task_type, saved),
        "target_modules": _targets(model, layers, saved),
        "target_parameters": _parameters(model, parameters) or None,
        "modules_to_save": saved or None,
        "trainable_token_indices": _tokens(record, adapter),
    }
    if config.base_model_name_or_path is not None and fields["task_type"] is None:
        fields["auto_mapping"] = class_of(model)
    return fields


def class_of(model: nn.Module) -> dict[str, str]:
    """What PEFT calls auto_mapping: the class of the network, where no task says how it is loaded."""
    return {"base_model_class": type(model).__name__, "parent_library": type(model).__module__}


def _rank_fields(record: AdapterRecord, adapter: str, ranks: Mapping[str, int]) -> dict[str, object]:
    """r and lora_alpha with the config's own patterns if these give what the layers have, else with exact ones."""
    config = record.configs[adapter]
    alphas = {}
    for name, rank in ranks.items():
        layer = record.layers[name]
        if rank == layer.r[adapter]:
            alphas[name] = layer.lora_alpha[adapter]
        else:  # exported with more factors than are live
            alphas[name] = alpha_for(layer.scaling[adapter], rank, use_rslora=config.use_rslora)
    for name, rank in ranks.items():
        said = match_pattern(config.rank_pattern, name, default=config.r)
        if said != rank or match_pattern(config.alpha_pattern, name, default=config.lora_alpha) != alphas[name]:
            return rank_fields(ranks, alphas)
    return {name: getattr(config, name) for name in ("r", "lora_alpha", "rank_pattern", "alpha_pattern")}


def _targets(model: nn.Module, names: Sequence[str], saved: Sequence[str]) -> list[str] | str:
    """The shortest way in PEFT's language to choose exactly these layers: last names, whole names or a pattern."""
    # all modules, since PEFT takes words at their word and fails at a container that has the name of a convolution
    free = {n: m for n, m in base_modules(model).items() if n and not is_inside(n, saved)}
    shortest = sorted({name.rpartition(".")[2] for name in names})
    matches = peft_matcher(shortest)
    if {name for name in free if matches(name)} == set(names):
        return shortest
    return exact_names(names, free)


def _tokens(record: AdapterRecord, adapter: str) -> dict[str, list[int]] | list[int] | None:
    """The rows that the file has: a list for those of the input embeddings alone, as PEFT writes it."""
    own = {n: list(rows.indices[adapter]) for n, rows in record.tokens.items() if [*rows.adapter_tensors(adapter)]}
    if len(own) == 1 and is_transformers(record.model):
        (name, rows), embeddings = next(iter(own.items())), record.model.get_input_embeddings()
        if record.model.get_submodule(name) is embeddings:
            return rows
    return own or None


def _parameters(model: nn.Module, names: Sequence[str]) -> list[str]:
    """The shortest names by which PEFT finds exactly these parameters."""
    known = parameter_names(base_modules(model)) if names else []
    shortest = sorted({".".join(name.split(".")[-2:]) for name in names})
    return shortest if set(filter(peft_matcher(shortest), known)) == set(names) else sorted(names)


def _task_type(model: nn.Module, task: str | None, saved: Sequence[str]) -> str | None:
    """The task's name, unless PEFT would then look for a head that is not in the file."""
    children = {name for name, _ in model.named_children()}
    heads = [name for name in _HEADS.get(task or "", ()) if name in children]
    return task if all(head in saved for head in heads) else None
