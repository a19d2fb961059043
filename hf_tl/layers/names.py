"""Names of modules: which match a pattern, which lie inside another, which are nearest to a misspelt one."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence

from hf_tl.errors import InputError


def match_names(patterns: Iterable[str], names: Sequence[str]) -> list[str]:
    """The names that any of the patterns matches, globs or /regular expressions/, in the order of `names`.

    Raises:
        InputError: a pattern that matches nothing, with the closest names.
    """
    matched = set()
    for pattern in patterns:
        matches = name_matcher(pattern)
        if matches is None:
            raise InputError(f"a regular expression stands between two slashes, got {pattern!r}")
        hits = [name for name in names if matches(name)]
        if not hits:
            raise InputError(
                f"layer pattern {pattern!r} matches none of the {len(names)} layers; {closest(pattern, names)}"
            )
        matched.update(hits)
    return [name for name in names if name in matched]


def name_matcher(pattern: str) -> Callable[[str], object] | None:
    """What tells whether a name matches a glob, or a regular expression between two slashes; None if it is broken."""
    if not pattern.startswith("/"):
        return re.compile(fnmatch.translate(pattern)).match
    if len(pattern) < 3 or not pattern.endswith("/"):
        return None
    try:
        return re.compile(pattern[1:-1]).search
    except re.error:
        return None


def closest(wanted: str, names: Sequence[str]) -> str:
    """'the closest are ...' for an error message."""
    near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.0)
    return f"the closest are {', '.join(repr(name) for name in near)}" if near else "there are none to choose from"


def is_inside(name: str, parents: Iterable[str]) -> bool:
    """Whether a module is one of `parents` or lies within one."""
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)
