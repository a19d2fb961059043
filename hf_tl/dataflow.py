"""Which tensor came from where: the tree of module calls of one forward pass, and the life of every tensor in it.

A tensor is known by identity and version, so that a value that was overwritten in place counts as another one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn


SHAPE_ONLY = frozenset(  # these read the shape and the dtype of a tensor, not its values
    {
        *("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like"),
        *("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor"),
    }
)


@dataclass(eq=False)
class ModuleCall:
    """One call of one module during a forward pass.

    Attributes:
        name: the module's name in the network; "" for the network itself.
        module: the module.
        start: the tick of the pass's clock at which the call began.
        stop: the tick at which it returned.
        inputs: numbers of the floating point values that it was given.
        outputs: numbers of the floating point values that it returned.
        children: the calls it made, in order.
    """

    name: str
    module: nn.Module
    start: int
    stop: int = 0
    inputs: frozenset[int] = frozenset()
    outputs: frozenset[int] = frozenset()
    children: list[ModuleCall] = field(default_factory=list)

    def walk(self) -> Iterator[ModuleCall]:
        """The call and all calls below it, in the order in which they began."""
        yield self
        for child in self.children:
            yield from child.walk()


@dataclass
class Value:
    """The life of one floating point tensor: made at tick `born`, last read at tick `last`.

    `learnt` says that it depends on parameters; masks, positions and the inputs themselves do not.
    """

    born: int
    last: int
    learnt: bool


class Dataflow:
    """Follows tensors through a forward pass; fed by the recorder of `hf_tl.trace`.

    Attributes:
        root: the call of the network itself, once it began.
        first_read: when each parameter was first read, by its `id`.
    """

    def __init__(self) -> None:
        self.clock = 0
        self.root: ModuleCall | None = None
        self.first_read: dict[int, int] = {}
        self._open: list[ModuleCall] = []
        self._values: list[Value] = []
        self._numbers: dict[tuple[int, int], int] = {}  # (identity, version) -> number
        self._newest: dict[int, int] = {}  # identity -> number of its newest version
        self._alive: list[Tensor] = []  # so that no other tensor gets an identity that is in use

    def enter(self, name: str, module: nn.Module, given: object) -> None:
        """A module begins."""
        self.clock += 1
        call = ModuleCall(name, module, self.clock, inputs=self._all(given, learnt=False))
        if self._open:
            self._open[-1].children.append(call)
        elif self.root is None:
            self.root = call
        self._open.append(call)

    def leave(self, returned: object) -> None:
        """The module that began last returns."""
        self.clock += 1
        call = self._open.pop()
        call.outputs = self._all(returned, learnt=next(call.module.parameters(), None) is not None)
        call.stop = self.clock

    def before(self, arguments: object) -> list[tuple[Tensor, int]]:
        """The tensors that a function is about to get, with their versions."""
        return [(tensor, tensor._version) for tensor in tensors_in(arguments)]

    def after(self, function: str, given: list[tuple[Tensor, int]], result: object) -> None:
        """A function returned: it read what it was given and made its results, and what it changed in place."""
        made = list(tensors_in(result))
        changed = [tensor for tensor, version in given if tensor._version != version]
        if not made and not changed:  # it asked for a shape, a dtype, a device
            return
        self.clock += 1
        learnt = False
        for tensor, version in given if function not in SHAPE_ONLY else ():
            if isinstance(tensor, nn.Parameter):
                self.first_read.setdefault(id(tensor), self.clock)
                learnt = True
                continue
            value = self._values[self._number(tensor, version, learnt=False)]
            value.last = self.clock
            learnt = learnt or value.learnt
        for tensor in (*changed, *made):
            self._number(tensor, tensor._version, learnt=learnt, fresh=True)

    def crossing(self, tick: int) -> int:
        """How many learnt values are made until `tick` and read after it."""
        return sum(value.learnt and value.born <= tick < value.last for value in self._values)

    def last_read(self, numbers: Iterable[int]) -> int:
        """The tick at which any of the values was read last; 0 if there are none."""
        return max((self._values[number].last for number in numbers), default=0)

    def release(self) -> None:
        """Lets go of all tensors; what is known about them stays."""
        self._alive.clear()
        self._numbers.clear()
        self._newest.clear()

    def _all(self, value: object, *, learnt: bool) -> frozenset[int]:
        return frozenset(
            self._number(tensor, tensor._version, learnt=learnt)
            for tensor in tensors_in(value)
            if tensor.is_floating_point()
        )

    def _number(self, tensor: Tensor, version: int, *, learnt: bool, fresh: bool = False) -> int:
        known = self._numbers.get((id(tensor), version))
        if known is not None:
            return known
        born = self.clock
        older = self._newest.get(id(tensor))
        if older is not None and not fresh:  # changed unseen, through a view: it lives on from where it was made
            born, learnt = self._values[older].born, learnt or self._values[older].learnt
        number = len(self._values)
        self._values.append(Value(born, born, learnt and tensor.is_floating_point()))
        self._numbers[id(tensor), version] = self._newest[id(tensor)] = number
        self._alive.append(tensor)
        return number


def tensors_in(value: object) -> Iterator[Tensor]:
    """Every tensor in nested lists, tuples and mappings (such as a ModelOutput), depth first."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
