"""The grammar of a policy: `freeze: ..50%; tune: 50%..-2; reinit: -2.., head; lr: decay 0.8`.

    policy := clause (";" clause)*
    clause := ("freeze" | "tune" | "reinit") ":" selection
            | "lr" ":" "decay" number              head and norm at the full rate, times `number` per block below
            | "lr" ":" "x" number [selection]      these layers at `number` times the rate; all without a selection
            | "norm" ":" ("eval" | "train") [selection]       statistics of batch norms stand still, or move
            | "dropout" ":" ("off" | "on") [selection]        with stochastic depth and layer drop
            | plug-in ":" argument                   an action of another package, see `hf_tl.plugins` and `Action`

A selection is that of `hf_tl.layers.select`. Later clauses win; rates multiply.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

from hf_tl.errors import InputError, in_one_line
from hf_tl.layers import Layers
from hf_tl.layers.select import point_at
from hf_tl.names import closest
from hf_tl.plugins import find_plugin, plugin_names


SELECTING = ("freeze", "tune", "reinit")
SWITCHES = {"norm": ("eval", "train"), "dropout": ("off", "on")}
ACTIONS = (*SELECTING, "lr", *SWITCHES)
CLAUSE = re.compile(r"(?:/(?:[^/\\]|\\.)*/|[^;])+")  # a semicolon within a regular expression is its own
RATE = re.compile(r"\s*(?P<word>decay\s+|x\s*)(?P<number>[^\s,;]+)\s*")
DOTTED = re.compile(r"\s*(?P<module>[A-Za-z_][\w.]*):[A-Za-z_][\w.]*\s*:")  # "module:name:", a plug-in and its colon
WORD = re.compile(r"\s*(?P<word>[^\s,;]*)\s*")


class Action(Protocol):
    """What a plug-in of the kind "action" is: it puts something about layers into hf_tl's own actions."""

    def __call__(self, argument: str, layers: Layers) -> str:
        """What stands behind its colon, the layers of the network -> clauses, "freeze: 2..-2; lr: x0.1 head"."""
        ...


@dataclass(frozen=True)
class Clause:
    """One clause of a policy.

    Attributes:
        action: one of ACTIONS, or that of a plug-in.
        word: "decay" or "x" for lr, "eval" or "train" for norm, "off" or "on" for dropout.
        rate: the number of an lr clause.
        selection: the layers that it is about, or the argument of a plug-in.
        plugin: what an action of another package stands for.
        text: the whole policy.
        start: where the selection begins in the text.
        stop: where it ends.
        statement: the clause in one spelling, which reads the same.
    """

    action: str
    word: str = ""
    rate: float = 1.0
    selection: str = ""
    plugin: Action | None = None
    text: str = field(default="", compare=False, repr=False)
    start: int = field(default=0, compare=False, repr=False)
    stop: int = field(default=0, compare=False, repr=False)
    statement: str = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        value = {"decay": f"decay {self.rate!r}", "x": f"x{self.rate!r}"}.get(self.word, self.word)
        statement = f"{self.action}: {' '.join(part for part in (value, self.selection) if part)}"
        object.__setattr__(self, "statement", statement)


def parse_policy(text: str, *, plugins: bool = True) -> tuple[Clause, ...]:
    """The clauses of a policy, in order.

    Args:
        text: of the policy.
        plugins: whether actions of other packages count.

    Raises:
        InputError: a clause that is malformed; the message points at it and says what could stand there. A plug-in
            that cannot be used.
    """
    found = [part for part in CLAUSE.finditer(text) if part[0].strip()]
    return tuple(_clause(text, part.start(), part.end(), plugins) for part in found)


def expand(clause: Clause, layers: Layers) -> tuple[Clause, ...]:
    """The clause itself, or what a plug-in makes of it for this network, in hf_tl's own actions.

    Raises:
        InputError: the plug-in fails, or what it returns is no policy.
    """
    if clause.plugin is None:
        return (clause,)
    what, argument = f"action {clause.action!r}", clause.selection
    try:
        text = clause.plugin(argument, layers)
    except InputError:
        raise
    except Exception as error:  # a foreign function can fail in any way
        raise InputError(f"{what} failed on {argument!r}: {in_one_line(error)}") from error
    if not isinstance(text, str):
        raise InputError(f"{what} should give the text of clauses, got {type(text).__name__}")
    try:
        return parse_policy(text, plugins=False)
    except InputError as error:
        raise InputError(f"{what} made of {argument!r} what is no policy: {error}") from error


def _clause(text: str, start: int, stop: int, plugins: bool) -> Clause:
    dotted = DOTTED.match(text, start, stop)
    colon = text.find(":", start, stop) if dotted is None or dotted["module"] in ACTIONS else dotted.end() - 1
    action = text[start : stop if colon < 0 else colon].strip()
    if colon >= 0 and action in ACTIONS:
        return _known(action, text, colon + 1, stop)
    plugin = find_plugin("action", action) if plugins and action and colon >= 0 else None
    if plugin is not None:
        return _selecting(text, colon + 1, stop, action, plugin=plugin)
    at = text.index(action, start) if action else start
    word = action.split()[0] if action else ""
    if word in ACTIONS and colon < 0:
        _fail(text, at, len(action), f"a colon is missing after {word!r}; write '{word}: ...'")
    known = (*ACTIONS, *plugin_names("action"))
    advice = f"write one of {', '.join(known)}, {closest(word, known)}" if word else f"write {', '.join(known)}"
    _fail(text, at, len(action), f"a policy has no action {action!r}; {advice}")


def _known(action: str, text: str, start: int, stop: int) -> Clause:
    if action == "lr":
        return _rate(text, start, stop)
    if action in SWITCHES:
        return _switch(action, text, start, stop)
    return _selecting(text, start, stop, action)


def _rate(text: str, start: int, stop: int) -> Clause:
    found = RATE.match(text, start, stop)
    if found is None:
        given = text[start:stop].strip()
        at = text.index(given, start)
        _fail(text, at, len(given), "lr takes 'decay 0.8', or a factor and layers, 'x0.1 ..50%'")
    try:
        number = float(found["number"])
    except ValueError:
        number = -1.0
    if not 0 < number < float("inf"):
        wrong = found["number"]
        _fail(text, found.start("number"), len(wrong), f"{wrong!r} is no rate; write a number above 0, like 0.8")
    word = found["word"].strip()
    if word == "decay" and text[found.end() : stop].strip():
        _fail(text, found.end(), stop - found.end(), "decay is about all layers; a factor takes a selection, 'x0.1'")
    return _selecting(text, found.end(), stop, "lr", word=word, rate=number)


def _switch(action: str, text: str, start: int, stop: int) -> Clause:
    found = WORD.match(text, start, stop)
    word = found["word"] if found else ""
    if found is None or word not in SWITCHES[action]:
        choices = " or ".join(repr(choice) for choice in SWITCHES[action])
        at = found.start("word") if found else start
        _fail(text, at, len(word), f"{action} takes {choices}, then layers, got {word!r}")
    return _selecting(text, found.end(), stop, action, word=word)


def _selecting(
    text: str, start: int, stop: int, action: str, *, word: str = "", rate: float = 1.0, plugin: Action | None = None
) -> Clause:
    return Clause(action, word, rate, text[start:stop].strip(), plugin, text, start, stop)


def _fail(text: str, at: int, width: int, what: str) -> NoReturn:
    raise InputError(f"{what}{point_at(text, text[at : at + width] or ' ', at)}")
