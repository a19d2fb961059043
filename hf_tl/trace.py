"""One traced forward pass: which layers ran, in which order, and what became of their outputs.

A layer here is a convolution or a fully connected module. Its output is followed by tensor identity and
version through at most one normalisation and one activation, whether those are modules or functions:

    conv -> batch_norm -> relu        the value after the activation is read at the relu
    conv -> batch_norm -> x += skip   no activation of its own: the value is read at the norm

An in-place activation writes into the tensor it reads, so identity alone is not enough: a tensor whose
version moved is no longer the value that was recorded.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hf_tl.architectures import inner_network, is_convolution, is_fully_connected, without_adapter
from hf_tl.dataflow import Dataflow, ModuleCall


Batch = Mapping[str, Tensor] | Tensor
Shapes = dict[tuple[str, int], tuple[int, ...]]  # by a module's name and the number of its call

NORMS = frozenset({"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "local_response_norm"})
ACTIVATIONS = frozenset(
    {
        *("relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus"),
        *("hardtanh", "hardswish", "hardsigmoid", "hardshrink", "softshrink", "tanhshrink", "threshold"),
        *("tanh", "sigmoid", "logsigmoid", "softsign"),
    }
)
NOT_ACTIVATIONS = (nn.MultiheadAttention, nn.Softmax, nn.Softmin, nn.LogSoftmax, nn.Softmax2d, nn.GLU)

_LOCKS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_LOCKS_LOCK = threading.Lock()
_LINEAR, _NORM, _ACTIVATION = 0, 1, 2  # how far along its chain a value is


@dataclass(frozen=True)
class Step:
    """A torch function as the network called it, but for its input."""

    function: Callable
    args: tuple
    kwargs: dict


@dataclass(frozen=True)
class Reading:
    """Where a value is read.

    Attributes:
        module: name of the module that is watched; "" for the whole network.
        call: which of its calls in one forward pass, from 0.
        side: whether its output is read, or its first input.
        steps: functions that the network itself applies later, outside any module, and that the reader must repeat.
    """

    module: str
    call: int
    side: Literal["output", "input"] = "output"
    steps: tuple[Step, ...] = ()

    def finish(self, value: Tensor) -> Tensor:
        """The watched value after the steps, on a copy, because some of them work in place."""
        value = value.clone() if self.steps else value
        for step in self.steps:
            value = step.function(value, *step.args, **step.kwargs)
        return value


@dataclass
class LayerCall:
    """One call of one convolution or fully connected layer during a forward pass.

    Attributes:
        name: the layer's name in the network.
        call: 0 for the layer's first call of the pass, 1 for the second (shared weights), ...
        module: the layer.
        before: where its own output is read.
        after: where the value is read after the layer's norm and activation; `before` if it has neither.
        chain: the names of that norm and activation, in order.
        shape: the shape of its own output.
    """

    name: str
    call: int
    module: nn.Module
    before: Reading
    after: Reading
    chain: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    stage: int = _LINEAR


@dataclass
class Trace:
    """What one forward pass did.

    Attributes:
        modules: names of the modules that ran, in the order in which they started.
        calls: how often each module ran.
        given: the shape of the first floating point tensor that each module was first called with.
        returned: that of the first one that each call of a module returned, by name and call, in the order in which
            calls ended; () for none.
        layers: every call of a convolution or fully connected layer, in execution order.
        output: the first floating point tensor that the network returned, None if it returned none.
        last: the layer call whose own output the network returned untouched (a classifier), or None.
        flow: the tree of module calls, and which tensors pass where.
    """

    modules: list[str] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    given: dict[str, tuple[int, ...]] = field(default_factory=dict)
    returned: Shapes = field(default_factory=dict)
    layers: list[LayerCall] = field(default_factory=list)
    output: Tensor | None = None
    last: LayerCall | None = None
    flow: Dataflow = field(default_factory=Dataflow)

    @property
    def root(self) -> ModuleCall:
        """The call of the network itself.

        Raises:
            RuntimeError: nothing ran yet.
        """
        if self.flow.root is None:
            raise RuntimeError("the network did not run")
        return self.flow.root


def trace(model: nn.Module, example: Batch) -> Trace:
    """Runs the network once on `example` and returns what its layers did.

    The network runs in eval mode without gradients; its training flags and the state of torch's random numbers
    come back, and no hook stays.
    """
    model = inner_network(model)
    recorder = _Recorder(model)
    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    untouched = torch.random.fork_rng(sorted(devices, key=str))  # some networks draw masks
    with untouched, evaluating(model), uncompiled(), torch.no_grad(), recorder.hooks(), recorder:
        returned = forward(model, example)
    record = recorder.trace
    record.flow.release()
    record.output = first_float(returned)
    if record.output is not None:
        followed = recorder.find(record.output)
        if followed is not None and followed.stage == _LINEAR:
            record.last = followed.layer
    return record


def forward(model: nn.Module, batch: Batch) -> object:
    """Calls the network: a mapping by keyword, a tensor by position."""
    return model(**batch) if isinstance(batch, Mapping) else model(batch)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, for one thread at a time; on the way out every module gets its own training flag back."""
    with in_turn(model):
        flags = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            yield
        finally:
            for module, training in flags:
                module.training = training


@contextmanager
def in_turn(model: nn.Module) -> Iterator[None]:
    """Inside, no other thread reads this network: hooks and training flags are one state for all of them."""
    with _LOCKS_LOCK:
        lock = _LOCKS.setdefault(model, threading.RLock())
    with lock:
        yield


