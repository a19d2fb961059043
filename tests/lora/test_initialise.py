"""Where adapters start: what changes nothing, what says that it does, and what each init promises."""

import copy
import math
import warnings

import peft
import pytest
import torch
from parity_rows import exported
from torch import nn

from hf_tl import InputError, LoraConfig, add_lora, delete_adapter, initialize_eva, merge_adapter
from hf_tl.lora.adapted import adapter_state_dict, record_of
from hf_tl.lora.config import INITS


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))


def factors(model, name="0"):
    layer = model.get_submodule(name)
    return layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("init", [*INITS, "pissa_niter_4"])
def test_a_new_adapter_changes_nothing_unless_it_says_so(init, dora):
    model, x = network(), torch.randn(6, 24)
    expected = model(x)
    add_lora(model, LoraConfig(r=4, target_modules=["0", "2"], init_lora_weights=init, use_dora=dora))
    changes = init == "random"
    assert torch.allclose(model(x), expected, atol=1e-5) != changes
    if changes:
        assert "changes the output" in INITS[init]
    assert torch.equal(delete_adapter(model)(x), expected)


def test_distributions():
    for init, zero, spread in (
        ("kaiming", 1, 1 / math.sqrt(3 * 2000)),
        ("gaussian", 1, 1 / 8),
        ("gaussian_b", 0, 1 / 8),
    ):
        model = nn.Sequential(nn.Linear(2000, 2000))
        add_lora(model, LoraConfig(r=8, target_modules=["0"], init_lora_weights=init))
        drawn = factors(model)
        assert not drawn[zero].any(), init
        assert drawn[1 - zero].std().item() == pytest.approx(spread, rel=0.02), init
    model = nn.Sequential(nn.Embedding(2000, 500))
    add_lora(model, LoraConfig(r=8, target_modules=["0"]))
    tensors = adapter_state_dict(model)
    assert not tensors["base_model.model.0.lora_embedding_A"].any()
    assert tensors["base_model.model.0.lora_embedding_B"].std().item() == pytest.approx(1, rel=0.05)


def test_orthogonal_factors_share_no_direction_of_the_rank():
    model = network()
    add_lora(model, LoraConfig(r=8, target_modules=["0"], init_lora_weights="orthogonal"))
    a, b = factors(model)
    assert (b @ a).abs().max() < 1e-6 < a.abs().max()  # so B A is zero, yet neither factor is


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("conv1d", [False, True])
def test_the_part_of_the_weight_is_peft_s(init, conv1d):
    """PEFT moves the part out of the weight; here the weight stays, with the same effect of every step."""
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    model = nn.Sequential(Conv1D(32, 24) if conv1d else nn.Linear(24, 32))
    config = {"r": 4, "lora_alpha": 4, "target_modules": ["0"]}
    if init == "olora" and conv1d:
        return  # PEFT decomposes the transposed weight there, and fails
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(
            copy.deepcopy(model), peft.LoraConfig(init_lora_weights=init, fan_in_fan_out=conv1d, **config)
        )
    ours = add_lora(copy.deepcopy(model), LoraConfig(init_lora_weights=init, **config))
    tensors = peft.get_peft_model_state_dict(theirs)
    product = tensors["base_model.model.0.lora_B.weight"] @ tensors["base_model.model.0.lora_A.weight"]
    a, b = factors(ours)
    assert torch.allclose(b @ a, product, atol=1e-5)
    with torch.no_grad():
        a.copy_(tensors["base_model.model.0.lora_A.weight"])
        b.copy_(tensors["base_model.model.0.lora_B.weight"])
    x = torch.randn(6, 24)
    for _ in range(3):
        values = []
        for one in (theirs, ours):
            parameters = [p for p in one.parameters() if p.requires_grad]
            value = one(x)
            value.square().sum().backward()
            values.append(value.detach())
            with torch.no_grad():
                for parameter in parameters:
                    parameter -= 1e-3 * parameter.grad
                    parameter.grad = None
        assert torch.allclose(*values, atol=1e-5)
    assert torch.equal(ours[0].base_layer.weight, model[0].weight)

    config, tensors = exported(ours)
    assert (config.r, config.lora_alpha, config.init_lora_weights) == (8, 8, True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = peft.get_peft_model(copy.deepcopy(model), config)
        peft.set_peft_model_state_dict(again, tensors)
    assert torch.allclose(again(x), ours(x), atol=1e-5)
    expected = ours(x)
    merge_adapter(ours)
    assert torch.allclose(ours(x), expected, atol=1e-5)


def test_pissa_takes_the_largest_directions():
    model = network()
    add_lora(model, LoraConfig(r=4, lora_alpha=16, target_modules=["2"], init_lora_weights="pissa"))
    a, b = factors(model, "2")
    u, s, vh = torch.linalg.svd(model[2].base_layer.weight)
    assert torch.allclose(4 * b @ a, u[:, :4] * s[:4] @ vh[:4], atol=1e-5)


def test_eva_finds_the_directions_of_the_inputs():
    torch.manual_seed(0)
    model = network()
    basis = torch.linalg.qr(torch.randn(24, 24))[0]
    scales = torch.cat([torch.tensor([9.0, 7.0, 5.0, 3.0]), torch.full((20,), 0.05)])
    data = torch.randn(400, 24) * scales @ basis.t()
    batches = data.split(50)
    expected = model(data)
    add_lora(model, LoraConfig(r=4, target_modules=["0", "2"], init_lora_weights="eva"))
    assert initialize_eva(model, batches) == 2
    a, b = factors(model)
    leading = torch.linalg.svd(data, full_matrices=False)[2][:4]
    overlap = (a @ leading.t()).abs()
    assert torch.allclose(overlap, torch.eye(4), atol=1e-2)
    assert not b.any()
    assert torch.equal(model(data), expected)
    hidden = torch.relu(model[0](data)).detach()
    second = factors(model, "2")[0]
    best = torch.linalg.svd(hidden, full_matrices=False)[2][:4]
    assert torch.allclose((second @ best.t()).abs(), torch.eye(4), atol=5e-2)
    assert all(not layer.base_layer._forward_pre_hooks for layer in record_of(model).layers.values())


def test_eva_says_what_it_needs():
    model = network()
    add_lora(model, LoraConfig(r=4, target_modules=["0"], init_lora_weights="eva"))
    with pytest.raises(InputError, match="at least one batch"):
        initialize_eva(model, [])
    with torch.no_grad():
        model[0].lora_B["default"].weight.normal_()
    with pytest.raises(InputError, match="B of '0' is not zero any more"):
        initialize_eva(model, [torch.randn(2, 24)])
    table = nn.Sequential(nn.Embedding(4, 3))
    add_lora(table, LoraConfig(r=2, target_modules=["0"]))
    with pytest.raises(InputError, match="has no linear layer for EVA"):
        initialize_eva(table, [torch.zeros(1, dtype=torch.long)])


@pytest.mark.parametrize("alpha", [0, -8])
def test_pissa_shares_out_a_root_and_needs_a_scaling_above_zero(alpha):
    with pytest.raises(InputError, match="'pissa' divides by the root of the scaling"):
        add_lora(nn.Sequential(nn.Linear(4, 4)), LoraConfig(r=2, lora_alpha=alpha, init_lora_weights="pissa"))
