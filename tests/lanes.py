"""Which cases of a law the fast lane runs: a cheap few of many. The whole suite runs all."""

from collections.abc import Callable, Iterable

import pytest


def lanes(cases: Iterable, *, fast: Callable[[object], bool]) -> list:
    """The cases as parameters, with the mark `slow` those that are not fast."""
    return [case if fast(case) else pytest.param(case, marks=pytest.mark.slow) for case in cases]
