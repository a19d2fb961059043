"""The record that add_lora keeps on a network, and the adapter's tensors by their names on disk.

The contract that checkpoints, merging and the command line build on
--------------------------------------------------------------------
`add_lora(model, config, adapter_name=NAME)` replaces modules in place and keeps an `AdapterRecord` on the model:

    record = record_of(model)      finds it inside wrappers too (DDP, torch.compile); InputError where there is none
    record.model                   the network that was adapted; all names below are names in it
    record.configs[NAME]           the LoraConfig; modules_to_save is resolved to what was found, and target_modules
                                   where it was None, "all-linear" or restricted to some layers
    record.layers["a.b.query"]     the LoraLayer that stands at that place (layers.py: adapter_tensors, r, scaling ...)
    record.saved["classifier"]     the SavedModule that stands there (saved.py): original_module and a copy an adapter
    record.biases[NAME]            live names of the network's own biases that train with the adapter
    record.active                  names of the adapters in use

`adapter_state_dict(model, adapter_name=NAME)` gives the live tensors under the names of PEFT's files:

    base_model.model.<module>.lora_A.weight            (r, k)      Linear, Conv1D; convolutions (r, k, *kernel)
    base_model.model.<module>.lora_B.weight            (d, r)      convolutions (d, r / groups, 1, ...)
    base_model.model.<module>.lora_B.bias              (d,)        with lora_bias
    base_model.model.<module>.lora_embedding_A, _B     (r, V), (d, r)
    base_model.model.<module>.lora_magnitude_vector    (d,)        with DoRA; convolutions (1, d, 1, ...)
    base_model.model.<module>.base_layer.out_proj.lora_A.weight    of nn.MultiheadAttention, beside its own
    base_model.model.<saved module>.<name in it>                   parameters and buffers of modules_to_save
    base_model.model.<adapted module>.base_layer.bias  (d,)        with bias="lora_only" or "all"
    base_model.model.<module>.bias                                 other biases, with bias="all"

Live names in `model.named_parameters()` are PEFT's too: `<module>.lora_A.NAME.weight`, `<module>.base_layer.weight`,
`<saved module>.modules_to_save.NAME.weight`, `<saved module>.original_module.weight`.

What is to be read by others is `exported_adapter(model, adapter_name=NAME)`: a config and tensors that any loader
of PEFT's format understands. It differs from the live tensors where an init subtracts its start permanently ("pissa",
"olora": the rank is then twice the live one) and where a part of a fused projection is masked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from hf_tl.errors import InputError
from hf_tl.lora.adapter import PREFIX
from hf_tl.lora.config import LoraConfig
from hf_tl.lora.layers import LoraLayer
from hf_tl.lora.saved import SavedModule


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
    original_biases: dict[str, Tensor] = field(default_factory=dict)
    original_settings: list[tuple[nn.Module, str, object]] = field(default_factory=list)
    hooks: list[torch.utils.hooks.RemovableHandle] = field(default_factory=list)
    checkpointed: list[nn.Module] = field(default_factory=list)
    follows_trainer: bool = False
    took_checkpoint: bool = False

    def put(self, modules: Mapping[str, nn.Module]) -> None:
        """Puts modules in the places of others, by name, in this order."""
        parents = {"": self.model}
        for name, module in modules.items():
            above, _, child = name.rpartition(".")
            parent = _find(above, parents)
            parent._modules[child] = module  # what setattr comes to, where a module stands there already
            parents[name] = module  # a later name may lead through it
            if isinstance(parent, nn.TransformerEncoderLayer):
                self._slow_down(parent)

    def _slow_down(self, layer: nn.TransformerEncoderLayer) -> None:
        """Keeps torch's encoder off its fast path, which reads weights and calls no module."""
        self.original_settings.append((layer, "activation_relu_or_gelu", layer.activation_relu_or_gelu))
        layer.activation_relu_or_gelu = 0
        for encoder in self.model.modules():
            if isinstance(encoder, nn.TransformerEncoder) and any(layer is one for one in encoder.layers):
                self.original_settings.append((encoder, "use_nested_tensor", encoder.use_nested_tensor))
                encoder.use_nested_tensor = False

    def freeze_statistics(self, norm: nn.Module) -> None:
        """Lets a batch normalisation's running statistics stand still."""
        self.original_settings.append((norm, "momentum", norm.momentum))
        norm.momentum = 0.0
        norm.eval()

    def restore_settings(self) -> None:
        """Undoes what `put` and `freeze_statistics` set, and the watch of the inputs."""
        for module, name, value in reversed(self.original_settings):
            setattr(module, name, value)
        for handle in self.hooks:
            handle.remove()
        self.original_settings, self.hooks = [], []

    def freeze(self, live: Mapping[str, nn.Module]) -> None:
        """Stops all of the network's modules from training, and remembers what trained."""
        trained = set()
        for module_name, module in live.items():
            for name, parameter in module._parameters.items():
                if parameter is not None and parameter.requires_grad:
                    trained.add(f"{module_name}.{name}" if module_name else name)
                    parameter.requires_grad_(False)
        self.trained_before = frozenset(trained)

    def thaw(self) -> None:
        """Undoes `freeze`: what trained before the first adapter trains again, and nothing else."""
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad != (name in self.trained_before):
                parameter.requires_grad_(not parameter.requires_grad)

    def keep_biases(self, adapter: str) -> None:
        """Finds the biases that train with an adapter and keeps their values."""
        bias = self.configs[adapter].bias
        names: list[str] = []
        if bias != "none":
            lora_names = tuple(f"{name}." for name in self.layers)
            saved = tuple(f"{name}." for name in self.saved)
            for name, _ in self.model.named_parameters():
                if name.rpartition(".")[2] != "bias" or name.startswith(saved) or ".lora_B." in name:
                    continue
                if bias == "all" or (name.startswith(lora_names) and name.endswith(".base_layer.bias")):
                    names.append(name)
        self.biases[adapter] = tuple(names)
        for name in names:
            self.original_biases[name] = self.model.get_parameter(name).detach().clone()

    def set_biases(self, values: Mapping[str, Tensor]) -> None:
        """Gives biases of the network, by name, these values."""
        with torch.no_grad():
            for name, value in values.items():
                self.model.get_parameter(name).copy_(value)

    def watch_inputs(self, modules: Iterable[nn.Module]) -> None:
        """Lets gradients reach adapters through checkpoints of the re-entrant kind, which need an input that asks."""
        self.checkpointed = [module for module in modules if "gradient_checkpointing" in module.__dict__]
        if not self.checkpointed or not isinstance(self.model, _Embeds):
            return
        try:
            embeddings = self.model.get_input_embeddings()
        except NotImplementedError:  # transformers' way of saying that there are none
            return
        if embeddings is not None:
            self.hooks.append(embeddings.register_forward_hook(self._ask_for_gradients))

    def _ask_for_gradients(self, module: nn.Module, args: tuple, output: object) -> None:
        if not isinstance(output, Tensor) or output.requires_grad or not torch.is_grad_enabled():
            return
        if any(module.gradient_checkpointing and module.training for module in self.checkpointed):
            output.requires_grad_(True)


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


