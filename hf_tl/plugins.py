"""Plug-ins: poolings, verbs of policies and heads of other packages, found by name.

A package announces what it brings as an entry point, KIND.NAME, and hf_tl finds it under NAME:

    [project.entry-points."hf_tl.plugins"]
    "pooling.median" = "their_package.poolings:median"

"module:name" finds what nobody announced. Both are for names that the user gives, in Python or on the command line;
what comes out of a file is never looked up here. Nothing is imported before it is asked for by name, so that a plug-in
that is broken is in nobody's way but its user's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, EntryPoint, distributions, entry_points

from hf_tl.errors import InputError, in_one_line


GROUP = "hf_tl.plugins"
KINDS = {
    "pooling": "a function (values, mask) -> (rows, channels), see hf_tl.embedding.pooling.Pooling",
    "verb": "a function (argument, layers) -> clauses of a policy, see hf_tl.policies.grammar.Verb",
    "head": "a function (C, shape) -> a classifier, see hf_tl.probes.heads.HeadMaker",
}
DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)


@dataclass(frozen=True)
class Plugin:
    """What a package announces.

    Attributes:
        kind: one of KINDS, or whatever else it says.
        name: by which it is found.
        path: "module:name", not imported.
        origin: the distribution that brings it, with its version.
        problem: why it cannot be used, as far as that shows without importing it; empty otherwise.
    """

    kind: str
    name: str
    path: str
    origin: str
    problem: str = ""


def list_plugins() -> list[Plugin]:
    """All that is announced, by kind and name; nothing is imported."""
    found = sorted((_plugin(point) for point in _points()), key=lambda one: (one.kind, one.name, one.origin))
    times = Counter((one.kind, one.name) for one in found)
    return [_with_problem(one, times[one.kind, one.name] > 1, found) for one in found]


def find_plugin(kind: str, name: str) -> Callable | None:
    """The plug-in of that name, imported; None where nobody announces one.

    Args:
        kind: one of KINDS.
        name: as announced, or "module:name".

    Raises:
        InputError: it cannot be imported, cannot be called, or several packages announce it.
    """
    return _find(kind, name)


def plugin_names(kind: str) -> list[str]:
    """The names that are announced for a kind."""
    return sorted({one.name for one in list_plugins() if one.kind == kind})


def plugin_origin(kind: str, name: str) -> str:
    """What tells this plug-in from another one of the same name: "median of their-package 1.0 (module:name)"."""
    found = next((one for one in list_plugins() if (one.kind, one.name) == (kind, name)), None)
    return name if found is None else f"{name} of {found.origin} ({found.path})"


def load_plugin(plugin: Plugin) -> Callable:
    """Imports a plug-in.

    Raises:
        InputError: it has a problem, cannot be imported, or cannot be called.
    """
    what = f"{plugin.kind} {plugin.name!r} of {plugin.origin}"
    if plugin.problem:
        raise InputError(f"{what} cannot be used: {plugin.problem}")
    return _imported(plugin.path, plugin.kind, what)


@cache
def _find(kind: str, name: str) -> Callable | None:
    if DOTTED.fullmatch(name):
        return _imported(name, kind, f"{kind} {name!r}")
    found = [one for one in list_plugins() if (one.kind, one.name) == (kind, name)]
    return load_plugin(found[0]) if found else None


def _imported(path: str, kind: str, what: str) -> Callable:
    try:
        found = EntryPoint(kind, path, GROUP).load()
    except (Exception, SystemExit) as error:  # a foreign module can fail in any way
        raise InputError(
            f"{what} cannot be imported from {path}: {in_one_line(error)}; is it installed, or in a folder of "
            f"PYTHONPATH? `hf-tl plugins --check` tries all"
        ) from error
    if not callable(found):
        raise InputError(f"{what} should be {KINDS[kind]}, got {type(found).__name__} at {path}")
    return found


def _points() -> Sequence[EntryPoint]:
    try:
        return list(entry_points(group=GROUP))
    except Exception:  # some package's list is malformed: the others are read one by one
        return [point for one in distributions() for point in _points_of(one)]


def _points_of(distribution: Distribution) -> Sequence[EntryPoint]:
    try:
        return list(distribution.entry_points.select(group=GROUP))
    except Exception:
        return []


def _plugin(point: EntryPoint) -> Plugin:
    kind, _, name = point.name.partition(".")
    origin = "an unknown package" if point.dist is None else f"{point.dist.name} {point.dist.version}"
    return Plugin(kind, name, point.value, origin)


def _with_problem(plugin: Plugin, several: bool, every: Sequence[Plugin]) -> Plugin:
    problem = ""
    if plugin.kind not in KINDS or not plugin.name:
        problem = f"it should be called KIND.NAME, with a kind among {', '.join(KINDS)}"
    elif not DOTTED.fullmatch(plugin.path):
        problem = f"it should be at 'module:name', got {plugin.path!r}"
    elif several:
        same = [one.origin for one in every if (one.kind, one.name) == (plugin.kind, plugin.name)]
        problem = f"{' and '.join(same)} bring one of this name; uninstall one, or give 'module:name'"
    return Plugin(plugin.kind, plugin.name, plugin.path, plugin.origin, problem)
