"""A call that is refused changes nothing: tensors, types, modes, what trains, hooks and outputs are what they were."""

import copy
import re
import threading

import pytest
import torch
from parity_rows import NETWORKS
from torch import nn

from hf_tl import InputError, LoraConfig, add_lora, combine_adapters, delete_adapter, merge_adapter
from hf_tl.trace import first_float, forward


class TwoAttentions(nn.Module):
    """The second cannot be adapted: its keys have a width of their own."""

    def __init__(self):
        super().__init__()
        self.first = nn.MultiheadAttention(16, 2, batch_first=True)
        self.second = nn.MultiheadAttention(16, 2, kdim=8, batch_first=True)

    def forward(self, x):
        x, _ = self.first(x, x, x)
        return self.second(x, x[..., :8], x)[0]


def network(name):
    if name == "two-attentions":
        return TwoAttentions(), torch.randn(2, 5, 16)
    model, batch = NETWORKS[name]()
    model = copy.deepcopy(model)
    if name == "mlp-locked":
        model.head.lock = threading.Lock()
    return model, batch


NETWORKS = {**NETWORKS, "mlp-locked": NETWORKS["mlp"]}
ATTENTION = {"target_modules": ["attention", "head"], "modules_to_save": ()}
FIRST = [  # network, config, arguments of add_lora, message
    ("attention", {**ATTENTION, "lora_dropout": 0.1}, {}, "lora_dropout does not act inside nn.MultiheadAttention"),
    ("attention", {**ATTENTION, "init_lora_weights": "orthogonal", "r": 3}, {}, "must be even; got 3"),
    ("two-attentions", {"target_modules": ["first", "second"]}, {}, "queries, keys and values of one width"),
    ("mlp", {"target_modules": ["lin0", "norm"]}, {}, "chooses 'norm', a LayerNorm"),
    ("mlp", {"target_modules": ["lin0"], "layers": "..5o%"}, {"example": torch.zeros(1, 10)}, r"\n  \.\.5o%\n  \^"),
    ("mlp", {"target_modules": ["lin0"]}, {"adapter_name": "a.b"}, r"word without dots and slashes, got 'a.b'"),
    (
        "norm",
        {"target_modules": ["conv0"], "init_lora_weights": "orthogonal", "modules_to_save": ["fc"]},
        {},
        "linear",
    ),
    ("conv-groups", {"target_modules": ["conv0", "conv1"], "r": 3}, {}, "needs a rank divisible by them, got 3"),
    ("mlp-locked", {"target_modules": ["lin0"], "modules_to_save": ["head"]}, {}, "cannot pickle"),
]


def state(model, batch):
    """All that a refusal could have left behind."""
    modules = dict(model.named_modules())
    return {
        "tensors": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "types": {name: type(module) for name, module in modules.items()},
        "modes": {name: module.training for name, module in modules.items()},
        "trains": {name: p.requires_grad for name, p in model.named_parameters()},
        "momentum": {n: m.momentum for n, m in modules.items() if isinstance(m, nn.modules.batchnorm._NormBase)},
        "hooks": {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in modules.items()},
        "loading": len(model._load_state_dict_pre_hooks),
        "attributes": sorted(model.__dict__),
        "output": first_float(forward(model, batch)),
    }


def assert_untouched(model, batch, before):
    after = state(model, batch)
    for what in before:
        if what == "tensors":
            assert list(before[what]) == list(after[what])
            assert all(torch.equal(value, after[what][name]) for name, value in before[what].items())
        elif what == "output":
            assert torch.equal(before[what], after[what])
        else:
            assert before[what] == after[what], what


@pytest.mark.parametrize("statistics", ["save", "freeze"])
@pytest.mark.parametrize(("name", "config", "arguments", "message"), FIRST, ids=range(len(FIRST)))
def test_a_refused_first_adapter(name, config, arguments, message, statistics):
    model, batch = network(name)
    model.eval()
    model.train() if name == "mlp" else None
    before = state(model, batch)
    with pytest.raises((InputError, TypeError), match=message):
        add_lora(model, LoraConfig(**config), running_statistics=statistics, **arguments)
    assert_untouched(model, batch, before)


