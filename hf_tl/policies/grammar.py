"""The words of a policy: `freeze: ..50%; tune: 50%..-2; reinit: -2.., head; lr: decay 0.8`.

    policy := clause (";" clause)*
    clause := ("freeze" | "tune" | "reinit") ":" selection
            | "lr" ":" "decay" number              head and norm at the full rate, times `number` per block below
            | "lr" ":" "x" number [selection]      these layers at `number` times the rate; all without a selection
            | "norm" ":" ("eval" | "train") [selection]       statistics of batch norms stand still, or move
            | "dropout" ":" ("off" | "on") [selection]        with stochastic depth and layer drop

A selection is that of `hf_tl.layers.selection`. Later clauses win; rates multiply.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from hf_tl.errors import InputError
from hf_tl.layers import Layer, closest, select


ACTIONS = ("freeze", "tune", "reinit")
SWITCHES = {"norm": ("eval", "train"), "dropout": ("off", "on")}
VERBS = (*ACTIONS, "lr", *SWITCHES)
CLAUSE = re.compile(r"(?:/(?:[^/\\]|\\.)*/|[^;])+")  # a semicolon within a regular expression is its own
RATE = re.compile(r"\s*(?P<word>decay\s+|x\s*)(?P<number>[^\s,;]+)\s*")
WORD = re.compile(r"\s*(?P<word>[^\s,;]*)\s*")


@dataclass(frozen=True)
class Clause:
    """One clause of a policy.

    Attributes:
        verb: one of VERBS.
        text: the whole policy.
        start: where its selection begins in the text.
        stop: where it ends; a clause with nothing but blanks in between is about all layers.
        word: "decay" or "x" for lr, "eval" or "train" for norm, "off" or "on" for dropout.
        rate: the number of an lr clause.
    """

    verb: str
    text: str
    start: int
    stop: int
    word: str = ""
    rate: float = 1.0

    def layers(self, layers: Sequence[Layer]) -> list[Layer]:
        """The layers that it is about.

        Raises:
            InputError: the selection is malformed or names nothing; the message points into the policy.
        """
        if self.verb not in ACTIONS and not self.text[self.start : self.stop].strip():
            return list(layers)
        return select(layers, self.text, start=self.start, stop=self.stop)


def parse_policy(text: str) -> tuple[Clause, ...]:
    """The clauses of a policy, in order.

    Raises:
        InputError: a clause that is malformed; the message points at it and says what could stand there.
    """
    return tuple(_clause(text, found.start(), found.end()) for found in CLAUSE.finditer(text) if found[0].strip())


def _clause(text: str, start: int, stop: int) -> Clause:
    colon = text.find(":", start, stop)
    verb = text[start : stop if colon < 0 else colon].strip()
    at = text.index(verb, start) if verb else start
    if verb not in VERBS or colon < 0:
        word = verb.split()[0] if verb else ""
        if colon < 0 and word in VERBS:
            _fail(text, at, len(verb), f"a colon is missing after {word!r}; write '{word}: ...'")
        advice = f"write one of {', '.join(VERBS)}, {closest(word, VERBS)}" if word else f"write {', '.join(VERBS)}"
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
