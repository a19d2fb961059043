"""Merging, unmerging, removing, and new adapters made of old ones."""

import copy

import peft
import pytest
import torch
from parity_rows import ROWS, exported, make_pair, randomise
from torch import nn
from torch.nn.utils import prune
from transformers.pytorch_utils import Conv1D

from hf_tl import (
    InputError,
    LoraConfig,
    add_lora,
    combine_adapters,
    delete_adapter,
    merge_adapter,
    set_adapter,
    unmerge_adapter,
)
from hf_tl.lora.adapted import adapter_state_dict, disable_adapters, record_of
from hf_tl.lora.combine import truncate


def adapted(dtype=torch.float32, **config):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).to(dtype)
    add_lora(model, LoraConfig(**{"r": 4, "target_modules": ["0", "2"], **config}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name and "magnitude" not in name:
                parameter.normal_(std=0.1)
    return model


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype):
    model = adapted(dtype)
    layer = model[0]
    a, b = layer.factor_matrices("default")
    exact = layer.base_layer.weight.double() + layer.scaling["default"] * b.double() @ a.double()
    merge_adapter(model)
    assert torch.equal(layer.base_layer.weight, exact.float().to(dtype))


def test_two_adapters_in_half_precision_are_rounded_once():
    model = adapted(torch.bfloat16)
    add_lora(model, LoraConfig(r=2, target_modules=["0"]), adapter_name="second")
    with torch.no_grad():
        model[0].lora_B["second"].weight.normal_(std=0.1)
    layer, exact = model[0], model[0].base_layer.weight.double()
    for adapter in ("default", "second"):
        a, b = layer.factor_matrices(adapter)
        exact = exact + layer.scaling[adapter] * b.double() @ a.double()
    once = exact.float().bfloat16()
    twice = layer.base_layer.weight.detach().clone()
    for adapter in ("default", "second"):
        a, b = layer.factor_matrices(adapter)
        twice = (twice.double() + layer.scaling[adapter] * b.double() @ a.double()).bfloat16()
    merge_adapter(model, adapter_names=["default", "second"])
    merged = layer.base_layer.weight
    assert (merged == once).float().mean() > 0.999  # but for float32's own rounding at a tie
    assert (twice == once).float().mean() < 0.95


@pytest.mark.parametrize("config", [{}, {"use_dora": True}, {"lora_bias": True}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unmerging_is_exact(dtype, config):
    model, x = adapted(dtype, **config), torch.randn(5, 64, dtype=dtype)
    state, expected = copy.deepcopy(model.state_dict()), model(x)
    parameters = dict(model.named_parameters())
    for _ in range(3):
        report = merge_adapter(model, example=x)
        assert 0 < report.largest_change < (1e-4 if dtype == torch.float32 else 0.2)
        unmerge_adapter(model)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert torch.equal(model(x), expected)


def test_a_safe_merge_refuses_what_is_not_finite():
    for value, dtype in ((float("nan"), torch.float32), (1e20, torch.float16)):
        model = adapted(dtype)
        with torch.no_grad():
            model[2].lora_B["default"].weight[3, 1] = value
        state = copy.deepcopy(model.state_dict())
        with pytest.raises(InputError, match=r"merged 2\.weight would not be finite in torch\.float.*look for NaN"):
            merge_adapter(model, safe_merge=True)
        assert all(torch.equal(t, state[n]) or t.isnan().any() for n, t in model.state_dict().items())
        assert not record_of(model).is_merged


def test_a_merge_that_keeps_nothing_says_so():
    model, x = adapted(), torch.randn(5, 64)
    expected = model(x)
    merge_adapter(model, reversible=False)
    assert torch.allclose(model(x), expected, atol=1e-5)
    with pytest.raises(InputError, match="original weights were not kept; merge with reversible=True"):
        unmerge_adapter(model)


def test_messages():
    model = adapted()
    with pytest.raises(InputError, match="no adapter is merged; call merge_adapter first"):
        unmerge_adapter(model)
    with pytest.raises(InputError, match="there is no adapter 'other'; there are 'default'"):
        merge_adapter(model, adapter_names=["other"])
    merge_adapter(model)
    with pytest.raises(InputError, match="merged already"):
        merge_adapter(model)
    with pytest.raises(InputError, match="call unmerge_adapter before"):
        set_adapter(model, "default")
    with pytest.raises(InputError, match="merged adapters cannot be disabled"), disable_adapters(model):
        pass
    unmerge_adapter(model)
    model = adapted(lora_bias=True)
    model[0].base_layer.bias = None
    with pytest.raises(InputError, match="lora_bias cannot be merged into a layer without a bias"):
        merge_adapter(model)


def test_removing_brings_everything_back():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    model[0].requires_grad_(False)
    x, state = torch.randn(3, 8), copy.deepcopy(model.state_dict())
    trains, expected = [p.requires_grad for p in model.parameters()], model(x)
    add_lora(model, LoraConfig(r=2, target_modules=["0", "1"], modules_to_save=["2"], bias="all"))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(x).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model(x), expected)
    with disable_adapters(model):
        assert torch.equal(model(x), expected)
    assert not torch.equal(model(x), expected)
    assert delete_adapter(model) is model
    assert torch.equal(model(x), expected)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == trains
    assert list(model.state_dict()) == list(state)
    with pytest.raises(InputError, match="has no adapters"):
        record_of(model)


def test_removing_one_of_two():
    model, x = adapted(), torch.randn(3, 64)
    add_lora(model, LoraConfig(r=2, target_modules=["2"]), adapter_name="second")
    set_adapter(model, "default")
    expected = model(x)
    delete_adapter(model, adapter_names=["second"])
    assert torch.equal(model(x), expected)
    assert sorted(record_of(model).configs) == ["default"]
    assert not [name for name in model.state_dict() if "second" in name]
    add_lora(model, LoraConfig(r=2, target_modules=["2"]), adapter_name="second")
    delete_adapter(model, adapter_names=["default"])
    assert isinstance(model[0], nn.Linear)
    assert list(record_of(model).layers) == ["2"]
    add_lora(model, LoraConfig(r=2, target_modules=["0"]), adapter_name="third")
    with pytest.raises(InputError, match=r"\['second'\] would stay"):
        delete_adapter(model, adapter_names=["third"], merge=True)


def test_removing_what_is_merged_brings_back_the_originals_or_says_that_they_are_gone():
    model, x = adapted(), torch.randn(3, 64)
    with disable_adapters(model):
        expected = model(x)
    merge_adapter(model)
    assert not torch.equal(model(x), expected)
    assert torch.equal(delete_adapter(model)(x), expected)
    model = adapted()
    merge_adapter(model, reversible=False)
    merged = model(x)
    with pytest.raises(InputError, match=r"original weights were not kept; .*delete_adapter\(model, merge=True\)"):
        delete_adapter(model)
    assert torch.equal(delete_adapter(model, merge=True)(x), merged)


@pytest.mark.parametrize("method", ["linear", "cat", "svd"])
@pytest.mark.parametrize("name", ["mlp", "embedding", "conv2d", "Conv1D"])
def test_weighted_merges_are_peft_s(name, method):
    pair = make_pair(next(row for row in ROWS if row.name == name))
    randomise(pair)
    pair.peft.add_adapter("second", peft.LoraConfig(**pair.row.config))
    add_lora(pair.ours, LoraConfig(modules_to_save=(), **pair.row.config), adapter_name="second")
    for key, tensor in peft.get_peft_model_state_dict(
        pair.peft, adapter_name="second", save_embedding_layers=False
    ).items():
        tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(2)) * 0.1)
        adapter_state_dict(pair.ours, adapter_name="second")[key].copy_(tensor)
    pair.peft.base_model.add_weighted_adapter(
        ["default", "second"], [0.7, -0.4], "new", combination_type=method, svd_rank=None
    )
    pair.peft.base_model.set_adapter("new")
    both = ["default", "second"]
    combine_adapters(pair.ours, both, weights=[0.7, -0.4], adapter_name="new", combination_type=method)
    expected = pair.peft.eval()(pair.batch)
    assert torch.allclose(pair.ours.eval()(pair.batch), expected, atol=1e-4)
    assert record_of(pair.ours).active == ["new"]
    config, tensors = exported(pair.ours, adapter_name="new")
    assert config.r == next(iter(tensors.values())).shape[0]


