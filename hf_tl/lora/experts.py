"""Experts of files from before transformers 5, one layer each, as the stacked parameters that they have become.

`mlp.experts.3.gate_proj` and `.up_proj` are parts of matrix 3 of `mlp.experts.gate_up_proj` now. The update of that
matrix has the factors of both: A one below the other, B block-diagonal, so that its rank is the sum of theirs.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from hf_tl.architectures import is_transformers
from hf_tl.lora.adapter import LayerUpdate
from hf_tl.lora.parameter import is_transposed


_OLD = re.compile(r"(.*\bexperts)\.(\d+)\.(\w+)")


def stack_experts(
    updates: Mapping[str, LayerUpdate], names: Mapping[str, str], model: nn.Module, modules: Mapping[str, nn.Module]
) -> tuple[dict[str, LayerUpdate], dict[str, str]]:
    """The updates of stacked parameters that a file holds expert by expert.

    An expert, or a part of it, that the file has nothing of keeps its weight: its factors are zero.

    Args:
        updates: written name -> update.
        names: written name -> name after transformers' renaming.
        model: the network.
        modules: its modules by name.

    Returns:
        Parameter -> its update, and written name -> the parameter that it went into.
    """
    parts = _parts(model) if any(_OLD.fullmatch(name) for name in names.values()) else {}
    found: dict[str, dict[tuple[int, int], LayerUpdate]] = defaultdict(dict)
    used: dict[str, str] = {}
    for written, name in names.items():
        old = _OLD.fullmatch(name)
        update = updates[written]
        if old is None or old[3] not in parts or update.A.dim() != 2 or update.bias is not None:
            continue
        parameter, place, n = parts[old[3]]
        bank, expert = modules.get(old[1]), int(old[2])
        weight = None if bank is None else dict(bank.named_parameters(recurse=False)).get(parameter)
        if bank is None or weight is None or weight.dim() != 3 or expert >= weight.shape[0] or is_transposed(bank):
            continue
        d, k = weight.shape[1] // n, weight.shape[2]
        if update.shape == (d, k) and update.magnitude is None:
            found[f"{old[1]}.{parameter}"][expert, place] = update
            used[written] = f"{old[1]}.{parameter}"
    made = {}
    for name, pieces in found.items():
        bank = modules[name.rpartition(".")[0]]
        n = next(n for parameter, _, n in parts.values() if parameter == name.rpartition(".")[2])
        made[name] = _stack(name, pieces, experts=bank.get_parameter(name.rpartition(".")[2]).shape[0], n=n)
    return made, used


def _parts(model: nn.Module) -> dict[str, tuple[str, int, int]]:
    """Last name of an expert's old layer -> the parameter that it is a part of, its place, and of how many parts."""
    if not is_transformers(model):
        return {}
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    found: dict[str, tuple[str, int, int]] = {}
    for change in get_model_conversion_mapping(model):
        if isinstance(change, WeightConverter) and len(change.target_patterns) == 1:
            old = [re.fullmatch(r".*\bexperts\.\*\.(\w+)\.weight", source) for source in change.source_patterns]
            new = re.fullmatch(r".*\bexperts\.(\w+)", change.target_patterns[0])
            if new is not None and all(old):
                found |= {one[1]: (new[1], i, len(old)) for i, one in enumerate(old) if one is not None}
    return found


def _stack(name: str, pieces: Mapping[tuple[int, int], LayerUpdate], *, experts: int, n: int) -> LayerUpdate:
    """One update of E experts with n parts each, in the layout of `LoraParameter`."""
    first = next(iter(pieces.values()))
    ranks = [max((u.rank for (_, j), u in pieces.items() if j == place), default=0) for place in range(n)]
    d, k = first.shape
    a = first.A.new_zeros(experts, sum(ranks), k, dtype=torch.float32)
    b = first.B.new_zeros(n * d, sum(ranks), experts, dtype=torch.float32)
    for (expert, place), update in pieces.items():
        start = sum(ranks[:place])
        own = slice(start, start + update.rank)
        a[expert, own] = update.A.float()
        b[place * d : (place + 1) * d, own, expert] = _scaled(update, first.scale)
    return replace(first, name=name, A=a.flatten(0, 1), B=b.flatten(1), experts=experts)


def _scaled(update: LayerUpdate, scale: float) -> Tensor:
    """B for a common scale."""
    return update.B.float() * (update.scale / scale)
