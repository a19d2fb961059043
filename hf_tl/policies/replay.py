"""A network whose frozen beginning is not computed: the modules there return tensors of the right shape, the last of
them the remembered one. What runs between modules still runs, on values that nobody reads.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hf_tl.layers import Layer
from hf_tl.policies.plan import Plan
from hf_tl.trace import first_float


LARGE = 2**20  # bytes, from which on pages of their own are cheaper than writing zeros


@dataclass(frozen=True)
class Blank:
    """The place of a tensor in what a module returned."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def fill(self) -> Tensor:
        """Zeros, which may be written to.

        Large ones on the CPU are memory that the system hands out untouched: mostly, nobody ever does.
        """
        size = math.prod(self.shape) * self.dtype.itemsize
        if size < LARGE or self.device.type != "cpu":
            return torch.zeros(self.shape, dtype=self.dtype, device=self.device)
        return torch.frombuffer(mmap.mmap(-1, size), dtype=self.dtype).view(self.shape)


@dataclass
class Cut:
    """A place at which a network can be cut, since one tensor is all that passes.

    Attributes:
        layer: the last layer before it.
        modules: those that need not run, in execution order; the last returns the tensor.
        outputs: what they returned in the pass that was captured, tensors left blank.
        captured: the tensor that passed.
    """

    layer: Layer
    modules: tuple[nn.Module, ...]
    outputs: list[Any] = field(default_factory=list)
    captured: Tensor | None = None

    def version(self) -> int:
        """A number that grows with every change of the weights before the cut."""
        return sum(tensor._version for module in self.modules for tensor in (*module.parameters(), *module.buffers()))

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """Within, a pass of the network leaves what its modules return here."""
        self.outputs, self.captured = [None] * len(self.modules), None

        def keep(i: int) -> Callable:
            def hook(module: nn.Module, args: tuple, output: Any) -> None:
                self.outputs[i] = _blank(output)
                if i == len(self.modules) - 1:
                    found = first_float(output)
                    self.captured = None if found is None else found.detach().clone()

            return hook

        with ExitStack() as stack:
            for i, module in enumerate(self.modules):
                stack.callback(module.register_forward_hook(keep(i)).remove)
            yield

    def replay(self, value: Tensor) -> Callable[[], None]:
        """Lets the modules return what they returned, and the last of them `value`; what is returned ends that."""
        last = len(self.modules) - 1
        before = [module.__dict__.get("forward") for module in self.modules]  # accelerate's hooks leave one there
        for i, module in enumerate(self.modules):
            module.forward = _returns(self.outputs[i], value if i == last else None)

        def end() -> None:
            for module, own in zip(self.modules, before, strict=True):
                del module.forward
                if own is not None:
                    module.forward = own

        return end


def cuts(model: nn.Module, plan: Plan) -> list[Cut]:
    """The cuts behind layers that are frozen and draw no random numbers, the deepest first."""
    found, modules = [], []
    order = {module: i for i, module in enumerate(model.modules())}
    for setting in plan.settings:
        layer = setting.layer
        steady = setting.norm == "eval" and setting.dropout == "off"
        if plan.tunes(layer) or setting.trains or not steady or layer.calls > 1:
            break
        own = [module for _, module in layer.modules if next(module.parameters(), None) is not None]
        modules += own
        if layer.cut and own:
            found.append(Cut(layer, tuple(modules)))
    return [cut for cut in reversed(found) if all(module in order for module in cut.modules)]


def _blank(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Blank(tuple(value.shape), value.dtype, value.device)
    if isinstance(value, Mapping):
        raise NotImplementedError
    if isinstance(value, (list, tuple)):
        return type(value)([_blank(item) for item in value])
    return value


def _returns(output: Any, value: Tensor | None) -> Callable:
    def forward(*args, **kwargs) -> Any:
        return _fill(output, [value] if value is not None else [])

    return forward


def _fill(value: Any, put: list[Tensor]) -> Any:
    """Tensors for blanks: the first of floating point is the one to put there, if there is one."""
    if isinstance(value, Blank):
        return put.pop() if put and value.dtype.is_floating_point else value.fill()
    if isinstance(value, (list, tuple)):
        return type(value)([_fill(item, put) for item in value])
    return value


def same(one: Any, other: Any) -> bool:
    """Whether two outputs of a network hold the same tensors, bit for bit."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, Sequence) and not isinstance(one, str):
        return len(one) == len(other) and all(same(*pair) for pair in zip(one, other, strict=True))
    return True
