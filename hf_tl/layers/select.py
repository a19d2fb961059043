"""A language to name layers: `..50%`, `-2..`, `head`, `encoder.3`, `blocks.*.attn`, `/layer\\.[0-3]/`.

    selection := term ("," term)*
    term      := "all" | "stem" | "norm" | "head"     layers of that kind
               | i | -i                               one block, counted from the data or from the task
               | [a] ".." [b]                         blocks a to b, b excluded; a and b are numbers or shares, 25%
               | tower | tower "." term               one of several towers, or a part of it: encoder.-1, encoder...50%
               | "each" term                          in each of several towers: each ..50%, each -1
               | glob                                 names of layers, or of modules that hold them
               | "/" regex "/"                        the same by a regular expression that is searched for

Blocks are numbered from 0; stem, norm and head stand outside the numbers. A range without a start takes the stem
along, a range without an end the final norm; neither takes the head. A share is rounded down to a block.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NoReturn

from hf_tl.errors import InputError
from hf_tl.layers.layers import Layer
from hf_tl.names import Matcher, closest, name_matcher


BROKEN = "a regular expression stands between two slashes"
KINDS: tuple[Literal["stem", "norm", "head"], ...] = ("stem", "norm", "head")
EACH = "each "
INDEX = re.compile(r"-?\d{1,9}")
RANGE = re.compile(r"(?P<start>-?\d{1,9}%?)?\.\.(?P<stop>-?\d{1,9}%?)?")
TERM = r"\s*(?P<term>/(?:[^/\\]|\\.)*/|[^,]*?)\s*(?:,|$)"  # a comma within a regular expression is its own


def select_layers(layers: Sequence[Layer], selection: str, *, start: int = 0, stop: int | None = None) -> list[Layer]:
    """The layers that a selection names, in the order of the network.

    Args:
        layers: from `list_layers`; with level="leaf", the numbers are those of the blocks that the leaves are in.
        selection: see above, such as "stem, ..50%, head".
        start: where the selection begins, if it is part of a longer text, which error messages then show whole.
        stop: where it ends; None for the end of the text.

    Raises:
        InputError: a term that is malformed, ambiguous or names nothing; the message points at it and lists what
            could stand there.
    """
    names = dict.fromkeys(name for layer in layers for name in _names(layer))
    chosen = {
        id(layer)
        for text, at in split_terms(selection, start=start, stop=stop, names=names)
        for layer in _Term(layers, selection, text, at).layers()
    }
    return [layer for layer in layers if id(layer) in chosen]


class _Term:
    """One term of a selection, which knows its place for the sake of error messages."""

    def __init__(self, layers: Sequence[Layer], selection: str, text: str, position: int):
        self.every, self.selection, self.text, self.position = layers, selection, text, position
        self.towers = list(dict.fromkeys(layer.tower for layer in layers if layer.kind == "block" and layer.tower))

    def layers(self) -> Sequence[Layer]:
        if self.text.startswith(EACH):
            rest = self.text.removeprefix(EACH).strip()
            if find_place(rest) is None:
                self._fail("'each' takes blocks, a range or a kind of layer", "write 'each ..50%', 'each -1'")
            return [layer for tower in self.towers or [""] for layer in self._placed(tower, rest)]
        return self._placed(*(find_place(self.text, self.towers) or ("", self.text)))

    def _placed(self, tower: str, rest: str) -> Sequence[Layer]:
        part = [layer for layer in self.every if layer.tower == tower] if tower else self.every
        if rest == "all":
            return part
        if rest in KINDS:
            return [layer for layer in part if layer.kind == rest] or self._fail(f"there is no {rest} here")
        if INDEX.fullmatch(rest):
            number = self._number(rest, self._count(part, tower))
            return [layer for layer in part if layer.index == number]
        if bounds := RANGE.fullmatch(rest):
            return self._range(part, self._count(part, tower), bounds["start"], bounds["stop"])
        if any(
            rest in _names(layer) for layer in self.every
        ):  # a name may hold brackets, which a glob reads as its own
            return self._named(rest.__eq__)
        return self._named(name_matcher(rest) or self._fail(BROKEN))

    def _count(self, part: Sequence[Layer], tower: str) -> int:
        if len(self.towers) > 1 and not tower:
            choices = " or ".join(f"{name}.{self.text}" for name in self.towers)
            advice = f"write {choices}, or 'each {self.text}'"
            self._fail(f"the network has {len(self.towers)} towers, say which one", advice)
        return 1 + max((layer.index for layer in part if layer.index is not None), default=-1)

    def _number(self, text: str, count: int) -> int:
        number = int(text)
        if not -count <= number < count:
            self._fail(
                f"there is no block {number}", f"the blocks are 0 to {count - 1}, or -{count} to -1 from the task"
            )
        return number % count

    def _bound(self, text: str, count: int) -> int:
        number = int(text.rstrip("%"))
        if text.endswith("%"):
            if not 0 <= number <= 100:
                self._fail(f"{text} is no share of the blocks", "write 0% to 100%")
            return count * number // 100
        if not -count <= number <= count:
            self._fail(
                f"{number} is no end of a range of {count} blocks", f"write -{count} to {count}, or a share like 50%"
            )
        return number + count if number < 0 else number

    def _range(self, part: Sequence[Layer], count: int, start: str | None, stop: str | None) -> list[Layer]:
        first = 0 if start is None else self._bound(start, count)
        last = count if stop is None else self._bound(stop, count)
        kinds = {"stem"} if start is None else set()
        kinds |= {"norm"} if stop is None else set()
        inside = [layer for layer in part if layer.index in range(first, last) or layer.kind in kinds]
        return inside or self._fail("the range is empty", f"the blocks are 0 to {count - 1}, and the end is excluded")

    def _named(self, matches: Matcher) -> list[Layer]:
        found = [layer for layer in self.every if any(matches(name) for name in _names(layer))]
        if found:
            return found
        for layer in self.every:
            for name, module in layer.modules:
                inner = next(
                    (inner for inner, _ in module.named_modules() if inner and matches(f"{name}.{inner}")), None
                )
                if inner is not None:
                    self._fail(
                        f"'{name}.{inner}' is a part of the layer {layer.name!r}",
                        "take that layer whole, or choose among the leaves (level='leaf')",
                    )
        self._fail("this names no layer")

    def _fail(self, what: str, do: str = "") -> NoReturn:
        choices = ["all", *KINDS, *self.towers, *dict.fromkeys(name for layer in self.every for name in _names(layer))]
        advice = do or closest(self.text.strip("/"), choices)
        raise InputError(f"{what}: {self.text!r}; {advice}{point_at(self.selection, self.text, self.position)}")


def _names(layer: Layer) -> Iterator[str]:
    """The name of a layer, those of its modules, and those of all modules around them."""
    yield layer.name
    for name, _ in layer.modules:
        while name:
            yield name
            name = name.rpartition(".")[0]


def find_place(text: str, towers: Sequence[str] = ()) -> tuple[str, str] | None:
    """The tower ("" for none) and the rest of a term that says where layers stand; None for one that names them."""
    for tower in ("", *towers):
        rest = "all" if text == tower else text.removeprefix(f"{tower}." if tower else "")
        inside = rest != text or not tower
        if inside and (rest in ("all", *KINDS) or INDEX.fullmatch(rest) or RANGE.fullmatch(rest)):
            return tower, rest
    return None


def point_at(selection: str, text: str, position: int) -> str:
    """Two lines for the end of an error message: the selection, and a pointer to the term in it."""
    shown = re.sub(r"\s", " ", selection)  # one of several lines has its pointer under the mistake, too
    return f"\n  {shown}\n  {' ' * position}{'^' * len(text)}"


def split_terms(
    selection: str, *, start: int = 0, stop: int | None = None, names: Iterable[str] = ()
) -> Iterator[tuple[str, int]]:
    """The terms of a selection, or of a part of a longer text, with their positions.

    Args:
        selection: the text.
        start: where the selection begins.
        stop: where it ends; None for the end of the text.
        names: of layers; one that holds a comma is one term.

    Raises:
        InputError: a term that is empty.
    """
    position, stop = start, len(selection) if stop is None else stop
    with_commas = [rf"{re.escape(name)}(?=\s*(?:,|$))" for name in names if "," in name]
    term = re.compile(TERM.replace("<term>", f"<term>{'|'.join([*with_commas, ''])}"))
    while position <= stop:
        found = term.match(selection, position, stop)
        if found is None or not found["term"]:
            at = position if found is None else found.start("term")
            raise InputError(
                f"a layer is missing; write all, stem, norm, head, a number, a range or a name"
                f"{point_at(selection, '?', at)}"
            )
        yield found["term"], found.start("term")
        if not found[0].endswith(","):
            return
        position = found.end()
