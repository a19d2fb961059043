"""Durations as people write them: "90s", "10min", "2h"."""

from __future__ import annotations

import math
import re

from hf_tl.errors import InputError


UNITS = {"s": 1.0, "sec": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "": 1.0}
WRITTEN = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)\s*")


def in_seconds(duration: str | float) -> float:
    """A duration in seconds.

    Raises:
        InputError: none that is above 0.
    """
    if isinstance(duration, str):
        found = WRITTEN.fullmatch(duration.lower())
        seconds = math.nan if found is None or found[2] not in UNITS else float(found[1]) * UNITS[found[2]]
    else:
        seconds = float(duration)
    if not seconds > 0:
        raise InputError(f"a budget should be a duration such as '90s', '10min' or '2h', got {duration!r}")
    return seconds
