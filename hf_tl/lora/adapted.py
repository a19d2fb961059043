"""A network with adapters: the record that add_lora keeps on it, which adapters run, and their tensors by name.

The contract that checkpoints, merging and the command line build on
--------------------------------------------------------------------
`add_lora(model, config, adapter_name=NAME)` replaces modules in place and keeps an `AdapterRecord` on the model:

    record = record_of(model)      finds it inside wrappers too (DDP, torch.compile); InputError where there is none
    record.model                   the network that was adapted; all names below are names in it
    record.configs[NAME]           the LoraConfig; modules_to_save is resolved to what was found, and target_modules
                                   where it was None, "all-linear" or restricted to some layers
    record.layers["a.b.query"]     the LoraLayer that stands at that place (layer.py: adapter_tensors, r, scaling ...)
    record.layers["a.experts.down_proj"]    that of a parameter (parameter.py), which stands at "a.experts"
    record.saved["classifier"]     the SavedModule that stands there (layer.py): original_module and a copy an adapter
    record.biases[NAME]            live names of the network's own biases that train with the adapter
    record.tokens["embed_tokens"]  the TokenRows that stands there (token_rows.py): single rows that train
    record.vocabulary[NAME]        live names of the embeddings of a resized vocabulary, which travel with the adapter
    record.active                  names of the adapters in use
    record.set_aside               inside of disable_adapters, trained values of the network's own parameters; or None

`adapter_state_dict(model, adapter_name=NAME)` gives the live tensors under the names of PEFT's files:

    base_model.model.<module>.lora_A.weight            (r, k)      Linear, Conv1D; convolutions (r, k, *kernel)
    base_model.model.<module>.lora_B.weight            (d, r)      convolutions (d, r / groups, 1, ...)
    base_model.model.<module>.lora_B.bias              (d,)        with lora_bias
    base_model.model.<module>.lora_embedding_A, _B     (r, V), (d, r)
    base_model.model.<module>.lora_magnitude_vector    (d,)        with DoRA; convolutions (1, d, 1, ...)
    base_model.model.<module>.base_layer.out_proj.lora_A.weight    of nn.MultiheadAttention, beside its own
    base_model.model.<module>.lora_A.weight            (E r, k)    a stacked parameter; lora_B.weight (d, r E)
    base_model.model.<module>.base_layer.lora_A.weight             the parameter before it in the same module
    base_model.model.<saved module>.<name in it>                   parameters and buffers of modules_to_save
    base_model.model.<embedding>.token_adapter.trainable_tokens_delta      (n, d)  single rows: values, no differences
    base_model.model.<adapted module>.base_layer.bias  (d,)        with bias="lora_only" or "all"
    base_model.model.<module>.bias                                 other biases, with bias="all"
    base_model.model.<embeddings>.weight               (V, d)      of a resized vocabulary

Live names in `model.named_parameters()` are PEFT's too: `<module>.lora_A.NAME.weight`, `<module>.base_layer.weight`,
`<saved module>.modules_to_save.NAME.weight`, `<saved module>.original_module.weight`.

With `export=True` any loader of PEFT's format understands the tensors. They differ from the live ones where an init
subtracts its start permanently ("pissa", "olora": the rank is then twice the live one) and where a part of a fused
projection is masked.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hf_tl.architectures import (
    find_networks,
    is_encoder_of_sentences,
    is_parallel,
    is_partitioned,
    is_sharded,
    is_transformers,
    quantiser_of,
    unwrapped,
)
from hf_tl.errors import InputError
from hf_tl.lora.adapter import PREFIX
from hf_tl.lora.config import LoraConfig
from hf_tl.lora.layer import LoraLayer, SavedModule
from hf_tl.lora.parameter import LoraParameter
from hf_tl.lora.quantised import PACKS, packing_layers, unpack
from hf_tl.lora.token_rows import TokenRows


RECORD = "_hf_tl_adapters"
CHECKPOINTED = "_checkpoint_wrapped_module"
"""Where torch keeps a module whose activations FSDP checkpoints, as Accelerate sets it up."""


@dataclass
class AdapterRecord:
    """What add_lora changed in a network; see the module's text."""

    model: nn.Module
    configs: dict[str, LoraConfig] = field(default_factory=dict)
    layers: dict[str, LoraLayer] = field(default_factory=dict)
    saved: dict[str, SavedModule] = field(default_factory=dict)
    biases: dict[str, tuple[str, ...]] = field(default_factory=dict)
    vocabulary: dict[str, tuple[str, ...]] = field(default_factory=dict)
    tokens: dict[str, TokenRows] = field(default_factory=dict)
    active: list[str] = field(default_factory=list)
    trained_before: frozenset[str] = frozenset()
    originals: dict[str, Tensor] = field(default_factory=dict)
    original_settings: list[tuple[nn.Module, str, object]] = field(default_factory=list)
    hooks: list[torch.utils.hooks.RemovableHandle] = field(default_factory=list)
    follows_trainer: bool = False
    replaced_methods: tuple[str, ...] = ()
    took_checkpoint: bool = False
    set_aside: dict[str, Tensor] | None = None
    in_container: bool = False

    @property
    def parts(self) -> tuple[LoraLayer | SavedModule | TokenRows, ...]:
        """All modules that stand in the places of others."""
        return (*self.layers.values(), *self.saved.values(), *self.tokens.values())

    @property
    def is_merged(self) -> bool:
        """Whether any adapter is in the frozen weights."""
        return any(layer.merged_adapters for layer in self.layers.values())

    def place_of(self, name: str, adapter: str) -> str:
        """A layer's name in an adapter's file: its own; of a parameter, that of its module.

        ".base_layer" is added for each of the module's later parameters that the adapter adapts too, as PEFT's layers
        of parameters stand one inside the other.
        """
        layer = self.layers[name]
        if not isinstance(layer, LoraParameter):
            return name
        module = name.rpartition(".")[0]
        own = [parameter for parameter, _ in layer.holder.named_parameters(recurse=False)]
        later = [f"{module}.{parameter}" for parameter in own[own.index(layer.weight_name) + 1 :]]
        return module + ".base_layer" * sum(one in self.layers and adapter in self.layers[one].r for one in later)

    def put(self, modules: Mapping[str, nn.Module]) -> None:
        """Puts modules in the places of others, by name, in this order: a later name may lead through an earlier.

        What stands in several places of the network is replaced in all of them.
        """
        places = self._places()
        for name, module in modules.items():
            above, _, child = name.rpartition(".")
            parent = self.model.get_submodule(above)
            before = parent.get_submodule(child)
            ours = (LoraLayer, SavedModule, TokenRows)
            shared = isinstance(before, ours) or isinstance(module, ours)
            for holder, key in places[id(before)] if shared and id(before) in places else [(parent, child)]:
                setattr(holder, key, module)
                if isinstance(holder, nn.TransformerEncoderLayer):
                    self._slow_down(holder)

    def _places(self) -> dict[int, list[tuple[nn.Module, str]]]:
        """Where each module stands, by its id."""
        places: dict[int, list[tuple[nn.Module, str]]] = {}
        for holder in self.model.modules():
            for key, module in holder._modules.items():
                places.setdefault(id(module), []).append((holder, key))
        return places

    def _slow_down(self, layer: nn.TransformerEncoderLayer) -> None:
        """Keeps torch's encoder off its fast path, which reads weights and calls no module."""
        self._set(layer, "activation_relu_or_gelu", 0)
        for encoder in self.model.modules():
            if isinstance(encoder, nn.TransformerEncoder) and any(layer is one for one in encoder.layers):
                self._set(encoder, "use_nested_tensor", False)

    def freeze_statistics(self, norm: nn.Module) -> None:
        """Stops a batch normalisation's running statistics from moving."""
        self._set(norm, "momentum", 0.0)
        norm.eval()

    def keep_gradients(self) -> None:
        """Keeps quantised layers in the form through which gradients pass, and tells Trainer that adapters train."""
        for layer in packing_layers(self.model):
            unpack(layer)
            self._set(layer, PACKS, False)
        if is_transformers(self.model) and quantiser_of(self.model) is not None:
            self._set(self.model, "_hf_peft_config_loaded", True)  # else it refuses a quantised network

    def _set(self, module: nn.Module, name: str, value: object) -> None:
        self.original_settings.append((module, name, getattr(module, name)))
        setattr(module, name, value)

    def freeze(self) -> None:
        """Stops all of the network from training, and remembers what trained."""
        self.trained_before = frozenset(n for n, p in self.model.named_parameters() if p.requires_grad)
        self.model.requires_grad_(False)

    def restore(self) -> None:
        """Undoes `freeze`, what `put` and `freeze_statistics` set, the hooks, and what Trainer is given to call."""
        for module, name, value in reversed(self.original_settings):
            setattr(module, name, value)
        for handle in self.hooks:
            handle.remove()
        for name in self.replaced_methods:
            del vars(self.model)[name]
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in self.trained_before)

    def keep_biases(self, adapter: str) -> None:
        """Finds the biases that train with an adapter and keeps their values."""
        bias, lora_names, saved = self.configs[adapter].bias, tuple(self.layers), tuple(self.saved)
        names = []
        for name, _ in self.model.named_parameters() if bias != "none" else ():
            owner, _, kind = name.rpartition(".")
            if kind != "bias" or ".lora_B." in name or name.startswith(tuple(f"{one}." for one in saved)):
                continue
            if bias == "all" or owner.removesuffix(".base_layer") in lora_names:
                names.append(name)
        self.biases[adapter] = tuple(names)
        self.keep_originals(names)

    def add_vocabulary(self, adapter: str, names: Iterable[str]) -> None:
        """Lets the weights of embeddings, by name, travel with an adapter, and keeps their values."""
        live = []
        for name in names:
            owner, _, part = name.rpartition(".")
            adapted = owner in self.tokens or (owner in self.layers and adapter in self.layers[owner].r)
            live.append(f"{owner}.base_layer.{part}" if adapted else name)
        self.vocabulary[adapter] = tuple(live)

    def own_names(self, adapter: str) -> tuple[str, ...]:
        """Live names of the network's own parameters that go with an adapter."""
        return (*self.biases.get(adapter, ()), *self.vocabulary.get(adapter, ()))

    def keep_originals(self, names: Iterable[str]) -> None:
        """Keeps the values of the network's own parameters that an adapter is about to change."""
        for name in names:
            if name not in self.originals:
                self.originals[name] = self.model.get_parameter(name).detach().clone()

    def release(self, adapter: str, *, restore: bool) -> None:
        """Lets go of the network's own parameters that went with an adapter, at their old values with `restore`."""
        names = self.own_names(adapter)
        self.biases.pop(adapter, None)
        self.vocabulary.pop(adapter, None)
        shared = {name for other in self.configs if other != adapter for name in self.own_names(other)}
        originals = {n: self.originals.pop(n) for n in names if n in self.originals and n not in shared}
        for name in names:
            self.model.get_parameter(name).requires_grad_(False)
        if restore:
            self.set_parameters(originals)

    def own_parameter(self, name: str) -> Tensor:
        """A parameter of the network that goes with an adapter, by its live name: as trained, merged or disabled.

        Raises:
            InputError: a merge has changed it for good.
        """
        owner, _, part = name.rpartition(".")
        layer = self.layers.get(owner.removesuffix(".base_layer"))
        if layer is not None and layer.merged_adapters:
            changes = (layer.weight_name, *["bias" for a in layer.merged_adapters if layer.extra_bias(a) is not None])
            if part in layer.originals:
                return layer.originals[part]
            if part in changes and not layer.originals:
                raise InputError(f"{name!r} has adapters merged into it for good; save the network instead")
        return (self.set_aside or {}).get(name, self.model.get_parameter(name))

    def check_enabled(self, what: str) -> None:
        """Raises InputError inside of `disable_adapters`, where the network holds values that are not its own."""
        if self.set_aside is not None:
            raise InputError(f"adapters are disabled; leave disable_adapters before {what}")

    def set_parameters(self, values: Mapping[str, Tensor]) -> None:
        """Gives parameters of the network, by name, these values."""
        with torch.no_grad():
            for name, value in values.items():
                self.model.get_parameter(name).copy_(value)

    def watch_inputs(self) -> None:
        """Lets gradients reach adapters through checkpoints of the re-entrant kind, which need an input that asks.

        Checkpointing may be switched on later, as Trainer does. A network reads floating point input, or looks tokens
        up in tables.
        """
        if is_transformers(self.model):
            self.hooks.append(self.model.register_forward_pre_hook(self._ask_of_input, with_kwargs=True))
            for module in self.model.modules():
                if isinstance(module, nn.Embedding):
                    self.hooks.append(module.register_forward_hook(self._ask_of_output))

    def _checkpoints(self) -> bool:
        if torch.compiler.is_compiling() or not (torch.is_grad_enabled() and self.model.training):
            return False
        return any(vars(module).get("gradient_checkpointing") for module in self.model.modules())

    def _ask_of_input(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if not self._checkpoints():
            return None
        return tuple(_asking(value) for value in args), {name: _asking(value) for name, value in kwargs.items()}

    def _ask_of_output(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        return _asking(output) if self._checkpoints() else None


def _asking(value: Any) -> Any:
    """A tensor that asks for a gradient, in place of one that could."""
    if isinstance(value, Tensor) and value.is_floating_point() and not value.requires_grad:
        return value.detach().requires_grad_()
    return value


def find_network(model: nn.Module) -> nn.Module:
    """The network to put adapters on: the model itself, what torch.compile wrapped, or that in a SentenceTransformer.

    Raises:
        InputError: wrappers that an adapter has to come before.
    """
    network = unwrapped(model)
    if is_encoder_of_sentences(network):
        inner = list(find_networks(network).values())
        if len(inner) != 1:
            raise InputError(
                f"this {type(network).__name__} holds {len(inner)} networks of transformers; put the adapter on one "
                "of them, as in add_lora(model[0].auto_model, ...)"
            )
        network = inner[0]
    refuse_fsdp1()
    if is_parallel(network):
        raise InputError(
            f"the network is in {type(network).__name__}, which would not share the gradients of a new adapter among "
            f"its processes; add or load adapters first, then wrap it"
        )
    sharded = next((name for name, parameter in network.named_parameters() if is_sharded(parameter)), None)
    if any(map(is_partitioned, network.parameters())):
        raise InputError(
            "DeepSpeed has partitioned the parameters; load the network and its adapter before TrainingArguments with "
            "ZeRO-3 are made, or use FSDP2"
        )
    if sharded is not None:
        raise InputError(f"{sharded!r} is sharded among processes; add or load adapters first, then shard it")
    for name, module in network.named_modules():
        if unwrapped(module) is not module:
            raise InputError(f"{name!r} is compiled by itself; add or load adapters first, then compile it")
        if type(module).__module__.startswith("peft."):
            raise InputError(
                f"{name or 'the network'!r} is a {type(module).__name__} of PEFT, beside whose adapters hf_tl puts "
                "none; PEFT's unload() takes them off, and load_adapter(network, folder) loads them here"
            )
        lazy = next((n for n, p in module.named_parameters(recurse=False) if is_lazy(p)), None)
        if lazy is not None:
            raise InputError(f"{name}.{lazy} has no shape yet (a lazy module); run the network once, then adapt it")
    return network


def refuse_fsdp1() -> None:
    """Checks that Accelerate, by its launcher or an Accelerator that was made, shards by no FSDP but FSDP2.

    Raises:
        InputError: it does, by version 1.
    """
    state = accelerator_state()
    plugin, launched = state.get("fsdp_plugin"), os.environ.get("ACCELERATE_USE_FSDP") == "true"
    version = os.environ.get("FSDP_VERSION") if plugin is None and launched else None
    if version == "1" or (plugin is not None and plugin.fsdp_version == 1):
        raise InputError(
            "FSDP of version 1 joins frozen and trained parameters in one, and adapters would be read and saved in "
            "pieces; set fsdp_version: 2 in the file that accelerate is launched with"
        )


def accelerator_state() -> Mapping[str, Any]:
    """What the Accelerator that was made last was told; nothing before one was."""
    module = sys.modules.get("accelerate.state")
    return {} if module is None else module.AcceleratorState._shared_state


def record_of(model: nn.Module) -> AdapterRecord:
    """What add_lora changed, found inside wrappers such as DistributedDataParallel.

    Raises:
        InputError: the network has no adapters.
    """
    for module in model.modules():
        if RECORD in vars(module):
            return vars(module)[RECORD]
    raise InputError(f"this {type(model).__name__} has no adapters; call add_lora or load_adapter first")


def base_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The network's modules by name as they were before any adapter, in `named_modules` order."""
    found: dict[str, nn.Module] = {}
    _find_below(model, "", found)
    return found


def parameter_names(modules: Mapping[str, nn.Module]) -> list[str]:
    """The parameters of two and three axes by name, each module's in its own order, by which PEFT nests them."""
    return [
        f"{name}.{own}"
        for name, module in modules.items()
        if name
        for own, weight in module.named_parameters(recurse=False)
        if weight.dim() in (2, 3)
    ]


def known(record: AdapterRecord, *adapters: str) -> AdapterRecord:
    """The record, if it knows the adapters.

    Raises:
        InputError: it does not.
    """
    for adapter in adapters:
        if adapter not in record.configs:
            raise InputError(f"there is no adapter {adapter!r}; there are {', '.join(map(repr, record.configs))}")
    return record


def check_new_name(record: AdapterRecord, adapter: str) -> None:
    """Checks that a new adapter may have this name.

    Raises:
        InputError: it has a dot, is taken, or is what torch calls a method of the containers that hold adapters.
    """
    if not adapter or any(sign in adapter for sign in "./\\"):
        raise InputError(f"an adapter's name must be a word without dots and slashes, got {adapter!r}")
    if adapter in {*dir(nn.ModuleDict()), *dir(nn.ParameterDict())}:
        raise InputError(f"torch does not let an adapter be called {adapter!r}; choose another name")
    if adapter in record.configs:
        raise InputError(f"there is an adapter {adapter!r} already; choose another name or remove it first")


def set_adapter(model: nn.Module, *adapter_names: str | Sequence[str]) -> None:
    """Makes the given adapters, and no others, run and train; the updates of several add up.

    Of `modules_to_save` the copy of the first adapter that has one runs. Biases of the network that train with an
    adapter go with it.

    Args:
        model: a network with adapters.
        adapter_names: names, or a list of them as in PEFT; [] for the frozen network.

    Raises:
        InputError: no names, there is no such adapter, or adapters are merged.
    """
    if not adapter_names:
        raise InputError("set_adapter takes names of adapters, or [] for the frozen network; got none")
    adapters = [name for names in adapter_names for name in ([names] if isinstance(names, str) else names)]
    record = known(record_of(model), *adapters)
    if record.is_merged:
        raise InputError("adapters are merged into the weights; call unmerge_adapter before choosing others")
    record.active = adapters
    for part in record.parts:
        part.set_adapter(adapters)
    for adapter, names in record.biases.items():
        for name in names:
            record.model.get_parameter(name).requires_grad_(adapter in adapters)


@contextmanager
def disable_adapters(model: nn.Module) -> Iterator[nn.Module]:
    """The network as it was before any adapter, inside the block: its own head, its own biases.

    Args:
        model: a network with adapters.

    Yields:
        the same model, whose adapters are neither added, deleted nor merged in the block.

    Raises:
        InputError: adapters are merged.
    """
    record = record_of(model)
    if record.is_merged:
        raise InputError("merged adapters cannot be disabled; call unmerge_adapter first")
    before = [part.disable_adapters for part in record.parts]
    trained = {name: record.model.get_parameter(name).detach().clone() for name in record.originals}
    outer = record.set_aside
    record.set_aside = {**trained, **(outer or {})}
    try:
        for part in record.parts:
            part.disable_adapters = True
        record.set_parameters(record.originals)
        yield model
    finally:
        for part, disabled in zip(record.parts, before, strict=True):
            part.disable_adapters = disabled
        record.set_parameters(trained)
        record.set_aside = outer


def adapter_state_dict(model: nn.Module, *, adapter_name: str = "default", export: bool = False) -> dict[str, Tensor]:
    """The adapter's tensors, detached and not copied, under the names of PEFT's files.

    Args:
        model: a network with adapters.
        adapter_name: which.
        export: as other loaders are to read them, see above; else the live ones.

    Raises:
        InputError: there is no such adapter.
    """
    record = known(record_of(model), adapter_name)
    found: dict[str, Tensor] = {}
    for name, layer in record.layers.items():
        if adapter_name in layer.r:
            place = record.place_of(name, adapter_name)
            found |= _under(place, layer.adapter_tensors(adapter_name, export=export))
    for name, saved in record.saved.items():
        found |= _under(name, saved.adapter_tensors(adapter_name))
    for name, rows in record.tokens.items():
        found |= _under(name, rows.adapter_tensors(adapter_name))
    own = record.own_names(adapter_name)
    return found | {PREFIX + name: record.own_parameter(name).detach() for name in own}


def _under(name: str, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{PREFIX}{name}.{part}": tensor.detach() for part, tensor in tensors}


def _find_below(module: nn.Module, name: str, found: dict[str, nn.Module]) -> None:
    module = module._modules.get(CHECKPOINTED) or module
    if isinstance(module, LoraLayer):
        module = module.holder
    elif isinstance(module, SavedModule):
        module = module.original_module
    elif isinstance(module, TokenRows):
        module = module.base_layer
    found[name] = module
    for child, inner in module._modules.items():
        if inner is not None:
            _find_below(inner, f"{name}.{child}" if name else child, found)