@pytest.mark.parametrize(("name", "config", "arguments", "message"), FIRST[:2] + FIRST[3:8], ids=lambda value: None)
def test_a_refused_second_adapter(name, config, arguments, message):
    """Layers that carry an adapter already lose nothing and keep nothing."""
    model, batch = network(name)
    first = {"attention": ["attention", "head"], "norm": ["conv0"], "conv-groups": ["conv0"]}.get(name, ["lin0"])
    add_lora(model, LoraConfig(r=4, target_modules=first, modules_to_save=()), adapter_name="first")
    model.eval()
    before = state(model, batch)
    with pytest.raises(InputError, match=message):
        add_lora(model, LoraConfig(**config), **{"adapter_name": "second", **arguments})
    assert_untouched(model, batch, before)


def test_no_adapter_joins_merged_ones():
    model, batch = network("attention")
    add_lora(model, LoraConfig(r=4, target_modules=["attention"], init_lora_weights=False))
    merge_adapter(model.eval())
    before = state(model, batch)
    with pytest.raises(InputError, match="merged into the weights; call unmerge_adapter before adding another"):
        add_lora(model, LoraConfig(r=4, target_modules=["attention"]), adapter_name="second")
    with pytest.raises(InputError, match="merged into the weights; call unmerge_adapter before combining them"):
        combine_adapters(model, ["default"], weights=[1.0], adapter_name="second")
    assert_untouched(model, batch, before)


def test_what_trains_in_full_with_one_adapter_is_not_adapted_by_another():
    model, batch = network("mlp")
    add_lora(model, LoraConfig(r=2, target_modules=["lin0", "head"], modules_to_save=()), adapter_name="a")
    before = state(model.eval(), batch)
    with pytest.raises(InputError, match="'head' is to train in full, but another adapter adapts 'head'"):
        add_lora(model, LoraConfig(r=2, target_modules=["lin1"], modules_to_save=["head"]), adapter_name="b")
    assert_untouched(model, batch, before)
    model, batch = network("mlp")
    add_lora(model, LoraConfig(r=2, target_modules=["lin0"], modules_to_save=["head"]), adapter_name="a")
    before = state(model.eval(), batch)
    with pytest.raises(InputError, match="'head' is to be adapted, but trains in full with another adapter"):
        add_lora(model, LoraConfig(r=2, target_modules=["head"], modules_to_save=()), adapter_name="b")
    assert_untouched(model, batch, before)


def test_a_refused_combination():
    model, batch = network("mlp")
    add_lora(model, LoraConfig(r=4, target_modules=["lin0", "lin1"]), adapter_name="a")
    add_lora(model, LoraConfig(r=4, rank_pattern={"lin1": 2}, target_modules=["lin0", "lin1"]), adapter_name="b")
    before = state(model.eval(), batch)
    with pytest.raises(InputError, match=re.escape("'linear' needs adapters of one rank, got [2, 4]")):
        combine_adapters(model, ["a", "b"], weights=[0.5, 0.5], adapter_name="both", combination_type="linear")
    with pytest.raises(InputError, match=r"word without dots and slashes, got 'a.b'"):
        combine_adapters(model, ["a", "b"], weights=[0.5, 0.5], adapter_name="a.b")
    assert_untouched(model, batch, before)


def test_frozen_statistics_thaw_with_the_adapter_gone():
    model, batch = network("norm")
    before = state(model.eval(), batch)
    add_lora(model, LoraConfig(r=4, target_modules=["conv0"]), running_statistics="freeze")
    assert model.bn0.momentum == 0
    delete_adapter(model)
    assert {n: m.momentum for n, m in model.named_modules() if n == "bn0"} == before["momentum"]
