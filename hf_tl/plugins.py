"""Plug-ins: poolings, actions of policies, heads, scores and strategies of other packages, found by name.

A package announces what it brings as an entry point, KIND.NAME, and hf_tl finds it under NAME:

    [project.entry-points."hf_tl.plugins"]
    "pooling.median" = "their_package.poolings:median"

"module:name" finds what nobody announced. Both are for names that the user gives, in Python or on the command line;
what comes out of a file is never looked up here. Nothing is imported before it is asked for by name, so that a plug-in
that is broken is in nobody's way but its user's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from hf_tl.errors import InputError, in_one_line


GROUP = "hf_tl.plugins"
KINDS = {
    "pooling": "a function (values, mask) -> (samples, channels), see hf_tl.embedding.pooling.Pooling",
    "action": "a function (argument, layers) -> clauses of a policy, see hf_tl.policies.grammar.Action",
    "score": "a function (features, labels) -> a number, see hf_tl.analysis.transferability.Score",
    "head": "a function (C, shape) -> a classifier, see hf_tl.probes.heads.HeadMaker",
    "strategy": "a function () -> a strategy of transfer, see hf_tl.strategies.Strategy",
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
    """

    kind: str
    name: str
    path: str
    origin: str = ""

    def load(self) -> Callable:
        """Imports it.

        Raises:
            InputError: it is of no kind that is known, cannot be imported, or cannot be called.
        """
        what = f"{self.kind} {self.name!r}" + (f" of {self.origin}" if self.origin else "")
        if self.kind not in KINDS:
            raise InputError(f"{what} cannot be used: it should be called KIND.NAME, a kind being {', '.join(KINDS)}")
        try:
            found = EntryPoint(self.kind, self.path, GROUP).load()
        except (Exception, SystemExit) as error:  # a foreign module can fail in any way
            raise InputError(
                f"{what} cannot be imported from {self.path}: {in_one_line(error)}; is it installed, or in a folder "
                f"of PYTHONPATH? `hf-tl plugins --check` tries all"
            ) from error
        if not callable(found):
            raise InputError(f"{what} should be {KINDS[self.kind]}, got {type(found).__name__} at {self.path}")
        return found


def list_plugins(kind: str | None = None) -> list[Plugin]:
    """All that is announced, or all of a kind, by kind and name; nothing is imported."""
    found = []
    for point in entry_points(group=GROUP):
        origin = "" if point.dist is None else f"{point.dist.name} {point.dist.version}"
        found.append(Plugin(*point.name.partition(".")[::2], point.value, origin))
    return sorted((one for one in found if kind in (None, one.kind)), key=astuple)


def plugin_names(kind: str) -> list[str]:
    """The names that are announced for a kind."""
    return sorted({one.name for one in list_plugins(kind)})


@cache
def find_plugin(kind: str, name: str) -> Callable | None:
    """The plug-in of that name, imported; None where nobody announces one.

    Args:
        kind: one of KINDS.
        name: as announced, or "module:name".

    Raises:
        InputError: it cannot be imported, cannot be called, or several packages announce it.
    """
    if DOTTED.fullmatch(name):
        return Plugin(kind, name, name).load()
    found = [one for one in list_plugins(kind) if one.name == name]
    if len(found) > 1:
        origins = " and ".join(one.origin for one in found)
        raise InputError(f"{origins} bring a {kind} {name!r}; uninstall one, or give {found[0].path!r}")
    return found[0].load() if found else None


def plugin_origin(kind: str, name: str) -> str:
    """What tells this plug-in from another one of the same name: "median of their-package 1.0 (module:name)"."""
    found = next((one for one in list_plugins(kind) if one.name == name), None)
    return name if found is None else f"{name} of {found.origin} ({found.path})"