def adapter_state_dict(model: nn.Module, *, adapter_name: str = "default") -> dict[str, Tensor]:
    """The adapter's live tensors, detached and not copied, under the names of PEFT's files.

    Raises:
        InputError: there is no such adapter.
    """
    return _tensors(known(record_of(model), adapter_name), adapter_name, export=False)


def exported_adapter(model: nn.Module, *, adapter_name: str = "default") -> tuple[LoraConfig, dict[str, Tensor]]:
    """The adapter as others read it: a plain config with the ranks found in the tensors, and the tensors.

    Raises:
        InputError: there is no such adapter.
    """
    record = known(record_of(model), adapter_name)
    config = record.configs[adapter_name]
    subtracts = config.init.startswith(("pissa", "olora"))
    ranks, alphas = dict(config.rank_pattern), dict(config.alpha_pattern)
    r, alpha = config.r, config.lora_alpha
    parts = 1 if config.fused_parts is None else len(config.fused_parts)
    grown = parts * (2 if subtracts else 1)
    if grown > 1:
        growth = grown**0.5 if config.use_rslora else grown  # alpha grows so that the scaling stays
        r, alpha = r * grown, alpha * growth
        ranks = {pattern: rank * grown for pattern, rank in ranks.items()}
        alphas = {pattern: value * growth for pattern, value in alphas.items()}
        for pattern in set(ranks) ^ set(alphas):  # a pattern for one of the two must now say both
            ranks.setdefault(pattern, r)
            alphas.setdefault(pattern, alpha)
    plain = "kaiming" if subtracts or config.init in ("gaussian_b", "eva") else config.init
    config = replace(
        config,
        r=r,
        lora_alpha=int(alpha) if float(alpha).is_integer() else alpha,
        rank_pattern=ranks,
        alpha_pattern=alphas,
        init_lora_weights=plain,
        fused_parts=None,
        freeze_a=False,
    )
    return config, _tensors(record, adapter_name, export=True)


def known(record: AdapterRecord, adapter: str) -> AdapterRecord:
    """The record, if it knows the adapter.

    Raises:
        InputError: it does not.
    """
    if adapter not in record.configs:
        raise InputError(f"there is no adapter {adapter!r}; there are {', '.join(map(repr, record.configs))}")
    return record


def _find(name: str, places: dict[str, nn.Module]) -> nn.Module:
    """`get_submodule`, that keeps what it passes: a network's layers have most of their way in common."""
    if name not in places:
        above, _, child = name.rpartition(".")
        places[name] = getattr(_find(above, places), child)
    return places[name]


def _tensors(record: AdapterRecord, adapter: str, *, export: bool) -> dict[str, Tensor]:
    tensors = {}
    for name, layer in record.layers.items():
        for part, tensor in layer.adapter_tensors(adapter, export=export):
            tensors[f"{PREFIX}{name}.{part}"] = tensor.detach()
    for name, saved in record.saved.items():
        for part, tensor in saved.adapter_tensors(adapter):
            tensors[f"{PREFIX}{name}.{part}"] = tensor.detach()
    for name in record.biases[adapter]:
        tensors[PREFIX + name] = record.model.get_parameter(name).detach()
    return tensors


@runtime_checkable
class _Embeds(Protocol):
    def get_input_embeddings(self) -> nn.Module | None: ...
