"""The words of a policy: `freeze: ..50%; tune: 50%..-2; reinit: -2.., head; lr: decay 0.8`.

    policy := clause (";" clause)*
    clause := ("freeze" | "tune" | "reinit") ":" selection
            | "lr" ":" "decay" number              head and norm at the full rate, times `number` per block below
            | "lr" ":" "x" number [selection]      these layers at `number` times the rate; all without a selection
            | "norm" ":" ("eval" | "train") [selection]       statistics of batch norms stand still, or move
            | "dropout" ":" ("off" | "on") [selection]        with stochastic depth and layer drop
            | plug-in ":" argument                   a verb of another package, see `hf_tl.plugins` and `Verb`

A selection is that of `hf_tl.layers.select`. Later clauses win; rates multiply.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn, Protocol

from hf_tl.errors import InputError, in_one_line
from hf_tl.layers import Layer, Layers, select_layers
from hf_tl.names import closest
from hf_tl.plugins import find_plugin, plugin_names


ACTIONS = ("freeze", "tune", "reinit")
SWITCHES = {"norm": ("eval", "train"), "dropout": ("off", "on")}
VERBS = (*ACTIONS, "lr", *SWITCHES)
CLAUSE = re.compile(r"(?:/(?:[^/\\]|\\.)*/|[^;])+")  # a semicolon within a regular expression is its own
RATE = re.compile(r"\s*(?P<word>decay\s+|x\s*)(?P<number>[^\s,;]+)\s*")
FOREIGN = re.compile(r"\s*(?P<module>[A-Za-z_][\w.]*):[A-Za-z_][\w.]*\s*:")  # "module:name:", a verb and its colon
WORD = re.compile(r"\s*(?P<word>[^\s,;]*)\s*")


class Verb(Protocol):
    """What a plug-in of the kind "verb" is: it says something about layers in hf_tl's own verbs."""

    def __call__(self, argument: str, layers: Layers) -> str:
        """What stands behind its colon, the layers of the network -> clauses, "freeze: 2..-2; lr: x0.1 head"."""
        ...


@dataclass(frozen=True)
class Clause:
    """One clause of a policy.

    Attributes:
        verb: one of VERBS, or that of a plug-in.
        text: the whole policy.
        start: where its selection begins in the text.
        stop: where it ends; a clause with nothing but blanks in between is about all layers.
        word: "decay" or "x" for lr, "eval" or "train" for norm, "off" or "on" for dropout.
        rate: the number of an lr clause.
        plugin: what a verb of another package stands for.
    """

    verb: str
    text: str
    start: int
    stop: int
    word: str = ""
    rate: float = 1.0
    plugin: Verb | None = None

    def expanded(self, layers: Layers) -> tuple[Clause, ...]:
        """The clause itself, or what a plug-in makes of it for this network, in hf_tl's own verbs.

        Raises:
            InputError: the plug-in fails, or says what is no policy.
        """
        if self.plugin is None:
            return (self,)
        argument = self.text[self.start : self.stop].strip()
        try:
            said = self.plugin(argument, layers)
        except InputError:
            raise
        except Exception as error:  # a foreign function can fail in any way
            raise InputError(f"verb {self.verb!r} failed on {argument!r}: {in_one_line(error)}") from error
        if not isinstance(said, str):
            raise InputError(f"verb {self.verb!r} should give the text of clauses, got {type(said).__name__}")
        try:
            return parse_policy(said, plugins=False)
        except InputError as error:
            raise InputError(f"verb {self.verb!r} made of {argument!r} what is no policy: {error}") from error

    def layers(self, layers: Sequence[Layer]) -> list[Layer]:
        """The layers that it is about.

        Raises:
            InputError: the selection is malformed or names nothing; the message points into the policy.
        """
        if self.verb not in ACTIONS and not self.text[self.start : self.stop].strip():
            return list(layers)
        return select_layers(layers, self.text, start=self.start, stop=self.stop)


def parse_policy(text: str, *, plugins: bool = True) -> tuple[Clause, ...]:
    """The clauses of a policy, in order.

    Args:
        text: of the policy.
        plugins: whether verbs of other packages count.

    Raises:
        InputError: a clause that is malformed; the message points at it and says what could stand there. A plug-in
            that cannot be used.
    """
    found = [part for part in CLAUSE.finditer(text) if part[0].strip()]
    return tuple(_clause(text, part.start(), part.end(), plugins) for part in found)


def _clause(text: str, start: int, stop: int, plugins: bool) -> Clause:
    foreign = FOREIGN.match(text, start, stop)
    colon = text.find(":", start, stop) if foreign is None or foreign["module"] in VERBS else foreign.end() - 1
    verb = text[start : stop if colon < 0 else colon].strip()
    at = text.index(verb, start) if verb else start
    plugin = find_plugin("verb", verb) if plugins and verb not in VERBS and verb and colon >= 0 else None
    if plugin is not None:
        return Clause(verb, text, colon + 1, stop, plugin=plugin)
    if verb not in VERBS or colon < 0:
        word = verb.split()[0] if verb else ""
        if colon < 0 and word in VERBS:
            _fail(text, at, len(verb), f"a colon is missing after {word!r}; write '{word}: ...'")
        known = (*VERBS, *plugin_names("verb"))
        advice = f"write one of {', '.join(known)}, {closest(word, known)}" if word else f"write {', '.join(known)}"
        _fail(text, at, max(len(verb), 1), f"a policy has no verb {verb!r}; {advice}")
    if verb in ACTIONS:
        return Clause(verb, text, colon + 1, stop)
    return _rate(text, colon + 1, stop) if verb == "lr" else _switch(verb, text, colon + 1, stop)


def _rate(text: str, start: int, stop: int) -> Clause:
    found = RATE.match(text, start, stop)
    given = text[start:stop].strip()
    at = start + text[start:stop].index(given)
    if found is None:
        _fail(text, at, max(len(given), 1), "lr takes 'decay 0.8', or a factor and layers, 'x0.1 ..50%'")
    try:
        number = float(found["number"])
    except ValueError:
        number = -1.0
    width = len(found["number"])
    if not 0 < number < float("inf"):
        _fail(text, found.start("number"), width, f"{found['number']!r} is no rate; write a number above 0, like 0.8")
    word = found["word"].strip()
    if word == "decay" and text[found.end() : stop].strip():
        _fail(text, found.end(), stop - found.end(), "decay is about all layers; a factor takes a selection, 'x0.1'")
    return Clause("lr", text, found.end(), stop, word, number)


def _switch(verb: str, text: str, start: int, stop: int) -> Clause:
    found = WORD.match(text, start, stop)
    word = found["word"]
    if word not in SWITCHES[verb]:
        choices = " or ".join(repr(choice) for choice in SWITCHES[verb])
        _fail(text, found.start("word"), max(len(word), 1), f"{verb} takes {choices}, then layers, got {word!r}")
    return Clause(verb, text, found.end(), stop, word)


def _fail(text: str, at: int, width: int, what: str) -> NoReturn:
    raise InputError(f"{what}\n  {text}\n  {' ' * at}{'^' * width}")
