"""PEFT's patterns over layer names, safe to match when they come from a stranger's file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import TypeVar

from hf_tl.errors import InputError


_Value = TypeVar("_Value")

_MOST_REPEATS = 3
_REPEAT = re.compile(r"(?<!\\)(?:\\\\)*[*+{]")
_REPEATED_GROUP = re.compile(r"\)\s*[*+{]")
_BACKREFERENCE = re.compile(r"\\[1-9]|\(\?P=|\(\?\(")


def match_pattern(patterns: Mapping[str, _Value], name: str) -> _Value | None:
    """The value of the first pattern that matches `name` or its end from a dot on; None if none does.

    Raises:
        InputError: a pattern that is no regular expression, or one that could run for ever.
    """
    for pattern, value in patterns.items():
        if _compiled(pattern).match(name):
            return value
    return None


@lru_cache(maxsize=8192)
def _compiled(pattern: str) -> re.Pattern[str]:
    # "(a+)+" takes exponential time, and k repeats one after another take length ** k
    if (
        _REPEATED_GROUP.search(pattern)
        or _BACKREFERENCE.search(pattern)
        or len(_REPEAT.findall(pattern)) > _MOST_REPEATS
    ):
        raise InputError(
            f"pattern {pattern[:80]!r} could take for ever to match; use at most {_MOST_REPEATS} of * + {{}} "
            f"and none behind a group"
        )
    try:
        return re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, RecursionError, OverflowError) as error:
        raise InputError(f"pattern {pattern[:80]!r} is not a regular expression: {error}") from error