def test_cat_is_the_exact_sum():
    model, x = adapted(), torch.randn(5, 64)
    add_lora(model, LoraConfig(r=3, lora_alpha=5, target_modules=["2"]), adapter_name="second")
    with torch.no_grad():
        model[2].lora_B["second"].weight.normal_(std=0.1)
    set_adapter(model, ["default", "second"])
    expected = model(x)
    combine_adapters(model, ["default", "second"], weights=[1.0, 1.0], adapter_name="both")
    assert torch.allclose(model(x), expected, atol=1e-5)
    assert (model[0].r["both"], model[2].r["both"]) == (4, 7)
    assert record_of(model).configs["both"].rank_pattern == {"^0": 4}


@pytest.mark.parametrize("combination_type", ["cat", "svd"])
@pytest.mark.parametrize(("layer", "x"), [
    (nn.Linear(4, 6), torch.randn(2, 4)),
    (Conv1D(6, 4), torch.randn(2, 4)),
    (nn.Embedding(8, 6), torch.arange(8)),
    (nn.Conv1d(4, 6, 3), torch.randn(2, 4, 5)),
    (nn.Conv2d(4, 6, 3, groups=2), torch.randn(2, 4, 5, 5)),
    (nn.Conv3d(4, 6, 2), torch.randn(1, 4, 3, 3, 3)),
], ids=lambda value: type(value).__name__)  # fmt: skip
def test_a_combination_is_the_weighted_sum_of_the_updates_of_any_layer(layer, x, combination_type):
    model = nn.Sequential(copy.deepcopy(layer))
    plain, outputs = model(x), []
    for name in ("a", "b"):
        add_lora(model, LoraConfig(r=4, target_modules=["0"], init_lora_weights="random"), adapter_name=name)
        if isinstance(layer, nn.Embedding):  # whose random start is 0
            nn.init.normal_(model[0].lora_embedding_A[name])
        outputs.append(model(x))
    expected = plain + 0.7 * (outputs[0] - plain) - 0.4 * (outputs[1] - plain)
    rank = {"svd_rank": 8} if combination_type == "svd" else {}
    settings = {"weights": [0.7, -0.4], "adapter_name": "both", "combination_type": combination_type, **rank}
    combine_adapters(model, ["a", "b"], **settings)
    assert not torch.allclose(expected, plain, atol=1e-2)
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-4)


