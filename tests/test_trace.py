"""What one forward pass did: where each layer's value is read, and that looking leaves no trace."""

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from hf_tl.trace import first_float, trace


def only(model, shape=(2, 3, 8, 8)):
    """The one layer call of a network with one convolution."""
    (layer,) = trace(model, torch.randn(shape)).layers
    return layer


def test_norm_and_activation_modules_are_followed():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    layer = only(model)
    assert (layer.before.module, layer.after.module, layer.after.steps) == ("0", "2", ())
    assert layer.chain == ("batch_norm", "relu")
    assert layer.shape == (2, 4, 6, 6)


def test_in_place_activation_is_followed_although_it_returns_the_same_tensor():
    layer = only(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)))
    assert layer.after.module == "1"


class Functional(nn.Module):
    def __init__(self, tail):
        super().__init__()
        self.conv, self.tail = nn.Conv2d(3, 4, 3), tail

    def forward(self, x):
        return self.tail(self.conv(x))


@pytest.mark.parametrize("function", [F.relu, F.relu_, torch.relu, torch.Tensor.relu_, F.gelu, torch.sigmoid])
def test_functional_activation_that_a_module_returns_is_read_there(function):
    model = nn.Sequential(Functional(function))
    layer = only(model)
    assert (layer.after.module, layer.after.steps) == ("0", ())
    assert layer.chain == (function.__name__.rstrip("_"),)


def test_functional_activation_that_no_module_returns_is_applied_again():
    model = Functional(lambda x: F.leaky_relu_(x, 0.3).flatten(1) * 2)
    layer = only(model)
    assert layer.after.module == "conv"
    value = torch.tensor([-1.0, 2.0])
    assert torch.allclose(layer.after.finish(value), torch.tensor([-0.3, 2.0]))
    assert torch.equal(value, torch.tensor([-1.0, 2.0]))  # although the network's function works in place


def test_functional_norm_and_activation_are_applied_in_order():
    model = Functional(lambda x: F.relu(F.layer_norm(x, x.shape[1:])).sum(dim=1))
    layer = only(model)
    value = torch.randn(2, 4, 6, 6)
    assert torch.allclose(layer.after.finish(value), F.relu(F.layer_norm(value, value.shape[1:])))


class Residual(nn.Module):
    def __init__(self, add):
        super().__init__()
        self.conv, self.norm, self.act, self.add = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), add

    def forward(self, x):
        return self.act(self.add(self.norm(self.conv(x)), x))


@pytest.mark.parametrize("add", [torch.add, torch.Tensor.add_])
def test_a_sum_ends_the_chain_in_place_or_not(add):
    layer = only(Residual(add))
    assert (layer.after.module, layer.chain) == ("norm", ("batch_norm",))


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.relu = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.ReLU()

    def forward(self, x):
        return self.relu(self.second(self.relu(self.first(x))))


def test_a_shared_activation_is_told_apart_by_its_calls():
    first, second = trace(Shared(), torch.randn(2, 3, 4, 4)).layers
    assert (first.after.module, first.after.call) == ("relu", 0)
    assert (second.after.module, second.after.call) == ("relu", 1)


def test_a_shared_layer_gives_one_call_each():
    layer = nn.Linear(4, 4)
    calls = trace(nn.Sequential(layer, nn.Tanh(), layer), torch.randn(2, 4)).layers
    assert [(call.name, call.call) for call in calls] == [("0", 0), ("0", 1)]


def test_composite_activations_and_norms_are_known_by_their_class():
    from transformers.activations import NewGELUActivation, QuickGELUActivation
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    model = nn.Sequential(
        nn.Linear(4, 4), LlamaRMSNorm(4), NewGELUActivation(), nn.Linear(4, 4), QuickGELUActivation()
    )
    first, second = trace(model, torch.randn(2, 4)).layers
    assert first.chain == ("LlamaRMSNorm", "NewGELUActivation")
    assert first.after.module == "2"
    assert second.chain == ("QuickGELUActivation",)


def test_softmax_is_no_activation_of_its_layer():
    (layer,) = trace(nn.Sequential(nn.Linear(4, 4), nn.Softmax(dim=-1)), torch.randn(2, 4)).layers
    assert layer.chain == ()


def test_dropout_and_identity_do_not_break_a_chain():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Dropout(0.5), nn.Identity(), nn.BatchNorm2d(4), nn.Dropout(), nn.ReLU()
    )
    assert only(model).chain == ("batch_norm", "relu")


def test_gpt2_conv1d_is_fully_connected():
    from transformers import GPT2Config, GPT2Model

    model = GPT2Model(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2))
    names = [layer.name for layer in trace(model, {"input_ids": torch.ones(2, 5, dtype=torch.long)}).layers]
    assert names == ["h.0.attn.c_attn", "h.0.attn.c_proj", "h.0.mlp.c_fc", "h.0.mlp.c_proj"]


def test_tracing_changes_nothing():
    model = timm.create_model("test_resnet", num_classes=3).train()
    model.layer1.eval()
    flags = {name: module.training for name, module in model.named_modules()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before = torch.get_rng_state()
    trace(model, torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(before, torch.get_rng_state())
    assert flags == {name: module.training for name, module in model.named_modules()}
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_hooks_and_flags_come_back_when_the_network_fails():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(1, 1)).train()
    with pytest.raises(RuntimeError):
        trace(model, torch.randn(2, 3, 8, 8))
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_first_float_looks_into_nested_outputs():
    wanted = torch.zeros(1)
    assert first_float({"ids": torch.zeros(1, dtype=torch.long), "hidden": (None, [wanted])}) is wanted
    assert first_float("text") is None
