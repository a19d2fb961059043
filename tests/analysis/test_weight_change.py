"""Spectra and differences, against what torch computes on whole matrices."""

import math
from dataclasses import replace

import pytest
import torch
from known_spectrum import made, whole_matrix

from hf_tl.analysis.weight_change import compare_adapters, measure_updates, rank_advice, spectrum_table
from hf_tl.errors import InputError
from hf_tl.lora.adapter import Adapter
from hf_tl.lora.combine import rank_for


def test_the_spectrum_is_that_of_the_whole_matrix():
    adapter = made([5.0, 3.0, 1.0, 0.0])
    (found,) = measure_updates(adapter, {"layer": torch.full((6, 9), 2.0)})
    assert torch.allclose(found.singular_values, torch.tensor([5.0, 3.0, 1.0, 0.0], dtype=torch.float64), atol=1e-12)
    whole = torch.linalg.svdvals(whole_matrix(adapter))[:4]
    assert torch.allclose(found.singular_values, whole, atol=1e-12)
    assert found.relative_norm == pytest.approx(math.sqrt(35) / (2 * math.sqrt(54)))
    shares = [5 / 9, 3 / 9, 1 / 9]
    assert found.effective_rank == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)))
    ranks = [rank_for(found.singular_values, energy) for energy in (0.7, 0.72, 0.97, 0.98, 1.0)]
    assert ranks == [1, 2, 2, 3, 3]


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([4.0, 0.01, 0.01, 0.01], "r=1 is enough"),
        ([1.0, 1.0, 0.9, 0.9], "all of r in use"),
        ([4.0, 2.0, 0.3, 0.01], "r=2 is enough"),
        ([4.0, 1.0, 0.7, 0.01], "fits"),
        ([0.0, 0.0, 0.0, 0.0], "no update"),
    ],
)
def test_the_verdict_on_the_rank(values, verdict):
    found = measure_updates(made(values))
    assert found[0].verdict == verdict
    assert verdict in spectrum_table(found)
    assert rank_advice(found)[0].startswith("1 layer, 60 parameters")


def test_two_factorings_of_one_update_do_not_differ():
    first = made([5.0, 3.0, 1.0, 0.5])
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    A, B = first.tensors["layer.lora_A.weight"], first.tensors["layer.lora_B.weight"]
    second = Adapter(first.config, {"layer.lora_A.weight": turn @ A, "layer.lora_B.weight": B @ turn.T})
    (layer,) = compare_adapters(first, second).layers
    assert layer.relative < 1e-14
    assert layer.cosine == pytest.approx(1.0)
    assert compare_adapters(first, first).same


def test_differences_are_those_of_the_whole_matrices():
    first, second = made([5.0, 3.0, 1.0, 0.5]), made([2.0, 1.0])
    found = compare_adapters(first, second)
    (layer,) = found.layers
    one, other = whole_matrix(first), whole_matrix(second)
    assert layer.distance == pytest.approx(float((one - other).norm()))
    assert layer.cosine == pytest.approx(float((one * other).sum() / one.norm() / other.norm()))
    assert layer.ranks == (4, 2)
    assert not found.same
    assert found.options["r"] == (4, 2)


def test_adapters_of_different_networks_are_refused():
    with pytest.raises(InputError, match="updated by 6 x 9 in the first adapter and by 7 x 9 in the second"):
        compare_adapters(made([1.0]), made([1.0], out=7))


def test_a_bias_of_b_counts_as_it_acts():
    """b + scale * bias: another scale with other values may be the same network, or not."""
    first = made([5.0, 3.0], config={"lora_bias": True})
    bias, half = torch.ones(6), torch.full((6,), 0.5)
    first = replace(first, tensors={**first.tensors, "layer.lora_B.bias": bias})
    B = first.tensors["layer.lora_B.weight"]
    twice = {**first.tensors, "layer.lora_B.weight": B / 2, "layer.lora_B.bias": half}
    second = replace(first, config={**first.config, "lora_alpha": 8}, tensors=twice)
    assert compare_adapters(first, second).same
    third = replace(second, tensors={**twice, "layer.lora_B.bias": bias})
    found = compare_adapters(first, third)
    assert found.others == {"layer bias": 2.0}
    assert not found.same


def test_inits_that_change_the_frozen_weight_make_another_network():
    first = made([5.0, 3.0])
    pissa = replace(first, config={**first.config, "init_lora_weights": "pissa"})
    assert compare_adapters(pissa, pissa).same
    assert not compare_adapters(first, pissa).same
    wider = made([5.0, 3.0, 0.0], config={"init_lora_weights": "pissa"})  # which takes three directions out of W
    assert "frozen weights" in " ".join(compare_adapters(pissa, wider).others)
    gaussian = replace(first, config={**first.config, "init_lora_weights": "gaussian"})
    found = compare_adapters(first, gaussian)
    assert found.same
    assert found.options == {"init_lora_weights": (None, "gaussian")}


def test_a_layer_of_one_adapter_is_all_difference():
    first, second = made([3.0, 4.0]), made([1.0])
    second = replace(second, tensors={key.replace("layer", "other"): t for key, t in second.tensors.items()})
    found = {layer.name: layer for layer in compare_adapters(first, second).layers}
    assert found["layer"].distance == pytest.approx(5.0)
    assert found["other"].ranks == (0, 1)
    assert math.isnan(found["other"].cosine)


def test_the_same_rows_of_other_tokens_are_a_difference():
    rows = {"embed.token_adapter.trainable_tokens_delta": torch.ones(2, 3)}

    def with_rows(indices):
        torch.manual_seed(0)
        adapter = made([1.0], config={"trainable_token_indices": indices})
        return replace(adapter, tensors={**adapter.tensors, **rows})

    assert compare_adapters(with_rows({"embed": [5, 6]}), with_rows([6, 5])).same
    found = compare_adapters(with_rows([5, 6]), with_rows([7, 8]))
    assert not found.same
    assert found.others == {"embed, token 5-6": "only in the first", "embed, token 7-8": "only in the second"}