@contextmanager
def uncompiled() -> Iterator[None]:
    """Inside, what the user compiled runs eagerly: its hooks may not be those of the moment."""
    if "torch._dynamo" not in sys.modules:  # nothing can have been compiled
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def same_buffers(model: nn.Module) -> Iterator[None]:
    """Within, passes leave no trace in the buffers."""
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)


def n_samples(batch: Batch) -> int:
    """Number of samples of a batch: the length of its first tensor."""
    return len(batch) if isinstance(batch, Tensor) else len(next(iter(batch.values())))


def first_float(value: object) -> Tensor | None:
    """The first floating point tensor in a tensor, list, tuple or mapping (such as a ModelOutput), depth first."""
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else None
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return next((found for item in items if (found := first_float(item)) is not None), None)


def shape_of(value: Tensor | None) -> tuple[int, ...]:
    """Its shape; () for no tensor."""
    return () if value is None else tuple(value.shape)


@dataclass
class _Followed:
    """A tensor that still is the output of `layer`, `stage` steps along its chain."""

    tensor: Tensor  # kept alive, so that no other tensor gets its identity
    version: int
    layer: LayerCall
    stage: int


class _Recorder(TorchFunctionMode):
    """Sees every torch function (as a mode) and every module call (by hooks) of one forward pass."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.trace = Trace()
        self.model = model
        self.names = {module: name for name, module in model.named_modules()}
        self.layers = self._find_layers()
        self.followed: dict[int, _Followed] = {}
        self.inputs: list[_Followed | None] = []  # a stack: what each running module was given

    def _find_layers(self) -> set[nn.Module]:
        """Every convolution and fully connected layer; one with an adapter counts whole, nothing in it by itself."""
        found = {module for module in self.names if is_convolution(module) or is_fully_connected(module)}
        adapted = [f"{self.names[module]}." for module in found if without_adapter(module) is not module]
        return {module for module in found if not self.names[module].startswith(tuple(adapted))}

    @contextmanager
    def hooks(self) -> Iterator[None]:
        with ExitStack() as stack:
            for module in self.names:
                for handle in (
                    module.register_forward_pre_hook(self._enter, with_kwargs=True),
                    module.register_forward_hook(self._leave),
                ):
                    stack.callback(handle.remove)
            yield

    def find(self, tensor: Tensor) -> _Followed | None:
        found = self.followed.get(id(tensor))
        return found if found is not None and found.version == tensor._version else None

    def __torch_function__(
        self, func: Callable, types: Iterable[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        source = args[0] if args else kwargs.get("input")
        found = self.find(source) if isinstance(source, Tensor) else None
        given = self.trace.flow.before([args, kwargs])
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        self.trace.flow.after(name, given, result)
        stage = _stage_of_function(name)
        if found is not None and stage > found.stage and isinstance(result, Tensor):
            step = Step(func, args[1:], {key: value for key, value in kwargs.items() if key != "input"})
            reading = found.layer.after
            self._advance(found.layer, result, stage, replace(reading, steps=(*reading.steps, step)), func.__name__)
        return result

    def _advance(self, layer: LayerCall, tensor: Tensor, stage: int, reading: Reading, what: str) -> None:
        if stage > layer.stage:  # the first path that gets this far counts
            layer.stage, layer.after, layer.chain = stage, reading, (*layer.chain, what.rstrip("_"))
            self.followed[id(tensor)] = _Followed(tensor, tensor._version, layer, stage)

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        name = self.names[module]
        self.trace.modules.append(name)
        self.trace.flow.enter(name, module, [args, kwargs])
        given = first_float([args, kwargs])
        if given is not None:
            self.trace.given.setdefault(name, tuple(given.shape))
        self.inputs.append(None if given is None else self.find(given))

    def _leave(self, module: nn.Module, args: tuple, output: object) -> None:
        name, given = self.names[module], self.inputs.pop()
        call = self.trace.calls[name]
        self.trace.calls[name] += 1
        self.trace.flow.leave(output)
        self.trace.returned[name, call] = shape_of(first_float(output))
        if not isinstance(output, Tensor):
            return
        here = Reading(name, call)
        if module in self.layers:
            layer = LayerCall(name, call, module, before=here, after=here, shape=tuple(output.shape))
            self.trace.layers.append(layer)
            self.followed[id(output)] = _Followed(output, output._version, layer, _LINEAR)
            return
        found = self.find(output)
        if found is not None:  # a value followed by function comes out of a module: read it there
            if found.stage == found.layer.stage and found.layer.after.steps:
                found.layer.after = here
        elif given is not None and (stage := _stage_of_module(module)) > given.stage:
            self._advance(given.layer, output, stage, here, type(module).__name__)


def _stage_of_function(name: str) -> int:
    name = name.rstrip("_")
    return _ACTIVATION if name in ACTIVATIONS else _NORM if name in NORMS else _LINEAR


def _stage_of_module(module: nn.Module) -> int:
    """What a module is that was not seen to call a known function (transformers' NewGELU, a hand-written RMSNorm)."""
    kind = type(module)
    home = kind.__module__.rpartition(".")[2]
    if home.startswith("activation") and not isinstance(module, NOT_ACTIVATIONS):
        return _ACTIVATION
    return _NORM if "norm" in kind.__name__.lower() else _LINEAR
