"""A place where one tensor alone passes from the frozen layers of a network to all that follow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hf_tl.layers import Layer
from hf_tl.policies.plan import Plan
from hf_tl.trace import first_float, same_buffers


WHOLE = (torch.int64, torch.int32, torch.int16, torch.uint8)


@dataclass
class Cut:
    """A place at which a network can be split, since one tensor is all that passes.

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

    def weights(self) -> list[tuple]:
        """What changes with the weights before the cut, in whatever way they are written.

        Two reads of their memory: a sum of their bits, which any other value of one of them changes, and one in which
        their places count.
        """
        every = (tensor for module in self.modules for tensor in (*module.parameters(), *module.buffers()))
        tensors = [tensor.detach() for tensor in every if tensor.numel()]
        bits = torch.stack([_sum_of_bits(tensor) for tensor in tensors]).tolist()
        weighted = torch.stack([_weighted_sum(tensor) for tensor in tensors]).tolist()
        return list(zip([tensor.data_ptr() for tensor in tensors], bits, weighted, strict=True))

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

    @contextmanager
    def replaying(self, value: Tensor) -> Iterator[None]:
        """Within, the modules return what they returned, and the last of them `value`."""
        own = [vars(module).get("forward") for module in self.modules]  # accelerate's hooks leave one there
        for i, module in enumerate(self.modules):
            put = [value] if i == len(self.modules) - 1 else []
            module.forward = _returning(self.outputs[i], put)
        try:
            yield
        finally:
            for module, forward in zip(self.modules, own, strict=True):
                del module.forward
                if forward is not None:
                    module.forward = forward


def find_cuts(plan: Plan) -> list[Cut]:
    """The cuts behind layers that are frozen and draw no random numbers, the deepest first."""
    found: list[Cut] = []
    modules: list[nn.Module] = []
    for setting in plan.settings:
        layer = setting.layer
        steady = setting.norm == "eval" and setting.dropout == "off"
        if plan.tunes(layer) or setting.trains or not steady or layer.calls > 1:
            break
        own = [module for _, module in layer.modules if next(module.parameters(), None) is not None]
        modules += own
        if layer.split_point and own:
            found.insert(0, Cut(layer, tuple(modules)))
    return found


def holds(model: nn.Module, cut: Cut, args: tuple, kwargs: dict) -> bool:
    """Whether the network, split here, does the same: with other random numbers before, with the same after."""

    def run(seed: int, rows: Callable[[Any], Any] = lambda value: value) -> Any:
        torch.manual_seed(seed)
        with same_buffers(model):
            return model(*map(rows, args), **{name: rows(value) for name, value in kwargs.items()})

    outputs, values = [], []
    for seed in (0, 1):
        try:
            with cut.capturing():
                outputs.append(run(seed))
        except NotImplementedError:
            return False
        values.append(cut.captured)
    first, second = values
    if first is None or second is None or not torch.equal(first, second):
        return False
    run(0, _rolled)  # what a frozen module has left in an attribute is of other samples now
    with cut.replaying(first.clone()):
        return _same(outputs[0], run(0))


@dataclass(frozen=True)
class _Blank:
    """The place of a tensor in what a module returned."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def _rolled(value: Any) -> Any:
    return value.roll(1, 0) if isinstance(value, Tensor) and value.ndim else value


def _same(one: Any, other: Any) -> bool:
    """Whether two outputs of a network hold the same tensors, bit for bit."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, Sequence) and not isinstance(one, str):
        return len(one) == len(other) and all(_same(*pair) for pair in zip(one, other, strict=True))
    return True


def _sum_of_bits(tensor: Tensor) -> Tensor:
    """The memory of a tensor, summed up as whole numbers."""
    memory = tensor.contiguous().reshape(-1)
    ends = (memory.storage_offset() * memory.itemsize, memory.numel() * memory.itemsize)
    widest = next(kind for kind in WHOLE if all(end % kind.itemsize == 0 for end in ends))
    return memory.view(widest).sum(dtype=torch.int64)


def _weighted_sum(tensor: Tensor) -> Tensor:
    """The sum of a tensor in weights that differ from place to place."""
    matrix = tensor.reshape(tensor.shape[0] if tensor.ndim else 1, -1).float()
    rows, columns = (1 + torch.arange(n, device=tensor.device).remainder(997).cos() for n in matrix.shape)
    return matrix @ columns @ rows


def _blank(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _Blank(tuple(value.shape), value.dtype, value.device)
    if isinstance(value, Mapping):
        raise NotImplementedError
    if isinstance(value, (list, tuple)):
        return type(value)([_blank(item) for item in value])
    return value


def _returning(output: Any, put: list[Tensor]) -> Callable:
    return lambda *args, **kwargs: _fill(output, list(put))


def _fill(value: Any, put: list[Tensor]) -> Any:
    """Tensors for blanks: the first of floating point is the one to put there, if there is one."""
    if isinstance(value, _Blank):
        if put and value.dtype.is_floating_point:
            return put.pop()
        return torch.zeros(value.shape, dtype=value.dtype, device=value.device)
    if isinstance(value, (list, tuple)):
        return type(value)([_fill(item, put) for item in value])
    return value
