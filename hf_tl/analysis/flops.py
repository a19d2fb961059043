"""Floating-point operations of what runs inside a block, right for convolutions in groups too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.autograd.graph import Node
from torch.utils._python_dispatch import TorchDispatchMode, _push_mode
from torch.utils.flop_counter import flop_registry

from hf_tl.dataflow import tensors_in
from hf_tl.trace import Batch, first_float, forward


FOLLOWED = "hf_tl.flops"  # in the metadata of nodes whose gradients are counted


class FlopCounter(TorchDispatchMode):
    """Counts what torch computes inside, forward and backward: `with FlopCounter() as counter: ...; counter.total`.

    A multiplication and an addition are two operations. Matrix products, convolutions and attention are counted by
    torch's formulas (`torch.utils.flop_counter`), with two exceptions: attention on a CPU, of which not every release
    has one, and the backward pass of a convolution, where they forget that a weight of `groups` groups has so many
    times fewer products, 22 times too many for a depthwise layer of 64 channels. Elementwise operations, other threads
    and what scikit-learn or numpy compute are not counted.

    Attributes:
        total: operations so far.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            return func(*args, **kwargs)
        operation = func._overloadpacket
        if operation not in flop_registry and operation not in _OWN and torch.is_inference_mode_enabled():
            with self:  # F.linear arrives whole there, and is a product of matrices inside
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        output = func(*args, **kwargs)
        if operation in _OWN:
            self.total += _OWN[operation](*args)
        elif operation in flop_registry:
            self.total += int(flop_registry[operation](*args, **kwargs, out_val=output))
        return output

    def count_gradients(self, output: object) -> None:
        """Counts the backward pass of an output as well, whenever it runs, without being on until then.

        It is on while a node of the graph computes its gradients: autograd puts the state of a thread back behind
        each, also where it fails.

        Args:
            output: what a network returned, with its graph.
        """
        for node in _nodes_behind(output):
            node.register_prehook(self._begin_node)

    def _begin_node(self, gradients: object) -> None:
        _push_mode(self)  # no `__enter__`: autograd takes the mode away, but nobody would put its flags back


def count_flops(model: nn.Module, batch: Batch, *, backward: bool = False) -> int:
    """The operations of one pass of a batch; the network stays as it is.

    Args:
        model: in the mode it is in: in train mode, running statistics and the random generators are put back.
        batch: what the network is called with.
        backward: whether the gradients of what trains are computed too; the loss is the mean square of the output.

    Raises:
        ValueError: nothing trains, or the output does not depend on what does, and gradients were asked for.
    """
    with FlopCounter() as counter:
        run_once(model, batch, backward=backward)
    return counter.total


def run_once(model: nn.Module, batch: Batch, *, backward: bool) -> None:
    """One pass without side effects: no gradient is left, buffers and random generators are as before."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if backward and not trained:
        raise ValueError(f"no parameter of {type(model).__name__} requires a gradient, so there is no backward pass")
    try:
        with torch.random.fork_rng(), torch.set_grad_enabled(backward):
            output = first_float(forward(model, batch))
            if backward:
                if output is None or not output.requires_grad:
                    raise ValueError(f"the output of {type(model).__name__} does not depend on what trains")
                torch.autograd.grad(output.square().mean(), trained, allow_unused=True)
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])


def samples_in(args: Sequence[object], kwargs: Mapping[str, object]) -> int:
    """The batch size of what a network was called with: the first axis of its first tensor; 0 where there is none."""
    for value in (*args, *kwargs.values()):
        inner = value.values() if isinstance(value, Mapping) else [value]
        for tensor in inner:
            if isinstance(tensor, Tensor) and tensor.ndim:
                return len(tensor)
    return 0


def _nodes_behind(output: object) -> Iterator[Node]:
    """The nodes of the graph of tensors that were not met before; leaves are none, nothing is computed there."""
    waiting = [tensor.grad_fn for tensor in tensors_in(output)]
    while waiting:
        node = waiting.pop()
        if node is None or node.name().endswith("AccumulateGrad"):
            continue
        known = cast(dict, node.metadata)  # torch types it as a method
        if FOLLOWED in known:
            continue
        known[FOLLOWED] = True
        waiting += [before for before, _ in node.next_functions]
        yield node


def _convolution_backward(
    grad_output: Tensor,
    values: Tensor,
    weight: Tensor,
    bias_sizes: object,
    stride: object,
    padding: object,
    dilation: object,
    transposed: bool,
    output_padding: object,
    groups: int,
    output_mask: Sequence[bool],
) -> int:
    """Each of the two gradients has as many products as the output has: positions x weights, whatever the groups."""
    positions = values.shape[2:] if transposed else grad_output.shape[2:]
    return 2 * len(values) * prod(positions) * weight.numel() * (bool(output_mask[0]) + bool(output_mask[1]))


def _attention(query: Tensor, key: Tensor, value: Tensor, *settings: object) -> int:
    """Two products: scores of queries (n, heads, s, d) with keys (n, heads, t, d), and of these with values."""
    scores = prod(query.shape[:3]) * key.shape[2]
    return 2 * scores * (query.shape[3] + value.shape[3])


def _attention_backward(grad_output: Tensor, query: Tensor, key: Tensor, value: Tensor, *settings: object) -> int:
    """Five products: the scores once more, and the gradients of scores, queries, keys and values."""
    scores = prod(query.shape[:3]) * key.shape[2]
    return 2 * scores * (3 * query.shape[3] + 2 * value.shape[3])


_OWN: dict[Any, Callable[..., int]] = {
    torch.ops.aten.convolution_backward: _convolution_backward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
