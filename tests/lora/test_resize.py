"""Adapters cut to smaller ranks, against what torch computes on whole matrices."""

import math

import pytest
import torch
from known_spectrum import made, whole_matrix
from lanes import lanes
from peft_zoo import NOT_EXACT, QUICK, SVD_INITS, ZOO, logits, network, save_with_peft
from torch import nn

from hf_tl import LoraConfig, add_lora
from hf_tl.errors import InputError
from hf_tl.lora.adapter import Adapter, read_adapter, write_adapter
from hf_tl.lora.combine import resize_adapter
from hf_tl.lora.load import load_adapter, put_adapter
from hf_tl.lora.save import adapter_on


pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),  # peft 0.21 asks
]


def test_a_smaller_rank_is_the_best_one_and_its_error_is_stated():
    adapter = made([5.0, 3.0, 1.0, 0.5])
    resized, (report,) = resize_adapter(adapter, rank=2)
    assert report.error == pytest.approx(math.sqrt((1 + 0.25) / (25 + 9 + 1 + 0.25)))
    before, after = whole_matrix(adapter), whole_matrix(resized)
    assert float((before - after).norm() / before.norm()) == pytest.approx(report.error)
    assert resized.updates["layer"].rank == 2
    assert resized.config["r"] == 2
    assert resized.config["lora_alpha"] == 4  # the scale stays
    for keep, rank in ((0.5, 1), (0.96, 2), (0.98, 3), (1.0, 4)):
        kept, _ = resize_adapter(adapter, keep=keep)
        assert kept.updates["layer"].rank == rank
    same, (report,) = resize_adapter(adapter, rank=4)
    assert report.error == 0
    assert same.tensors["layer.lora_A.weight"] is adapter.tensors["layer.lora_A.weight"]


@pytest.mark.parametrize("name", lanes(sorted(ZOO.keys() - SVD_INITS), fast=lambda name: name in QUICK))
def test_an_adapter_of_any_kind_cut_to_its_own_content_gives_the_same_network(name, tmp_path):
    """Ranks are doubled by a second copy of halved factors; cutting finds the original again."""
    save_with_peft(name, tmp_path / "one")
    adapter = read_adapter(tmp_path / "one")
    doubled, config = dict(adapter.tensors), dict(adapter.config)
    for key, update in adapter.updates.items():
        end = ("lora_embedding_A", "lora_embedding_B") if update.embedding else ("lora_A.weight", "lora_B.weight")
        groups = update.groups
        A = torch.cat([part for half in update.A.chunk(groups) for part in (half, half)])
        doubled[f"{key}.{end[0]}"], doubled[f"{key}.{end[1]}"] = A, torch.cat([update.B, update.B], 1) / 2
    factor = 2**0.5 if config.get("use_rslora") else 2
    config["r"], config["lora_alpha"] = 2 * config["r"], factor * config["lora_alpha"]
    config["rank_pattern"] = {pattern: 2 * rank for pattern, rank in (config.get("rank_pattern") or {}).items()}
    config["alpha_pattern"] = {p: factor * alpha for p, alpha in (config.get("alpha_pattern") or {}).items()}
    double = Adapter(config, doubled)
    assert {u.rank for u in double.updates.values()} == {2 * u.rank for u in adapter.updates.values()}
    cut, report = resize_adapter(double, keep=1 - 1e-9)
    assert all(layer.error < 1e-4 for layer in report)
    assert {n: u.rank for n, u in cut.updates.items()} == {n: u.rank for n, u in adapter.updates.items()}
    write_adapter(cut, tmp_path / "cut")
    example = ZOO[name][1]()
    expected = logits(load_adapter(network(name), tmp_path / "one"), example)
    found = logits(load_adapter(network(name), tmp_path / "cut"), example)
    bound = 1e-10 if name in NOT_EXACT else 1e-4
    assert (found - expected).abs().max() <= bound * expected.abs().max()


def test_resized_adapters_load_in_peft_with_a_rank_of_its_own_for_every_layer(tmp_path):
    from peft import PeftModel

    save_with_peft("bert-patterns", tmp_path / "one")
    resized, report = resize_adapter(read_adapter(tmp_path / "one"), keep=0.6)
    assert len({layer.new_rank for layer in report}) > 1
    write_adapter(resized, tmp_path / "two")
    example = ZOO["bert-patterns"][1]()
    ours = logits(load_adapter(network("bert-patterns"), tmp_path / "two"), example)
    theirs = logits(PeftModel.from_pretrained(network("bert-patterns"), tmp_path / "two").eval(), example)
    assert torch.allclose(ours, theirs, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "give either a rank or the share to keep, got rank=None and keep=None"),
        ({"rank": 1, "keep": 0.5}, "give either a rank or the share"),
        ({"rank": 0}, "rank must be at least 1, got 0; use delete_adapter"),
        ({"rank": 9}, "rank 9 is above the adapter's largest, 4; resize only makes adapters smaller"),
        ({"keep": 1.5}, "keep must be above 0 and at most 1"),
    ],
)
def test_bad_ranks(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        resize_adapter(made([4.0, 3.0, 2.0, 1.0]), **arguments)


def test_a_grouped_convolution_keeps_a_multiple_of_its_groups(tmp_path):
    save_with_peft("grouped-convolution", tmp_path)
    adapter = read_adapter(tmp_path)
    with pytest.raises(InputError, match="works in 4 groups, so its rank must be a multiple of 4, got 2"):
        resize_adapter(adapter, rank=2)
    resized, _ = resize_adapter(adapter, keep=0.5)
    assert resized.updates["grouped"].rank == 4
    put_adapter(network("grouped-convolution"), resized)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_what_an_init_took_out_of_the_weights_goes_by_the_rank_which_therefore_stays(init):
    with pytest.raises(InputError, match="load_adapter and save_adapter make an ordinary adapter of it"):
        resize_adapter(made([4.0, 3.0, 2.0], config={"init_lora_weights": init}), rank=2)


def test_factors_of_stacked_experts_are_not_taken_for_those_of_one_matrix():
    adapter = made([4.0, 3.0, 2.0, 1.0])
    stacked = Adapter({**adapter.config, "target_modules": [], "target_parameters": ["layer.up"]}, adapter.tensors)
    for arguments in ({"rank": 2}, {"keep": 0.9}):
        with pytest.raises(InputError, match="stacked experts in 'layer'"):
            resize_adapter(stacked, **arguments)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.inner(x, x, x)[0]


def test_both_projections_of_an_attention_keep_the_larger_rank_of_the_two():
    torch.manual_seed(0)
    model, plain, x = Attention().eval(), Attention().eval(), torch.randn(2, 5, 8)
    plain.load_state_dict(model.state_dict())
    add_lora(model, LoraConfig(r=4, lora_alpha=3, target_modules=["inner"], init_lora_weights="random"))
    with torch.no_grad():
        model.inner.lora_A["default"].weight[3:] = 0
        model.inner.output.lora_A["default"].weight[1:] = 0
    resized, report = resize_adapter(adapter_on(model), keep=1.0)
    assert [layer.new_rank for layer in report] == [3, 3]
    torch.testing.assert_close(put_adapter(plain, resized)(x), model(x), atol=1e-5, rtol=1e-5)