def test_combining_refuses():
    model = adapted()
    add_lora(model, LoraConfig(r=2, target_modules=["0"]), adapter_name="second")
    for adapters, options, message in (
        (["default", "second"], {"combination_type": "linear"}, r"one rank, got \[2, 4\]; use 'cat' or 'svd'"),
        (["default"], {"combination_type": "mean"}, "combination_type must be 'linear', 'cat' or 'svd', got 'mean'"),
        (["third"], {}, "there is no adapter 'third'"),
        ([], {}, "at least one adapter"),
        (["default"], {"weights": [1.0, 2.0]}, "one weight for each adapter, got 2 for 1"),
        (["default", "default"], {}, "'default' is named twice"),
        (["default"], {"weights": [float("nan")]}, r"weights must be finite, got \[nan\]"),
        (["default"], {"combination_type": "svd", "svd_rank": 0}, "svd_rank must be at least 1, got 0"),
        (["default"], {"combination_type": "svd", "svd_rank": -1}, "svd_rank must be at least 1, got -1"),
    ):
        with pytest.raises(InputError, match=message):
            combine_adapters(model, adapters, adapter_name="new", **{"weights": [1.0] * len(adapters), **options})
        assert "new" not in record_of(model).configs
        assert not [name for name in model.state_dict() if ".new." in name]
    with pytest.raises(InputError, match="is a DoRA adapter"):
        combine_adapters(adapted(use_dora=True), ["default"], weights=[1.0], adapter_name="new")


