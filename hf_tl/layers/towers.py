"""Which blocks belong together: an encoder and a decoder, a vision model and a text model are two towers."""

from __future__ import annotations

import re
from collections.abc import Sequence


def find_towers(blocks: Sequence[str], base: str = "") -> dict[str, str]:
    """The path of each tower -> its name; {"": ""} for a network of one tower.

    Below their last common ancestor, blocks part into towers by the child they stand in. Children whose names
    differ in a number alone (layer1, layer2) are stages of one tower; blocks that are such children themselves, and
    mere lists of blocks, are no towers.

    Args:
        blocks: module names.
        base: name of transformers' base model, which is called "encoder" where its one sibling is a "decoder".
    """
    paths = _split(list(blocks))
    if len(paths) < 2:
        return {"": ""}
    common = _common(paths)
    names = {path: path[len(common) + 1 if common else 0 :] for path in paths}
    if base and set(names.values()) == {base, "decoder"}:
        names = {path: "encoder" if name == base else name for path, name in names.items()}
    return names


def tower_of(name: str, paths: Sequence[str]) -> str | None:
    """The path of the tower that a module stands in, None for one outside all towers."""
    inside = [path for path in paths if not path or name == path or name.startswith(f"{path}.")]
    return max(inside, key=len, default=None)


def _split(names: Sequence[str]) -> list[str]:
    common = _common(names)
    depth = common.count(".") + 1 if common else 0
    groups: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".")
        if len(parts) <= depth + 1 or (len(parts) == depth + 2 and parts[-1].isdigit()):  # no more than a list
            return [common]
        groups.setdefault(re.sub(r"\d+", "#", parts[depth]), []).append(name)
    if len(groups) < 2:
        return [common]
    if any(len({name.split(".")[depth] for name in group}) > 1 for group in groups.values()):
        return [common]  # a row of stages among other things
    return [path for group in groups.values() for path in _towers_below(group, depth)]


def _towers_below(group: Sequence[str], depth: int) -> list[str]:
    deeper = _split(group)
    return deeper if len(deeper) > 1 else [".".join(group[0].split(".")[: depth + 1])]


def _common(names: Sequence[str]) -> str:
    """The last module that holds all of the names, itself none of them."""
    rows = [name.split(".")[:-1] for name in names]
    common = []
    for level in zip(*rows, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return ".".join(common)
