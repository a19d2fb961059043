"""Operations of plain, grouped, depthwise and attention networks against counts by hand, forward and backward."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.checkpoint import checkpoint

from hf_tl import count_flops
from hf_tl.analysis.flops import FlopCounter, run_once


N = 2


def convolutions(groups):
    """Two convolutions on 8x8: forward of each is 2 x positions x weights; the first has no gradient of its input."""
    first = nn.Conv2d(8, 16, 3, padding=1, groups=groups, bias=False)
    second = nn.Conv2d(16, 16, 3, padding=1, groups=groups, bias=False)
    forward = [2 * N * 64 * layer.weight.numel() for layer in (first, second)]
    return (
        nn.Sequential(first, nn.ReLU(), second),
        (N, 8, 8, 8),
        sum(forward),
        sum(forward) + forward[1] + sum(forward),
    )


def depthwise():
    layer, pointwise = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 4, 1)
    forward = 2 * N * 64 * (16 * 9) + 2 * N * 64 * (16 * 4)
    return nn.Sequential(pointwise_in(), layer, pointwise), (N, 3, 8, 8), forward + 2 * N * 64 * 48, None


def pointwise_in():
    return nn.Conv2d(3, 16, 1)


def attention():
    """4 products of tokens x width x width, and two of tokens x tokens x width."""
    width, tokens = 16, 6
    model = nn.MultiheadAttention(width, 2, batch_first=True, bias=False)
    projections = 2 * N * tokens * width * width * 4
    scores = 2 * 2 * N * tokens * tokens * width
    return model, (N, tokens, width), projections, scores


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_convolutions(groups):
    model, shape, forward, both = convolutions(groups)
    x = torch.randn(shape)
    assert count_flops(model, x) == forward
    assert count_flops(model, x, backward=True) == both


def test_depthwise_backward_is_twice_forward_less_the_first_input():
    model, shape, forward, _ = depthwise()
    x = torch.randn(shape)
    assert count_flops(model, x) == forward
    assert count_flops(model, x, backward=True) == 3 * forward - 2 * N * 64 * 48


def test_transposed_convolution():
    model = nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, bias=False)
    x = torch.randn(N, 4, 5, 5, requires_grad=True)
    forward = 2 * N * 25 * model.weight.numel()
    with FlopCounter() as counter:
        model(x).sum().backward()
    assert counter.total == 3 * forward


def test_attention():
    model, shape, projections, scores = attention()
    x = torch.randn(shape, requires_grad=True)
    with FlopCounter() as counter:
        output = model(x, x, x, need_weights=False)[0]
    assert counter.total == projections + scores
    with FlopCounter() as counter:
        output.sum().backward()
    recomputed = scores // 2  # a fused kernel computes the scores again
    assert counter.total - 2 * (projections + scores) in (0, recomputed)


class Twice(nn.Module):
    """Runs a layer again on what it gave, and a third time under a checkpoint."""

    def __init__(self, reentrant):
        super().__init__()
        self.layer, self.reentrant = nn.Linear(8, 8), reentrant

    def forward(self, x):
        x = self.layer(self.layer(x).relu()).relu()
        return checkpoint(self.layer, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (convolutions(2)[0], (N, 8, 8, 8)),
        (nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0), (N, 6, 16)),
        (Twice(reentrant=True), (N, 8)),
        (Twice(reentrant=False), (N, 8)),
    ],
    ids=["convolutions", "attention", "checkpoint", "checkpoint without re-entry"],
)
def test_gradients_are_counted_whenever_they_are_computed(model, shape):
    x = torch.randn(shape)
    with FlopCounter() as whole:
        model(x).sum().backward()
    with FlopCounter() as counter:
        output = model(x)
    counter.count_gradients(output)
    counter.count_gradients([output, {"again": output * 2}])  # the same nodes
    before = counter.total
    torch.ones(8, 8) @ torch.ones(8, 8)  # between the two
    assert counter.total == before
    output.sum().backward()
    assert counter.total == whole.total > before
    assert not _get_current_dispatch_mode_stack()


def test_a_frozen_prefix_has_no_backward_pass():
    model, shape, forward, _ = convolutions(1)
    model[0].requires_grad_(False)
    first = 2 * N * 64 * model[0].weight.numel()
    assert count_flops(model, torch.randn(shape), backward=True) == forward + (forward - first)


def test_inference_mode_counts_the_same():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    x = torch.randn(N, 3, 8)
    with torch.inference_mode(), FlopCounter() as counter:
        model(x)
    assert counter.total == count_flops(model, x) == 2 * N * 3 * (8 * 16 + 16 * 4)


def test_counting_leaves_no_trace():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.random.get_rng_state()
    count_flops(model, torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), backward=True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(generator, torch.random.get_rng_state())


def test_nothing_to_train_is_said():
    with pytest.raises(ValueError, match="no parameter of Linear requires a gradient"):
        run_once(nn.Linear(2, 2).requires_grad_(False), torch.zeros(1, 2), backward=True)
