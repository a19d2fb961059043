"""add_lora: a network with adapters, the same object changed in place; record.py says what it leaves there.

`inject(model, plan, adapter=NAME)` is the lower half: it puts adapters where a `Plan` says, whatever chose the
places, so that a loader can follow the keys it found (`empty=True` skips the initialisation of values that a
checkpoint is about to give).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from hf_tl.errors import InputError
from hf_tl.lora.adapters import set_adapter
from hf_tl.lora.config import LoraConfig
from hf_tl.lora.layers import LoraLinear
from hf_tl.lora.record import RECORD, AdapterRecord
from hf_tl.lora.saved import SavedModule
from hf_tl.lora.targets import Target, find_targets
from hf_tl.lora.trainer import follow_trainer
from hf_tl.trace import Batch


@dataclass(frozen=True)
class Plan:
    """Where an adapter goes.

    Attributes:
        config: its settings.
        targets: the modules that get factors.
        saved: names of the modules that train in full.
    """

    config: LoraConfig
    targets: Sequence[Target]
    saved: Sequence[str] = ()


def add_lora(
    model: nn.Module, config: LoraConfig, *, adapter: str = "default", example: Batch | None = None
) -> nn.Module:
    """Puts a new adapter on the network, changed in place, and makes it the one that runs and trains.

    Everything else is frozen, but for the biases and `modules_to_save` of the config.

    Args:
        model: any network; transformers' and timm's classifiers have their head found and trained in full.
        config: what to adapt and how.
        adapter: its name.
        example: a batch for a network of your own making, whose head is then found by tracing it.

    Returns:
        the same model.

    Raises:
        InputError: the config chooses no module, or one of a kind that cannot be adapted.
    """
    return inject(model, plan_adapter(model, config, example=example), adapter=adapter)


def plan_adapter(model: nn.Module, config: LoraConfig, *, example: Batch | None = None) -> Plan:
    """Where add_lora would put an adapter, without doing so."""
    names = [name for name, _ in model.named_modules()]
    return Plan(config, find_targets(names, config), tuple(config.modules_to_save or ()))


def inject(model: nn.Module, plan: Plan, *, adapter: str = "default", empty: bool = False) -> nn.Module:
    """Puts adapters where the plan says, in place; see add_lora.

    Args:
        model: the network.
        plan: the places.
        adapter: the adapter's name.
        empty: leave the new tensors uninitialised for a checkpoint that is about to fill them.
    """
    record = model.__dict__.get(RECORD)
    if record is None:
        trained = frozenset(name for name, parameter in model.named_parameters() if parameter.requires_grad)
        record = model.__dict__[RECORD] = AdapterRecord(model, trained_before=trained)
        model.requires_grad_(False)
    if adapter in record.configs:
        raise InputError(f"there is an adapter {adapter!r} already; choose another name or remove it first")
    for target in plan.targets:
        layer = record.layers.get(target.name)
        if layer is None:
            layer = record.layers[target.name] = LoraLinear(model.get_submodule(target.name))
            _replace(model, target.name, layer)
        layer.add_adapter(adapter, config=plan.config, rank=target.rank, alpha=target.alpha, empty=empty)
    for name in plan.saved:
        saved = record.saved.get(name)
        if saved is None:
            saved = record.saved[name] = SavedModule(model.get_submodule(name))
            _replace(model, name, saved)
        saved.add_adapter(adapter)
    record.configs[adapter] = replace(plan.config, modules_to_save=tuple(plan.saved))
    record.biases[adapter] = ()
    set_adapter(model, adapter)
    follow_trainer(model)
    return model


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
