"""The record that add_lora keeps on a network, and the adapter's tensors by their names on disk.

The contract that checkpoints, merging and the command line build on
--------------------------------------------------------------------
`add_lora(model, config, adapter=NAME)` replaces target modules in place and keeps one `AdapterRecord` on the model:

    record = record_of(model)      finds it inside wrappers too (DDP, torch.compile); InputError where there is none
    record.model                   the network that was adapted; all names below are names in it
    record.configs[NAME]           the LoraConfig; target_modules and modules_to_save are resolved to what was found
    record.layers["a.b.query"]     the LoraLayer that stands at that place (layers.py: adapter_tensors, r, scaling ...)
    record.saved["classifier"]     the SavedModule that stands there (saved.py): original_module and a copy an adapter
    record.biases[NAME]            names of the network's own biases that train with the adapter
    record.active                  names of the adapters in use

`adapter_state_dict(model, adapter=NAME)` gives the live tensors under the names of PEFT's files:

    base_model.model.<module>.lora_A.weight            (r, k)      Linear, Conv1D; convolutions (r, k, *kernel)
    base_model.model.<module>.lora_B.weight            (d, r)      convolutions (d, r / groups, 1, ...)
    base_model.model.<module>.lora_B.bias              (d,)        with lora_bias
    base_model.model.<module>.lora_embedding_A, _B     (r, V), (d, r)
    base_model.model.<module>.lora_magnitude_vector    (d,)        with DoRA; convolutions (1, d, 1, ...)
    base_model.model.<saved module>.<name in it>                   parameters and buffers of modules_to_save
    base_model.model.<adapted module>.base_layer.bias  (d,)        with bias="lora_only" or "all"
    base_model.model.<module>.bias                                 other biases, with bias="all"

Live names in `model.named_parameters()` are PEFT's too: `<module>.lora_A.NAME.weight`, `<module>.base_layer.weight`,
`<saved module>.modules_to_save.NAME.weight`, `<saved module>.original_module.weight`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from hf_tl.errors import InputError
from hf_tl.lora.config import LoraConfig
from hf_tl.lora.layers import LoraLayer
from hf_tl.lora.saved import SavedModule


PREFIX = "base_model.model."
RECORD = "_hf_tl_adapters"


@dataclass
class AdapterRecord:
    """What add_lora changed in a network; see the module's text."""

    model: nn.Module
    configs: dict[str, LoraConfig] = field(default_factory=dict)
    layers: dict[str, LoraLayer] = field(default_factory=dict)
    saved: dict[str, SavedModule] = field(default_factory=dict)
    biases: dict[str, tuple[str, ...]] = field(default_factory=dict)
    active: list[str] = field(default_factory=list)
    trained_before: frozenset[str] = frozenset()


def record_of(model: nn.Module) -> AdapterRecord:
    """What add_lora changed, found inside wrappers such as DistributedDataParallel.

    Raises:
        InputError: the network has no adapters.
    """
    for module in model.modules():
        record = module.__dict__.get(RECORD)
        if record is not None:
            return record
    raise InputError(f"this {type(model).__name__} has no adapters; call add_lora or load_adapter first")


def adapter_state_dict(model: nn.Module, *, adapter: str = "default") -> dict[str, Tensor]:
    """The adapter's live tensors, detached and not copied, under the names of PEFT's files."""
    record = record_of(model)
    tensors = {}
    for name, layer in record.layers.items():
        for part, parameter in layer.adapter_tensors(adapter):
            tensors[f"{PREFIX}{name}.{part}"] = parameter.detach()
    for name, saved in record.saved.items():
        for part, tensor in saved.adapter_tensors(adapter):
            tensors[f"{PREFIX}{name}.{part}"] = tensor.detach()
    for name in record.biases.get(adapter, ()):
        tensors[PREFIX + name] = record.model.get_parameter(name).detach()
    return tensors
