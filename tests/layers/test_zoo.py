"""The layers of fifty and more architectures, against what their configurations say and against laws."""

import contextlib
from collections import Counter
from contextlib import ExitStack
from itertools import pairwise

import pytest
import torch
from lanes import lanes
from torch import nn
from zoo import ZOO

from hf_tl import list_layers
from hf_tl.example import dummy_batch
from hf_tl.trace import first_float, forward


pytestmark = pytest.mark.filterwarnings("ignore")


def everything(model):
    """All that reading a network must not touch: parameters, buffers, flags, hooks, the random state."""
    state = {name: (value.clone(), value._version) for name, value in model.state_dict(keep_vars=True).items()}
    flags = [module.training for module in model.modules()]
    grads = [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    return state, flags, grads, hooks, torch.get_rng_state()


def assert_untouched(before, after):
    assert before[1:4] == after[1:4]
    assert torch.equal(before[4], after[4])
    for name, (value, version) in before[0].items():
        assert torch.equal(value, after[0][name][0])
        assert version == after[0][name][1], name


def modules_of(layers, kind):
    return tuple(name for layer in layers if layer.kind == kind for name, _ in layer.modules)


def test_the_zoo_is_large_enough():
    families = Counter(specimen.family for specimen in ZOO)
    assert families["timm"] >= 18
    assert families["transformers"] >= 30
    assert sum(families.values()) >= 50
    assert len({specimen.name for specimen in ZOO}) == len(ZOO)


QUICK = (  # one of each kind
    *("timm/resnet18", "timm/convnext_atto", "timm/mobilenetv3_small_100", "timm/edgenext_xx_small"),
    *("ResNet", "ViTFor", "Swin", "Bert", "Albert", "DebertaV2", "ModernBert", "XLNet", "GPT2", "Llama", "Mixtral"),
    *("Mamba", "T5", "CLIP", "Wav2Vec2", "AST", "Whisper", "Perceiver"),
)


@pytest.mark.parametrize("specimen", lanes(ZOO, fast=lambda specimen: specimen.name.startswith(QUICK)), ids=str)
def test_layers_of(specimen):
    model = specimen.model()
    for i, module in enumerate(model.modules()):
        module.training = i % 3 == 0
    with torch.no_grad():
        forward(model, dummy_batch(model, n=1))  # some networks put hooks of their own at the first call
    before = everything(model)
    calls = []
    with model.register_forward_pre_hook(lambda *_: calls.append(1)):
        layers = list_layers(model)
    assert len(calls) == 1
    assert_untouched(before, everything(model))

    # the facts of the architecture
    blocks = {}
    for layer in layers:
        if layer.kind == "block":
            blocks.setdefault(layer.tower, []).append(layer)
            assert layer.calls == specimen.calls
    assert {tower: len(found) for tower, found in blocks.items()} == specimen.blocks
    assert list(blocks) == list(specimen.blocks)
    assert modules_of(layers, "stem") == specimen.stem
    assert modules_of(layers, "head") == specimen.head
    assert modules_of(layers, "norm") == specimen.norm
    assert layers.towers == (tuple(specimen.blocks) if len(specimen.blocks) > 1 else ())

    # the laws of a ladder
    assert all(earlier.depth < later.depth for earlier, later in pairwise(layers))
    assert (layers[0].depth, layers[-1].depth) == (0, 1)
    for found in blocks.values():
        assert [layer.index for layer in found] == list(range(len(found)))
    owners = Counter(id(parameter) for layer in layers for parameter in layer.parameters())
    assert owners == {id(parameter): 1 for parameter in model.parameters()}
    assert len({layer.name for layer in layers}) == len(layers)
    started = order_of_first_calls(model)
    ran = [[started[name] for name, _ in layer.modules if name in started] for layer in layers]
    assert [min(times) for times in ran if times] == sorted(min(times) for times in ran if times)


def order_of_first_calls(model):
    """Names of modules -> when they first run; an oracle by plain hooks."""
    order, handles = {}, []
    for name, module in model.named_modules():

        def note(*_, name=name):
            order.setdefault(name, len(order))

        handles.append(module.register_forward_pre_hook(note))
    training = [module.training for module in model.modules()]
    with torch.no_grad():
        forward(model.eval(), dummy_batch(model, n=1))
    for handle in handles:
        handle.remove()
    for module, flag in zip(model.modules(), training, strict=True):
        module.training = flag
    return order


@pytest.mark.slow
@pytest.mark.parametrize("specimen", ZOO, ids=str)
def test_a_cut_is_a_cut(specimen):
    """Behind a cut nothing but one tensor is known of what ran before it.

    All weights before the boundary are changed at random, and one tensor is overwritten, in place, by what it was
    before: what the last module before the boundary returned, or what the first one behind it is given. If the
    boundary is a cut, the network answers as before; and if the network does, the boundary is a cut.
    """
    model = specimen.model()
    layers = list_layers(model)
    example = small_batch(model)
    order = order_of_first_calls(model)
    boundaries = []
    for i, (layer, following) in enumerate(pairwise(layers)):
        before = [name for name, _ in layer.modules if name in order]
        behind = [name for name, _ in following.modules if name in order]
        if before and behind:
            ends = [(max(before, key=order.get), "output"), (min(behind, key=order.get), "input")]
            boundaries.append((i, ends))
    known = {}
    expected = answer(model, example, {end: Keep(known, end) for _, ends in boundaries for end in ends})
    changed = set()
    for i, ends in boundaries:  # upwards: what lies before one boundary lies before the next one too
        kept = {parameter for above in layers[i + 1 :] for _, part in above.modules for parameter in part.parameters()}
        before = [part for layer in layers[: i + 1] for name, part in layer.modules if name in order]
        for parameter in (parameter for part in before for parameter in part.parameters()):
            if parameter not in changed and parameter not in kept:
                nn.init.normal_(parameter, std=0.25)
                changed.add(parameter)
        whole = any(
            torch.equal(answer(model, example, {end: Put(known[end])}), expected) for end in ends if end in known
        )
        assert whole == layers[i].split_point, f"behind {layers[i].name}"


def small_batch(model):
    """One dummy sample, of 96 pixels where the network takes images of any size: the law is the same, only faster."""
    batch = dummy_batch(model, n=1)
    if isinstance(batch, torch.Tensor) and batch.ndim == 4 and batch.shape[-1] > 96:
        part = batch[..., :96, :96].contiguous()
        with torch.no_grad(), contextlib.suppress(RuntimeError, AssertionError, ValueError):
            model(part)
            return part
    return batch


class Keep:
    """A hook that remembers the first tensor that passes."""

    def __init__(self, known, end):
        self.known, self.end = known, end

    def __call__(self, value):
        if value is not None and self.end not in self.known:
            self.known[self.end] = value.clone()


class Put:
    """A hook that overwrites the first tensor that passes."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __call__(self, value):
        if self.tensor is not None:
            value.copy_(self.tensor)
            self.tensor = None


def answer(model, example, hooks):
    """What the network returns first, with hooks on tensors: (module, "input" or "output") -> what to do with it."""
    with ExitStack() as stack:
        for (name, side), act in hooks.items():
            module = model.get_submodule(name)
            if side == "input":

                def before(_, args, kwargs, act=act):
                    act(first_float([args, kwargs]))

                stack.enter_context(module.register_forward_pre_hook(before, with_kwargs=True))
            else:

                def behind(_, args, output, act=act):
                    act(first_float(output))

                stack.enter_context(module.register_forward_hook(behind))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        torch.manual_seed(0)
        with torch.no_grad():
            return first_float(forward(model, example)).clone()
