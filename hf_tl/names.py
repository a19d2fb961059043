"""Names of modules: which match a pattern, which lie inside another, which are nearest to a misspelt one.

Three kinds of patterns: the user's globs and /regular expressions/; PEFT's names, whole or the last parts; and PEFT's
regular expressions, which come from untrusted files, so that one which takes very long is refused.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from time import process_time
from typing import TypeVar

import regex

from hf_tl.errors import InputError


Matcher = Callable[[str], object]
_Value = TypeVar("_Value")
_Default = TypeVar("_Default")

_NUMBER = re.compile(r"(\d+)")
SECONDS = 0.2  # of the processor's time, for PEFT's patterns and one name; a microsecond is usual


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


def name_matcher(pattern: str) -> Matcher | None:
    """What tells whether a name matches a glob, or a regular expression between two slashes; None if it is broken."""
    if not pattern.startswith("/"):
        return re.compile(fnmatch.translate(pattern)).match
    if len(pattern) < 3 or not pattern.endswith("/"):
        return None
    try:
        return re.compile(pattern[1:-1]).search
    except re.error:
        return None


def peft_matcher(wanted: Sequence[str] | str) -> Matcher:
    """PEFT's test of module names: a pattern must match in full; a listed name must be the whole or the last parts.

    Raises:
        InputError: as matching does, for a pattern that is no regular expression or could take very long.
    """
    if isinstance(wanted, str):
        return lambda name: _matches(wanted, name)
    exact, endings = frozenset(wanted), tuple(f".{name}" for name in wanted)
    return lambda name: name in exact or name.endswith(endings)


def peft_saves(names: Iterable[str], wanted: Sequence[str]) -> list[str]:
    """The modules that PEFT takes for those named in modules_to_save: all whose names end so, dot or no dot."""
    return [name for name in names if name and name.endswith(tuple(wanted))]


def exact_names(names: Sequence[str], known: Iterable[str]) -> list[str] | str:
    """What PEFT takes for exactly these of the known names: a list, or a pattern where that would choose more.

    In a list, "0" also means every module whose name ends in ".0".
    """
    matches = peft_matcher(tuple(names))
    if [name for name in known if name and matches(name)] == list(names):
        return sorted(names)
    return "|".join(re.escape(name) for name in sorted(names))


def match_pattern(patterns: Mapping[str, _Value], name: str, *, default: _Default) -> _Value | _Default:
    """The value of the first of PEFT's patterns that matches a name, or its end from a dot on; else the default.

    Raises:
        InputError: a pattern that is no regular expression, or one that could take very long.
    """
    stop = process_time() + SECONDS  # for all patterns together: a file may hold thousands
    for pattern, value in patterns.items():
        if _matches(pattern, name, end=True, seconds=max(stop - process_time(), 1e-3)):
            return value
    return default


def block_number(name: str, pattern: str | None) -> int | None:
    """The number behind the first list that one of PEFT's patterns names, "layers" or "h"; None for no such list.

    Without a pattern, any list counts.

    Raises:
        InputError: a pattern that is no regular expression, or one that could take very long.
    """
    # only where the name goes on is it that of a module in a block
    whole = rf"(?:.*?\.)?(?:{pattern if pattern else '[^.]*'})\.(?P<hf_tl_number>\d+)\..*"
    found = _match(whole, name)
    return None if found is None else int(found["hf_tl_number"])


def check_pattern(pattern: str) -> None:
    """Raises InputError unless one of PEFT's patterns is a regular expression."""
    _compiled(pattern, False)


def closest(wanted: str, names: Sequence[str]) -> str:
    """'the closest are ...' for an error message."""
    near = difflib.get_close_matches(wanted, list(dict.fromkeys(names)), n=3, cutoff=0.0)
    return f"the closest are {', '.join(repr(name) for name in near)}" if near else "there are none to choose from"


def closest_module(wanted: str, names: Sequence[str]) -> str:
    """`closest` among the names of modules, or for a word without dots among their last parts."""
    return closest(wanted, names if "." in wanted else sorted({name.rpartition(".")[2] for name in names}))


def listed(names: Sequence[str]) -> str:
    """Names for a message, all of them."""
    return ", ".join(in_runs(names))


def in_runs(names: Sequence[str]) -> list[str]:
    """Names of which those that differ in numbers alone come as one: "layer.0-11.query", "*.query (24)"."""
    kinds: dict[str, list[list[str]]] = {}
    for name in names:
        kinds.setdefault(_NUMBER.sub("*", name), []).append(re.split(_NUMBER, name))
    shown = []
    for found in kinds.values():
        pieces = [list(dict.fromkeys(column)) for column in zip(*found, strict=True)]
        several = sum(len(piece) > 1 for piece in pieces)
        spots = ["*" if len(p) > 1 and several > 1 else p[0] if len(p) == 1 else _ranges(map(int, p)) for p in pieces]
        shown.append("".join(spots) + (f" ({len(found)})" if several > 1 else ""))
    return shown


def is_inside(name: str, parents: Iterable[str]) -> bool:
    """Whether a module is one of `parents` or lies within one."""
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


def _ranges(numbers: Iterable[int]) -> str:
    """[0, 1, 2, 5] -> "0-2,5"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _matches(pattern: str, name: str, *, end: bool = False, seconds: float = SECONDS) -> bool:
    return _match(pattern, name, end=end, seconds=seconds) is not None


def _match(pattern: str, name: str, *, end: bool = False, seconds: float = SECONDS) -> regex.Match[str] | None:
    try:
        return _compiled(pattern, end).fullmatch(name, timeout=seconds)
    except TimeoutError as error:  # "(a|a)*b" takes exponential time
        raise InputError(
            f"pattern {pattern[:80]!r} takes too long to match {name[:80]!r}; use fewer of * + ? {{}} |"
        ) from error


@lru_cache(maxsize=8192)
def _compiled(pattern: str, end: bool) -> regex.Pattern[str]:
    try:
        return regex.compile(rf"(?:.*\.)?(?:{pattern})" if end else pattern)
    except (regex.error, RecursionError, OverflowError, MemoryError) as error:
        raise InputError(f"pattern {pattern[:80]!r} is not a regular expression: {error}") from error