def test_a_combination_that_a_layer_cannot_have_leaves_nothing_on_the_others():
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8))
    add_lora(model, LoraConfig(r=2, target_modules=["1"], lora_bias=True), adapter_name="biased")
    add_lora(model, LoraConfig(r=2, target_modules=["0"]), adapter_name="words")
    before = set(model.state_dict())
    with pytest.raises(InputError, match="embeddings have no bias"):
        combine_adapters(model, ["biased", "words"], weights=[1.0, 1.0], adapter_name="both")
    assert set(model.state_dict()) == before
    assert record_of(model).active == ["words"]
    combine_adapters(model, ["words"], weights=[1.0], adapter_name="both")  # the name is free


def test_truncation_is_the_best_at_its_rank():
    torch.manual_seed(0)
    a, b = torch.randn(12, 30), torch.randn(20, 12)
    u, s, vh = torch.linalg.svd(b @ a)
    for rank in (1, 5, 12):
        new_b, new_a, lost = truncate(b, a, rank)
        assert (new_a.shape, new_b.shape) == ((rank, 30), (20, rank))
        assert torch.allclose(new_b @ new_a, u[:, :rank] * s[:rank] @ vh[:rank], atol=1e-3)
        assert lost == pytest.approx(float((b @ a - new_b @ new_a).norm() / (b @ a).norm()), abs=1e-6)
    wide_b, wide_a, _ = truncate(b, a, 15)
    assert wide_a.shape == (15, 30)
    assert torch.allclose(wide_b @ wide_a, b @ a, atol=1e-3)


def test_a_merge_that_overflows_half_precision_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).half()
    add_lora(model, LoraConfig(r=2, lora_alpha=1e6, target_modules=["0"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.fill_(100.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match=r"the merged 0\.weight would not be finite in torch\.float16"):
        merge_adapter(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_weight_that_is_computed_cannot_take_a_merge():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    prune.l1_unstructured(model[0], "weight", 0.5)
    add_lora(model, LoraConfig(r=2, target_modules=["0"]))
    with pytest.raises(InputError, match=r"0\.weight is computed from other tensors"):
        merge_adapter(model)


def test_an_adapter_is_merged_with_its_own_head_running():
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.randn(3, 4)
    for name in ("a", "b"):
        config = LoraConfig(r=2, target_modules=["0"], modules_to_save=["1"], init_lora_weights="random")
        add_lora(model, config, adapter_name=name)
        nn.init.normal_(model[1].current.weight)
    with pytest.raises(InputError, match=r"'a' comes with 1, which do not run, as \['b'\] is in use"):
        merge_adapter(model, adapter_names=["a"])
    set_adapter(model, "a")
    expected = model(x)
    merge_adapter(model, adapter_names=["a"])
    torch.testing.assert_close(model.eval()(x), expected)


@pytest.mark.parametrize("act", [
    lambda model: delete_adapter(model),
    lambda model: merge_adapter(model),
    lambda model: add_lora(model, LoraConfig(r=2, target_modules=["1"]), adapter_name="b"),
    lambda model: combine_adapters(model, ["default"], weights=[1.0], adapter_name="b"),
], ids=["delete", "merge", "add", "combine"])  # fmt: skip
def test_disabled_adapters_stay_as_they_are(act):
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.randn(3, 4)
    plain = model(x)
    add_lora(model, LoraConfig(r=2, target_modules=["0"], init_lora_weights="random"))
    expected = model(x)
    with disable_adapters(model):
        with pytest.raises(InputError, match="adapters are disabled; leave disable_adapters before"):
            act(model)
        assert torch.equal(model(x), plain)
    assert torch.equal(model(x), expected)
    assert [*record_of(model).configs] == ["default"]
