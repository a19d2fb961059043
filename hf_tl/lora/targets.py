"""Which modules of a network get an adapter, at which rank, and which train in full."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from hf_tl.errors import InputError
from hf_tl.layers import closest
from hf_tl.lora.config import ALL_LINEAR, LoraConfig


@dataclass(frozen=True)
class Target:
    """One module that gets an adapter.

    Attributes:
        name: its name in the network.
        rank: of the update.
        alpha: lora_alpha of this module.
        parts: of a fused projection, the adapted thirds as letters of "qkv"; None for all of it.
    """

    name: str
    rank: int
    alpha: float
    parts: str | None = None


def find_targets(names: Sequence[str], config: LoraConfig) -> list[Target]:
    """The modules among `names` that the config's patterns choose, in order, with rank and alpha.

    Raises:
        InputError: nothing matches.
    """
    wanted = config.target_modules
    assert wanted is not None and wanted != ALL_LINEAR
    matches = name_matcher(wanted)
    excluded = name_matcher(config.exclude_modules) if config.exclude_modules else None
    saved = saved_matcher(config.modules_to_save)
    chosen = [n for n in names if n and matches(n) and not (excluded and excluded(n)) and not (saved and saved(n))]
    if config.layers_to_transform is not None:
        chosen = [n for n in chosen if _in_blocks(n, config)]
    if not chosen:
        first = wanted if isinstance(wanted, str) else next(iter(wanted), "")
        raise InputError(
            f"target_modules={wanted!r} chooses none of the {len(names)} modules; {closest(first, list(names))}"
        )
    rank_of, alpha_of = pattern_lookup(config.rank_pattern), pattern_lookup(config.alpha_pattern)
    return [Target(n, rank_of(n, config.r), alpha_of(n, config.lora_alpha)) for n in chosen]


def name_matcher(wanted: Sequence[str] | str):
    """A test of module names: a pattern must match in full; a listed name must be the whole or the last parts."""
    if isinstance(wanted, str):
        return re.compile(wanted).fullmatch
    exact = set(wanted)
    lengths = sorted({name.count(".") + 1 for name in exact})

    def matches(name: str) -> bool:
        parts = name.split(".")
        return name in exact or any(".".join(parts[-k:]) in exact for k in lengths)

    return matches


def saved_matcher(names: Sequence[str] | None):
    """A test of module names: whether one is, or lies in, a module that trains in full."""
    if not names:
        return None
    return re.compile(r"(?:^|.*\.)(?:" + "|".join(names) + r")(?:$|\..*)").match


def pattern_lookup(patterns: Mapping[str, float]):
    """A function (name, default) -> the value of the first pattern that matches the name's last parts."""
    compiled = [(re.compile(rf"(.*\.)?({pattern})$"), value) for pattern, value in patterns.items()]

    def look_up(name: str, default):
        return next((value for pattern, value in compiled if pattern.match(name)), default)

    return look_up


def _in_blocks(name: str, config: LoraConfig) -> bool:
    index = config.layers_to_transform
    wanted = {index} if isinstance(index, int) else set(index)
    pattern = config.layers_pattern
    if not pattern:
        match = re.match(r"(?:.*?\.)?[^.]*\.(\d+)\.", name)
    else:
        lists = [pattern] if isinstance(pattern, str) else pattern
        match = next((m for p in lists if (m := re.match(rf"(?:^|.*?\.){p}\.(\d+)\.", name))), None)
    return match is not None and int(match.group(1)) in wanted


def adaptable(module: nn.Module) -> bool:
    """Whether a module is of a kind that adapters are made for."""
    return isinstance(module, nn.Linear)
