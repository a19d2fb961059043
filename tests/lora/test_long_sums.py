"""A linear layer through which 1024 rows or more go: one function makes its product and adds the adapter's.

The oracle is torch's own derivatives of `b + x W' + s x A' B'`, with DoRA of `b + ratio * (x W' + s x A' B')`.
"""

import copy

import peft
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from hf_tl import LoraConfig, add_lora, set_adapter
from hf_tl.lora.functions import add_low_rank_to_product


ONE_FUNCTION = {False: "_AddLowRankToProductBackward", True: "_DoraOfProductBackward"}  # with DoRA or without
ROWS = 1100


class Attention(nn.Module):
    """Three layers that read one x, a transposed gradient, a residual sum: what the gradient of x has to get right."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(24, 24)
        self.q, self.k, self.v = nn.Linear(24, 16), nn.Linear(24, 16, bias=False), nn.Linear(24, 24)
        self.out = nn.Linear(24, 24)
        self.way = None

    def block(self, x):
        heads = lambda layer: layer(x).view(11, ROWS // 11, 4, -1).transpose(1, 2)  # noqa: E731
        y = F.scaled_dot_product_attention(heads(self.q), heads(self.k), heads(self.v))
        return x + self.out(y.transpose(1, 2).reshape(x.shape))

    def forward(self, x):
        x = self.first(x)
        return self.block(x) if self.way is None else checkpoint(self.block, x, use_reentrant=self.way)


def network(**config):
    """In float64, so that a sum in another order may differ by 1e-12 and no more."""
    torch.manual_seed(0)
    model = add_lora(Attention(), LoraConfig(r=4, target_modules=["first", "q", "k", "v", "out"], **config))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    return model.double()


def inputs():
    return torch.randn(11, ROWS // 11, 24, generator=torch.Generator().manual_seed(1)).double()


def gradients(model, x):
    model.zero_grad()
    y = model(x)
    (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {**found, "y": y.detach()} | ({"x": x.grad} if x.requires_grad else {})


def of_the_formula(model, x):
    def forward(x, layer):
        own, weight = layer.base_layer.bias, layer.base_layer.weight
        updates, ratio = 0, 1
        for name in layer._running():
            a, b = layer.lora_A[name], layer.lora_B[name]
            updates = updates + layer.scaling[name] * F.linear(F.linear(x, a.weight), b.weight, b.bias)
            ratio = layer.stretch(name) if layer.use_dora[name] else 1
        y = ratio * (F.linear(x, weight) + updates)
        return y if own is None else y + own

    twin = copy.deepcopy(model)
    for layer in twin.modules():
        if hasattr(layer, "base_layer"):
            layer.forward = lambda x, layer=layer: forward(x, layer)
    return gradients(twin, x.detach().clone().requires_grad_(x.requires_grad))


def assert_equal(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        assert torch.allclose(value, wanted[name], rtol=1e-9, atol=1e-10), name


@pytest.mark.parametrize("way", [None, False, True], ids=["kept", "checkpoint", "reentrant checkpoint"])
@pytest.mark.parametrize(
    "config",
    [{}, {"freeze_a": True}, {"lora_bias": True}, {"use_dora": True}, {"use_dora": True, "freeze_a": True}],
    ids=str,
)
@pytest.mark.parametrize("trained", [True, False], ids=["x trains", "x is data"])
def test_values_and_gradients_are_those_of_the_formula(config, way, trained):
    model, x = network(**config), inputs().requires_grad_(trained)
    wanted = of_the_formula(model, x)
    model.way = way
    assert_equal(gradients(model, x), wanted)


@pytest.mark.parametrize("use_dora", ONE_FUNCTION)
def test_one_function_stands_for_both_and_only_where_rows_are_many(use_dora):
    model, name = network(use_dora=use_dora), ONE_FUNCTION[use_dora]
    y = model.q(inputs())
    assert y.grad_fn.name() == name
    assert model.q(inputs()[:, :10]).grad_fn.name() != name
    with torch.no_grad():
        apart = (model.q(inputs()) - y).abs().max()
    assert apart == 0 or (use_dora and apart < 1e-12)


@pytest.mark.parametrize("use_dora", ONE_FUNCTION)
def test_outputs_are_peft_s_bit_for_bit_and_gradients_but_for_rounding(use_dora):
    torch.manual_seed(0)
    config = {"r": 8, "lora_alpha": 16, "target_modules": ["0", "2"], "use_dora": use_dora}
    plain = nn.Sequential(nn.Linear(96, 160), nn.GELU(), nn.Linear(160, 96))
    theirs = peft.get_peft_model(copy.deepcopy(plain), peft.LoraConfig(**config, init_lora_weights=False))
    ours = add_lora(plain, LoraConfig(**config))
    ours.load_state_dict({name.removeprefix("base_model.model."): p for name, p in theirs.state_dict().items()})
    x = torch.randn(ROWS, 96)
    assert ours[0](x).grad_fn.name() == ONE_FUNCTION[use_dora]
    found, wanted = ours(x), theirs(x)
    assert torch.equal(found, wanted) or (use_dora and (found - wanted).norm() <= 1e-6 * wanted.norm())
    found.square().sum().backward()
    wanted.square().sum().backward()
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            expected = theirs.get_parameter(f"base_model.model.{name}").grad
            assert (parameter.grad - expected).norm() <= 1e-6 * expected.norm(), name


def test_the_backward_pass_may_be_made_again():
    model, x = network(), inputs().requires_grad_(True)
    y = model(x)
    once = torch.autograd.grad(y.sum(), x, retain_graph=True)[0].clone()
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], once)


def test_an_output_may_be_changed_in_place():
    model, x = network(), inputs().requires_grad_(True)
    found, wanted = x.detach().clone().requires_grad_(True), x.detach().clone().requires_grad_(True)
    model.out(model.q(found).add_(1.0).relu_().repeat(1, 1, 2)[..., :24]).sum().backward()
    model.out((model.q(wanted) + 1.0).relu().repeat(1, 1, 2)[..., :24]).sum().backward()
    assert torch.equal(found.grad, wanted.grad)


def test_first_and_second_derivatives_by_differences():
    torch.manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, requires_grad=True)  # noqa: E731
    weight, bias = draw(4, 5).detach(), draw(4).detach()
    run = lambda x, a, b: add_low_rank_to_product(x, weight, bias, a=a, b=b, scale=0.7)  # noqa: E731
    assert torch.autograd.gradcheck(run, (draw(2, 3, 5), draw(3, 5), draw(4, 3)))
    assert torch.autograd.gradgradcheck(run, (draw(2, 3, 5), draw(3, 5), draw(4, 3)))


class Halved(nn.Linear):
    def forward(self, x):
        return super().forward(x) / 2


def half_forward(layer):
    plain = layer.forward
    layer.forward = lambda x: plain(x) / 2


CHANGES = {
    "forward hook": lambda layer: layer.register_forward_hook(lambda layer, x, y: y / 2),
    "forward pre-hook": lambda layer: layer.register_forward_pre_hook(lambda layer, x: (x[0] / 2,)),
    "backward hook": lambda layer: layer.register_full_backward_hook(lambda layer, x, y: (x[0] / 2,)),
    "backward pre-hook": lambda layer: layer.register_full_backward_pre_hook(lambda layer, y: (y[0] / 2,)),
    "another forward": half_forward,
    "another class": lambda layer: setattr(layer, "__class__", Halved),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_done_to_the_frozen_layer_is_seen(change):
    """Zero factors leave the frozen layer, and the change halves its output or its gradient."""
    model, x = network(), inputs()
    found, wanted = x.clone().requires_grad_(True), x.clone().requires_grad_(True)
    model.q.lora_B["default"].weight.data.zero_()
    CHANGES[change](model.q.base_layer)
    y, plain = model.q(found), F.linear(wanted, model.q.base_layer.weight, model.q.base_layer.bias)
    assert y.grad_fn.name() != ONE_FUNCTION[False]
    (y.sum() + (plain / 2).sum()).backward()
    assert torch.allclose(found.grad, wanted.grad, rtol=1e-5)


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_hooks_of_all_modules_are_called(kind):
    calls, model = [], network()
    register = getattr(nn.modules.module, f"register_module_{kind}_hook")
    handle = register(lambda module, *_: calls.append(module))
    try:
        model(inputs()).sum().backward()
    finally:
        handle.remove()
    assert model.q.base_layer in calls


def test_a_weight_or_bias_that_trains_gets_its_gradient():
    for name in ("weight", "bias"):
        model, x = network(), inputs()
        getattr(model.q.base_layer, name).requires_grad_(True)
        assert_equal(gradients(model, x), of_the_formula(model, x))


def test_two_adapters_are_both_added():
    model = network()
    add_lora(model, LoraConfig(r=2, target_modules=["q", "out"]), adapter_name="other")
    nn.init.normal_(model.q.lora_B["other"].weight)
    set_adapter(model, ["default", "other"])
    assert_equal(gradients(model, inputs()), of_the_formula(model, inputs()))


def test_dropout_autocast_and_other_types_go_the_other_way():
    x = inputs().requires_grad_(True)
    dropping = network(lora_dropout=0.5)
    assert dropping.train().q(x).grad_fn.name() != ONE_FUNCTION[False]
    assert not torch.equal(dropping.q(x), dropping.q(x))
    assert dropping.eval().q(x).grad_fn.name() == ONE_FUNCTION[False]
    assert network(use_dora=True, lora_bias=True).q(x).grad_fn.name() not in ONE_FUNCTION.values()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network().float().q(x.float()).dtype == torch.bfloat16
    wide = network()
    wide.q.base_layer.float()
    assert wide.q(x.float()).grad_fn.name() != ONE_FUNCTION[False]
