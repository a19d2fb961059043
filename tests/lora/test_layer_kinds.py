"""What PEFT gets wrong or does not offer: geometry of convolutions, fused projections, torch's fast path."""

import copy
import dataclasses
import warnings

import peft
import pytest
import torch
from parity_rows import NETWORKS, exported
from torch import nn
from torch.nn.utils import parametrizations

from hf_tl import InputError, LoraConfig, add_lora, delete_adapter, merge_adapter, unmerge_adapter
from hf_tl.lora.adapted import record_of
from hf_tl.lora.linear import LoraLinear


def randomise(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name and "magnitude" not in name:
                parameter.normal_(std=0.2)


GEOMETRY = {
    "dilated": (nn.Conv2d(4, 8, 3, dilation=2, padding=2), (2, 4, 11, 9)),
    "dilated, strided": (nn.Conv2d(4, 8, (3, 2), dilation=(2, 3), stride=(2, 1)), (2, 4, 11, 9)),
    "reflected": (nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect"), (2, 4, 11, 9)),
    "circular": (nn.Conv1d(4, 8, 5, padding=2, padding_mode="circular"), (2, 4, 12)),
    "replicated, same": (nn.Conv1d(4, 8, 4, padding="same", padding_mode="replicate"), (2, 4, 12)),
    "volume, dilated": (nn.Conv3d(4, 8, 2, dilation=2, bias=False), (2, 4, 5, 5, 5)),
}


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("name", GEOMETRY)
def test_merged_is_unmerged_whatever_the_geometry(name, dora):
    convolution, shape = GEOMETRY[name]
    model = nn.Sequential(copy.deepcopy(convolution))
    x = torch.randn(shape)
    base = model(x)
    add_lora(model, LoraConfig(r=4, target_modules=["0"], use_dora=dora))
    assert torch.allclose(model(x), base, atol=1e-6)
    randomise(model)
    expected = model(x)
    assert not torch.allclose(expected, base, atol=1e-2)
    report = merge_adapter(model, example=x)
    assert torch.allclose(model(x), expected, atol=1e-5)
    assert report.layers == 1
    assert report.largest_change < 1e-5
    unmerge_adapter(model)
    assert torch.equal(model(x), expected)


ZEROS = {
    "linear": (nn.Linear(6, 5), torch.randn(3, 6)),
    "convolution": (nn.Conv2d(6, 5, 3), torch.randn(2, 6, 4, 4)),
    "embedding": (nn.Embedding(6, 5), torch.arange(6)),
}


@pytest.mark.parametrize("name", ZEROS)
def test_dora_of_a_row_of_zeros_is_no_nan(name):
    """A pruned or dead channel has no direction, and stays 0 while B A leaves it; PEFT divides 0 by 0."""
    torch.manual_seed(0)
    layer, x = ZEROS[name]
    model = nn.Sequential(copy.deepcopy(layer))
    weight = model[0].weight
    (weight.data.t() if name == "embedding" else weight.data)[2] = 0
    base = model(x)
    theirs = peft.LoraConfig(r=2, target_modules=["0"], use_dora=True)
    assert peft.get_peft_model(copy.deepcopy(model), theirs)(x).isnan().any()
    add_lora(model, LoraConfig(r=2, target_modules=["0"], use_dora=True))
    assert torch.allclose(model(x), base, atol=1e-6)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(5):
        (model(x) - 1).square().mean().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        optimizer.step()
        optimizer.zero_grad()
    trained = model(x)
    moved = (trained - base).abs().movedim(1, 0).flatten(1).amax(1) > 1e-6
    assert moved.tolist() == [True, True, name == "embedding", True, True]  # whose B is not 0 at the start
    merge_adapter(model)
    assert torch.allclose(model(x), trained, atol=1e-5)


def fused(dim=16):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(dim, 3 * dim)

        def forward(self, x):
            return self.qkv(x)

    return nn.Sequential(Block(), nn.Linear(3 * dim, 4))


@pytest.mark.parametrize("rslora", [False, True])
def test_fused_projections_on_queries_and_values_only(rslora):
    torch.manual_seed(0)
    model = fused()
    x = torch.randn(5, 16)
    base = model[0](x)
    ours = add_lora(copy.deepcopy(model), LoraConfig(r=4, target_modules=["qkv"], fused_parts="qv", use_rslora=rslora))
    randomise(ours)
    changed = ours[0](x) - base
    assert torch.equal(changed[:, 16:32], torch.zeros(5, 16))  # the keys
    layer = ours[0].qkv
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    scale = 8 / 4**0.5 if rslora else 8 / 4
    assert torch.allclose(changed[:, :16], x @ a[:4].t() @ b[:16, :4].t() * scale, atol=1e-5)
    assert torch.allclose(changed[:, 32:], x @ a[4:].t() @ b[32:, 4:].t() * scale, atol=1e-5)
    ours(x).sum().backward()
    assert not b.grad[16:32].any()
    assert not b.grad[:16, 4:].any()
    assert not b.grad[32:, :4].any()

    config, tensors = exported(ours)
    assert config.r == 8
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(copy.deepcopy(model), config)
        peft.set_peft_model_state_dict(theirs, tensors)
    assert torch.allclose(theirs(x), ours(x), atol=1e-6)
    expected = ours(x)
    assert torch.allclose(delete_adapter(ours, merge=True)(x), expected, atol=1e-5)


def test_fused_projection_of_gpt2():
    model, _ = NETWORKS["gpt2"]()
    ours = add_lora(copy.deepcopy(model), LoraConfig(r=2, target_modules=["c_attn"], fused_parts="v"))
    layer = ours.transformer.h[0].attn.c_attn
    assert layer.lora_B["default"].weight.shape == (96, 2)
    randomise(ours)
    x = torch.randn(3, 32)
    change = layer(x) - layer.base_layer(x)
    assert not change[:, :64].any()
    assert change[:, 64:].any()


def test_torch_s_fast_path_does_not_skip_the_adapters():
    """nn.TransformerEncoderLayer reads weights and calls no module where nothing asks for gradients."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, dropout=0.0)
    model = nn.TransformerEncoder(layer, 2).eval()
    x, mask = torch.randn(3, 5, 16), torch.zeros(3, 5, dtype=torch.bool)
    mask[:, 4] = True
    with torch.no_grad():
        base = model(x, src_key_padding_mask=mask)
    flags = [(m.activation_relu_or_gelu,) for m in model.layers], model.use_nested_tensor
    for targets in (["linear1", "linear2"], ["self_attn"]):
        ours = add_lora(copy.deepcopy(model), LoraConfig(r=2, target_modules=targets)).eval()
        randomise(ours)
        expected = ours(x, src_key_padding_mask=mask)
        with torch.no_grad():
            assert torch.allclose(ours(x, src_key_padding_mask=mask)[:, :4], expected[:, :4], atol=1e-5)
        assert not torch.allclose(expected[:, :4], base[:, :4], atol=1e-3)
        delete_adapter(ours)
        assert ([(m.activation_relu_or_gelu,) for m in ours.layers], ours.use_nested_tensor) == flags
        with torch.no_grad():
            assert torch.equal(ours(x, src_key_padding_mask=mask), base)


def test_attention_refuses_what_does_not_act_inside_it():
    model, _ = NETWORKS["attention"]()
    for option in ({"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}):
        with pytest.raises(InputError, match=f"{next(iter(option))} does not act inside nn.MultiheadAttention"):
            add_lora(model, LoraConfig(r=2, target_modules=["attention"], **option))
        assert not [name for name, _ in model.named_parameters() if "base_layer" in name]
    with pytest.raises(InputError, match="of one width"):
        add_lora(nn.Sequential(nn.MultiheadAttention(8, 2, kdim=4)), LoraConfig(r=2, target_modules=["0"]))


def test_a_convolution_of_another_make_is_refused():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)

    with pytest.raises(InputError, match="'0' is a Standardised with a convolution of its own making"):
        add_lora(nn.Sequential(Standardised(3, 4, 3)), LoraConfig(r=2, target_modules=["0"]))


def test_groups_need_a_rank_that_divides():
    model, _ = NETWORKS["conv-groups"]()
    with pytest.raises(InputError, match="4 groups needs a rank divisible by them, got 6"):
        add_lora(model, LoraConfig(r=6, target_modules=["conv1"]))
    with pytest.raises(InputError, match="use_dora needs an ungrouped convolution, got one with 4 groups"):
        add_lora(model, LoraConfig(r=4, target_modules=["conv1"], use_dora=True))


def test_scaled_embeddings():
    class Scaled(nn.Embedding):
        def __init__(self):
            super().__init__(10, 4)
            self.register_buffer("embed_scale", torch.tensor(3.0), persistent=False)

        def forward(self, ids):
            return super().forward(ids) * self.embed_scale

    model = nn.Sequential(Scaled())
    add_lora(model, LoraConfig(r=2, target_modules=["0"]))
    randomise(model)
    ids = torch.arange(10)
    expected = model(ids)
    merge_adapter(model)
    assert torch.allclose(model(ids), expected, atol=1e-5)


def test_what_the_frozen_layer_has_is_read_through():
    layer = LoraLinear(nn.Linear(3, 4))
    assert layer.weight is layer.base_layer.weight
    assert (layer.in_features, layer.out_features) == (3, 4)
    with pytest.raises(AttributeError, match="nothing"):
        layer.nothing  # noqa: B018


def test_the_matrices_of_every_kind_make_the_merge():
    for network, targets in (
        ("mlp", ["lin0"]),
        ("embedding", ["embedding", "conv1d"]),
        ("conv3d", ["conv1"]),
        ("attention", ["attention"]),
    ):
        model, _ = NETWORKS[network]()
        add_lora(model, LoraConfig(r=4, target_modules=targets))
        randomise(model)
        layers = record_of(model).layers
        wanted = {}
        for name, layer in layers.items():
            a, b = layer.factor_matrices("default")
            wanted[name] = (layer.matrix() + layer.scaling["default"] * b @ a).detach()
        merge_adapter(model)
        for name, layer in layers.items():
            assert torch.allclose(layer.matrix(), wanted[name], atol=1e-5), name


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"init_lora_weights": "pissa"}])
def test_a_parametrised_weight_is_read_and_takes_no_merge(settings):
    model, x = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 2)), torch.randn(3, 4)
    plain = model(x)
    add_lora(model, LoraConfig(r=2, target_modules=["0"], **settings), example=x)
    torch.testing.assert_close(model(x), plain)
    model(x).sum().backward()
    with pytest.raises(InputError, match=r"0\.weight is computed from other tensors"):
        merge_adapter(model)


def test_the_rows_of_a_sparse_embedding_have_a_gradient():
    model, ids = nn.Sequential(nn.Embedding(9, 4, sparse=True)), torch.tensor([[1, 3]])
    add_lora(model, LoraConfig(r=2, target_modules=["0"]), example=ids)
    model(ids).sum().backward()
    gradient = model[0].lora_embedding_A["default"].grad
    assert gradient[:, [1, 3]].all()
    assert gradient.count_nonzero() == 4


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.LazyLinear(4), "0.weight has no shape yet"),
        (nn.Linear(4, 4, dtype=torch.complex64), "a Linear of torch.complex64 is to be adapted; adapters are real"),
    ],
)
def test_a_weight_that_is_no_real_matrix_is_refused(layer, message):
    with pytest.raises(InputError, match=message):
        add_lora(nn.Sequential(layer), LoraConfig(r=2, target_modules=["0"]))


def test_transforms_of_torch_func_pass_through_every_kind():
    class Kinds(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.conv, self.embedding = nn.Linear(8, 8), nn.Conv1d(3, 3, 1), nn.Embedding(4, 8)

        def forward(self, x):
            return self.conv(self.linear(x) + self.embedding(torch.arange(3)))

    x, config = torch.randn(5, 3, 8), LoraConfig(r=2, target_modules=["linear", "conv", "embedding"])
    model = add_lora(Kinds(), dataclasses.replace(config, use_dora=True), example=x)
    torch.testing.assert_close(torch.func.vmap(model)(x), model(x))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.func.grad(lambda values: torch.func.functional_call(model, values, (x,)).sum())(trained)
    model(x).sum().backward()
    torch.testing.assert_close(found, {name: p.grad for name, p in trained.items()})
