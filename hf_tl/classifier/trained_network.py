"""A network that was trained elsewhere, as a classifier takes it: adapters merged, outputs named, inputs prepared."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import nn

from hf_tl.architectures import MODALITIES, is_transformers, main_input
from hf_tl.checkpoint import name_outputs
from hf_tl.errors import InputError
from hf_tl.lora.adapted import RECORD
from hf_tl.lora.merge import delete_adapter, merge_adapter
from hf_tl.models import Network
from hf_tl.preparation import preparation_with


def network_of(model: nn.Module, processor: object) -> Network:
    """A network with what prepares its inputs.

    Args:
        model: the network.
        processor: of transformers, as a Trainer has it.

    Raises:
        InputError: nothing says how raw inputs are prepared.
    """
    name = (model.config.name_or_path if is_transformers(model) else "") or type(model).__name__
    prepare = preparation_with(model, processor, name=name)
    modality = MODALITIES[main_input(model)] if is_transformers(model) else "array"
    return Network(model, prepare, modality=modality, name=name, processor=processor)


def names_of_outputs(network: Network, given: Sequence[str]) -> tuple[str, ...]:
    """The names of a network's outputs; they are also written into its configuration.

    Args:
        network: any.
        given: the names, where its configuration has none, or the same.

    Raises:
        InputError: other names than its own, or none.
    """
    names, own = tuple(map(str, given)), name_outputs(network.model)
    if names and own and len(names) == len(own) and names != own:
        raise InputError(f"the outputs of {network.name!r} are of {list(own)}, but class_names is {list(names)}")
    named = name_outputs(network.model, names)
    if not named and is_transformers(network.model):
        named = tuple((network.model.config.id2label or {}).values())  # LABEL_0, LABEL_1
    if not named:
        raise InputError(f"{network.name!r} does not name its outputs; give class_names=[...], in their order")
    return named


def merged(model: nn.Module) -> nn.Module:
    """The network without adapters: a copy of it with their effect in the weights, where it has some."""
    if not any(RECORD in vars(module) for module in model.modules()):
        return model
    model = copy.deepcopy(model)
    merge_adapter(model, safe_merge=True, reversible=False)
    return delete_adapter(model, merge=True)
