"""Spectra, smaller ranks and differences, against what torch computes on whole matrices."""

import math

import pytest
import torch
from peft_zoo import NOT_EXACT, SVD_INITS, ZOO, logits, network, save_with_peft

from hf_tl.errors import InputError
from hf_tl.lora.adapter import Adapter, LayerUpdate, read_adapter, write_adapter
from hf_tl.lora.difference import compare_adapters
from hf_tl.lora.loading import load_adapter, put_adapter
from hf_tl.lora.resize import resize_adapter
from hf_tl.lora.spectrum import spectra, spectrum_table, summarise


pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),  # peft 0.21 asks
]


def made(values, *, out=6, inner=9, config=None):
    """An adapter of one layer whose update has the given singular values."""
    r = len(values)
    U, V = (torch.linalg.qr(torch.randn(n, r, dtype=torch.float64)).Q for n in (out, inner))
    B, A = U * torch.tensor(values, dtype=torch.float64), V.T
    alpha = {"r": r, "lora_alpha": 2 * r}
    tensors = {"layer.lora_A.weight": A.contiguous(), "layer.lora_B.weight": (B / 2).contiguous()}
    return Adapter({"peft_type": "LORA", "target_modules": ["layer"], **alpha, **(config or {})}, tensors)


def test_the_spectrum_is_that_of_the_whole_matrix():
    adapter = made([5.0, 3.0, 1.0, 0.0])
    (found,) = spectra(adapter, {"layer": torch.full((6, 9), 2.0)})
    assert torch.allclose(found.singular_values, torch.tensor([5.0, 3.0, 1.0, 0.0], dtype=torch.float64), atol=1e-12)
    whole = torch.linalg.svdvals(adapter.updates["layer"].matrix())[:4]
    assert torch.allclose(found.singular_values, whole, atol=1e-12)
    assert found.relative_norm == pytest.approx(math.sqrt(35) / (2 * math.sqrt(54)))
    shares = [5 / 9, 3 / 9, 1 / 9]
    assert found.effective_rank == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)))
    assert [found.rank_for(energy) for energy in (0.7, 0.72, 0.97, 0.98, 1.0)] == [1, 2, 2, 3, 3]


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
    found = spectra(made(values))
    assert found[0].verdict == verdict
    assert verdict in spectrum_table(found)
    assert summarise(found)[0].startswith("1 layer, 60 parameters")


def test_a_smaller_rank_is_the_best_one_and_its_error_is_stated():
    adapter = made([5.0, 3.0, 1.0, 0.5])
    resized, (report,) = resize_adapter(adapter, rank=2)
    assert report.error == pytest.approx(math.sqrt((1 + 0.25) / (25 + 9 + 1 + 0.25)))
    before, after = adapter.updates["layer"].matrix(), resized.updates["layer"].matrix()
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


@pytest.mark.parametrize("name", [name for name in ZOO if name not in SVD_INITS])
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
    one, other = (adapter.updates["layer"].matrix() for adapter in (first, second))
    assert layer.distance == pytest.approx(float((one - other).norm()))
    assert layer.cosine == pytest.approx(float((one * other).sum() / one.norm() / other.norm()))
    assert layer.ranks == (4, 2)
    assert not found.same
    assert found.options["r"] == (4, 2)


def test_adapters_of_different_networks_are_refused():
    with pytest.raises(InputError, match="updated by 6 x 9 in the first adapter and by 7 x 9 in the second"):
        compare_adapters(made([1.0]), made([1.0], out=7))


def test_an_update_knows_its_size():
    update = LayerUpdate("x", torch.ones(2, 3, 5, 5), torch.ones(4, 2, 1, 1), 0.5)
    assert update.shape == (4, 75)
    assert update.weight().shape == (4, 3, 5, 5)
    assert update.n_parameters == 158
    assert torch.equal(update.weight(), torch.ones(4, 3, 5, 5, dtype=torch.float64))
