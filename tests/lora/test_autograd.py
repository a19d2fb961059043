"""The low-rank part of a linear layer, and its backward pass.

The oracle is torch's own derivatives of `c + ratio * (x W' + s drop(x) A' B')`, in float64.
"""

import copy

import peft
import pytest
import torch
from closeness import ulps
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from hf_tl import LoraConfig, add_lora, set_adapter
from hf_tl.lora.linear import add_low_rank


class Attention(nn.Module):
    """Three layers that read one x, a transposed gradient, a residual sum: what the gradient of x has to get right."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(24, 24)
        self.q, self.k, self.v = nn.Linear(24, 16), nn.Linear(24, 16, bias=False), nn.Linear(24, 24)
        self.out = nn.Linear(24, 24)
        self.reentrant = None

    def block(self, x):
        heads = lambda layer: layer(x).unflatten(-1, (4, -1)).transpose(1, 2)  # noqa: E731
        y = F.scaled_dot_product_attention(heads(self.q), heads(self.k), heads(self.v))
        return x + self.out(y.transpose(1, 2).reshape(x.shape))

    def forward(self, x):
        x = self.first(x)
        return self.block(x) if self.reentrant is None else checkpoint(self.block, x, use_reentrant=self.reentrant)


def network(**config):
    """In float64, so that a sum in another order may differ by 1e-12 and no more."""
    torch.manual_seed(0)
    model = add_lora(Attention(), LoraConfig(r=4, target_modules=["first", "q", "k", "v", "out"], **config))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    return model.double()


def inputs():
    return torch.randn(3, 10, 24, generator=torch.Generator().manual_seed(1)).double()


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
        for name in layer.running:
            a, b = layer.lora_A[name], layer.lora_B[name]
            updates = updates + layer.scaling[name] * F.linear(F.linear(x, a.weight), b.weight, b.bias)
            ratio = layer.dora_ratio(name) if layer.use_dora[name] else 1
        y = ratio * (F.linear(x, weight) + updates)
        return y if own is None else y + own

    twin = copy.deepcopy(model)
    for layer in [twin.first, twin.q, twin.k, twin.v, twin.out]:
        layer.forward = lambda x, layer=layer: forward(x, layer)
    return gradients(twin, x.detach().clone().requires_grad_(x.requires_grad))


def assert_equal(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        assert torch.allclose(value, wanted[name], rtol=1e-9, atol=1e-10), name


@pytest.mark.parametrize(
    "reentrant",
    [
        pytest.param(None, id="kept"),
        pytest.param(False, id="checkpoint"),
        pytest.param(True, id="reentrant checkpoint", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    "config",
    [{}, {"freeze_a": True}, {"lora_bias": True}, {"use_dora": True, "lora_bias": True}, {"use_dora": True}],
    ids=str,
)
@pytest.mark.parametrize("trained", [True, False], ids=["x trains", "x is data"])
def test_values_and_gradients_are_those_of_the_formula(config, reentrant, trained):
    model, x = network(**config), inputs().requires_grad_(trained)
    wanted = of_the_formula(model, x)
    model.reentrant = reentrant
    assert_equal(gradients(model, x), wanted)


def test_two_adapters_are_both_added():
    model = network()
    add_lora(model, LoraConfig(r=2, target_modules=["q", "out"]), adapter_name="other")
    nn.init.normal_(model.q.lora_B["other"].weight)
    set_adapter(model, ["default", "other"])
    assert_equal(gradients(model, inputs()), of_the_formula(model, inputs()))


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_frozen_parameter_that_trains_after_all_gets_its_gradient(name):
    model, x = network(), inputs()
    getattr(model.q.base_layer, name).requires_grad_(True)
    assert_equal(gradients(model, x), of_the_formula(model, x))


@pytest.mark.parametrize("config", [{}, {"use_dora": True}, {"lora_dropout": 0.3}], ids=str)
def test_outputs_and_gradients_are_peft_s_but_for_rounding(config):
    torch.manual_seed(0)
    config = {"r": 8, "lora_alpha": 16, "target_modules": ["0", "2"], **config}
    plain = nn.Sequential(nn.Linear(96, 160), nn.GELU(), nn.Linear(160, 96))
    theirs = peft.get_peft_model(copy.deepcopy(plain), peft.LoraConfig(**config, init_lora_weights=False))
    ours = add_lora(plain, LoraConfig(**config))
    ours.load_state_dict({name.removeprefix("base_model.model."): p for name, p in theirs.state_dict().items()})
    x, found = torch.randn(1100, 96), []
    for model in (ours.train(), theirs.train()):
        torch.manual_seed(3)
        y = model(x)
        y.square().sum().backward()
        found.append(y)
    assert ulps(*found) < 50
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            assert ulps(parameter.grad, theirs.get_parameter(f"base_model.model.{name}").grad) < 500, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_have_the_dtype_of_what_they_are_of(dtype, dropout):
    torch.manual_seed(0)
    x, a, b = torch.randn(3, 5, 8), torch.randn(2, 8), torch.randn(6, 2)
    grads = []
    for own in (True, False):
        leaves = [t.to(dtype if i == 0 else torch.float32).requires_grad_(True) for i, t in enumerate((x, a, b))]
        torch.manual_seed(4)
        y = torch.zeros(3, 5, 6, dtype=dtype)
        if own:
            out = add_low_rank(y, leaves[0], a=leaves[1], b=leaves[2], scale=1.7, dropout=dropout)
        else:
            low = nn.functional.dropout(leaves[0].float(), dropout) @ leaves[1].t() @ leaves[2].t()
            out = (y + 1.7 * low).to(dtype)
        out.backward(torch.ones_like(out))
        grads.append([leaf.grad for leaf in leaves])
    for ours, torch_s in zip(*grads, strict=True):
        assert ours.dtype == torch_s.dtype
        assert torch.allclose(ours, torch_s, rtol=1e-5 if dtype == torch.float32 else 2e-2, atol=1e-5)


@pytest.mark.parametrize("config", [{}, {"freeze_a": True}, {"use_dora": True}, {"lora_dropout": 0.5}], ids=str)
def test_without_gradients_the_values_are_the_same(config):
    model, x = network(**config), inputs()
    torch.manual_seed(1)
    expected = model(x)
    torch.manual_seed(1)
    with torch.no_grad():
        assert torch.equal(model(x), expected)


def test_the_backward_pass_may_be_made_again():
    model, x = network(), inputs().requires_grad_(True)
    y = model(x)
    once = torch.autograd.grad(y.sum(), x, retain_graph=True)[0].clone()
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], once)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [{}, {"use_dora": True}, {"lora_bias": True}, {"lora_dropout": 0.5}], ids=str)
def test_a_network_may_write_into_a_layers_output(config, dtype):
    """As Falcon does, and every ReLU that works in place."""

    def derived(change):
        model, x = network(**config).to(dtype), inputs().to(dtype).requires_grad_(True)
        torch.manual_seed(1)
        change(model.q(x)).square().sum().backward()
        return [x.grad, *(p.grad for p in model.q.parameters() if p.requires_grad)]

    in_place = derived(lambda y: F.relu(y.add_(1.0), inplace=True))
    for found, wanted in zip(in_place, derived(lambda y: F.relu(y + 1.0)), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("config", [{}, {"use_dora": True}], ids=str)
def test_hooks_on_the_frozen_layer_see_its_own_output(config):
    model, x, seen = network(**config), inputs(), []
    model.q.base_layer.register_forward_hook(lambda module, args, output: seen.append(output))
    model(x).sum().backward()
    assert torch.equal(seen[0], model.q.base_layer(model.first(x)))


CHANGES = {
    "forward hook": lambda layer: layer.register_forward_hook(lambda layer, x, y: y / 2),
    "forward pre-hook": lambda layer: layer.register_forward_pre_hook(lambda layer, x: (x[0] / 2,)),
    "backward hook": lambda layer: layer.register_full_backward_hook(lambda layer, x, y: (x[0] / 2,)),
    "backward pre-hook": lambda layer: layer.register_full_backward_pre_hook(lambda layer, y: (y[0] / 2,)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_done_to_the_frozen_layer_is_seen(change):
    """Zero factors leave the frozen layer, and the change halves its output or its gradient."""
    model, x = network(), inputs()
    found, wanted = x.clone().requires_grad_(True), x.clone().requires_grad_(True)
    model.q.lora_B["default"].weight.data.zero_()
    CHANGES[change](model.q.base_layer)
    y, plain = model.q(found), F.linear(wanted, model.q.base_layer.weight, model.q.base_layer.bias)
    (y.sum() + (plain / 2).sum()).backward()
    assert torch.allclose(found.grad, wanted.grad, rtol=1e-5)


def kept(run, *, without=()):
    """The largest tensors that are kept for the backward pass, by storage."""
    found = {}

    def pack(tensor):
        if not any(tensor is other for other in without):
            found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return list(found.values())


@pytest.mark.parametrize("autocast", [False, True])
def test_layers_that_read_one_input_keep_it_once(autocast):
    class Siblings(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = nn.Linear(64, 8), nn.Linear(64, 8), nn.Linear(64, 8)

        def forward(self, x):
            return self.q(x) + self.k(x) + self.v(x)

    model = add_lora(Siblings(), LoraConfig(r=2, target_modules=["q", "k", "v"]))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = kept(lambda: model(torch.randn(100, 64)))
    assert len([tensor for tensor in found if tensor.numel() == 100 * 64]) == 1


def test_dropout_keeps_a_byte_for_each_element():
    model = add_lora(nn.Sequential(nn.Linear(64, 8)), LoraConfig(r=2, target_modules=["0"], lora_dropout=0.1))
    found = kept(lambda: model.train()(torch.randn(100, 64)))
    assert sorted(t.element_size() for t in found if t.numel() == 100 * 64) == [1, 4]  # the mask and x itself


def test_frozen_a_keeps_only_the_narrow_product():
    sizes = {}
    for freeze in (False, True):
        model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
        add_lora(model, LoraConfig(r=2, target_modules=["0", "1"], freeze_a=freeze))
        sizes[freeze] = max(tensor.numel() for tensor in kept(lambda model=model: model(torch.randn(100, 64))))
    assert sizes == {False: 100 * 64, True: 64 * 64}  # with A frozen, nothing is larger than the frozen weight


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_first_and_second_derivatives_by_differences(dropout):
    torch.manual_seed(0)
    leaves = [
        torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((7, 4), (7, 5), (3, 5), (4, 3))
    ]

    def run(y, x, a, b):
        torch.manual_seed(1)
        return add_low_rank(y, x, a=a, b=b, scale=0.7, dropout=dropout)

    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


@pytest.mark.parametrize("config", [{"use_dora": True}, {"freeze_a": True}], ids=str)
def test_a_second_derivative_that_is_not_to_be_had_is_refused(config):
    """What the forward pass made is a constant to the second derivative, which would be wrong without a word."""
    model, x = network(**config), inputs().requires_grad_(True)

    def derive_twice():
        (grad,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        grad.square().sum().backward()

    with pytest.raises(NotImplementedError, match="second derivative of LoRA"):
        derive_twice()


@pytest.mark.parametrize("dora", [False, True])
def test_torch_func_sees_what_autograd_sees(dora):
    """Gradients a sample by vmap over grad, a product with the Jacobian, and an ensemble, on plain layers' terms."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    settings = LoraConfig(r=2, target_modules=["0"], init_lora_weights="random", modules_to_save=(), use_dora=dora)
    add_lora(net, settings)
    x, v = torch.randn(5, 3), torch.randn(5, 3)
    trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
    rest = {name: p.detach() for name, p in net.named_parameters() if name not in trained}

    def loss(parameters, sample):
        return torch.func.functional_call(net, {**rest, **parameters}, (sample,)).square().sum()

    values = {name: p.detach() for name, p in trained.items()}
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(values, x)
    for i, sample in enumerate(x):
        grads = torch.autograd.grad(net(sample).square().sum(), list(trained.values()))
        for name, grad in zip(trained, grads, strict=True):
            torch.testing.assert_close(each[name][i], grad)
    y, along = torch.func.jvp(net, (x,), (v,))
    torch.testing.assert_close(y, net(x))
    jacobian = torch.autograd.functional.jacobian(net, x)
    torch.testing.assert_close(along, torch.einsum("abij,ij->ab", jacobian, v))
    with torch.autograd.forward_ad.dual_level():
        dual = net(torch.autograd.forward_ad.make_dual(x, v))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, along)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("shape", [(3,), (0, 3), (2, 0, 3), (1, 2, 3)])
def test_any_number_of_axes(shape, dora, dropout):
    net = nn.Sequential(nn.Linear(3, 4))
    settings = LoraConfig(r=2, target_modules=["0"], modules_to_save=(), use_dora=dora, lora_dropout=dropout)
    add_lora(net, settings)
    x = torch.randn(shape, requires_grad=True)
    net(x).sum().backward()
    assert x.grad.shape == shape
    assert net(x).shape == (*shape[:-1], 4)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch.jit
def test_a_traced_network_can_be_saved(tmp_path):
    net, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), torch.randn(2, 3)
    add_lora(net, LoraConfig(r=2, target_modules=["0"], init_lora_weights="random", modules_to_save=()))
    torch.jit.trace(net, (x,), check_trace=False).save(tmp_path / "net.pt")
    torch.testing.assert_close(torch.jit.load(tmp_path / "net.pt")(x), net(x))
