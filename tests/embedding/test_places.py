"""Taps chosen by where they stand: the same words mean the same layers, in a network and among stored rows."""

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from lanes import lanes
from transformers import BertConfig, BertModel, T5Config, T5Model

from hf_tl import Embedding, FullNetworkEmbedding, InputError, Network, list_layers
from hf_tl.embedding import LayerSelector
from hf_tl.embedding.anatomy import find_taps
from hf_tl.embedding.taps import select_names, select_places
from hf_tl.layers import select_layers
from hf_tl.names import is_inside


def vit():
    return timm.create_model("test_vit", num_classes=3).eval(), torch.randn(2, 3, 160, 160)


def resnet():
    return timm.create_model("test_resnet", num_classes=3).eval(), torch.randn(2, 3, 32, 32)


def bert():
    config = BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=5, num_attention_heads=2, intermediate_size=16)
    return BertModel(config).eval(), {"input_ids": torch.randint(1, 30, (2, 6))}


def t5():
    config = T5Config(vocab_size=30, d_model=8, d_kv=4, d_ff=16, num_layers=3, num_heads=2)
    ids = torch.randint(1, 30, (2, 6))
    return T5Model(config).eval(), {"input_ids": ids, "decoder_input_ids": ids}


def taps_of(made, selection):
    model, example = made
    return find_taps(Network(model, torch.stack), example, activation="after", selection=selection)[0]


PLACES = [
    *((make, text) for make in (vit, resnet, bert) for text in ("..50%", "-2..", "0", "-1", "1..", "..", "all")),
    *((t5, text) for text in ("encoder", "encoder.0..2", "decoder.-1", "decoder.50%..", "norm")),
    (resnet, "stem"),
    (vit, "norm"),
]
QUICK = ((vit, "..50%"), (bert, "..50%"), (resnet, "-1"), (t5, "decoder.-1"), (resnet, "stem"), (vit, "norm"))


@pytest.mark.parametrize(
    "case", lanes(PLACES, fast=lambda case: case in QUICK), ids=lambda case: f"{case[0].__name__}-{case[1]}"
)
def test_a_place_reads_what_auto_reads_in_the_layers_of_that_name(case):
    make, selection = case
    torch.manual_seed(0)
    model, example = made = make()
    chosen = select_layers(list_layers(model, example=example), selection)
    modules = [name for layer in chosen for name, _ in layer.modules]
    auto = taps_of(made, "auto")
    expected = [tap.name for tap in auto if is_inside(tap.reading.module, modules)]
    inside = [tap.name for tap in auto if is_inside(tap.name.partition("#")[0], modules)]
    assert expected or inside
    assert [tap.name for tap in taps_of(made, selection)] == inside


def test_terms_are_joined_by_commas_or_in_a_list():
    made = resnet()
    separately = [tap.name for text in ("stem", "-1", "last") for tap in taps_of(made, text)]
    for selection in ("stem, -1, last", ["stem", "-1", "last"], ["-1,stem", "last"], "last, -1, stem"):
        assert [tap.name for tap in taps_of(made, selection)] == separately


def test_a_regular_expression_chooses_by_name():
    made = resnet()
    expected = [tap.name for tap in taps_of(made, "layer[12].*")]
    assert [tap.name for tap in taps_of(made, r"/^layer[1,2]\./")] == expected
    blocks = [tap.name for tap in taps_of(made, r"/^layer[12]\.0$/")]
    assert blocks == ["layer1.0", "layer2.0"]  # no layer of its own: what the module returns


def test_a_name_is_that_layer_even_if_it_is_a_number():
    flat = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ReLU(), torch.nn.Linear(3, 3), torch.nn.ReLU())
    made = flat, torch.randn(2, 3)
    assert [tap.name for tap in taps_of(made, "2")] == ["2"]
    assert [layer.name for layer in select_layers(list_layers(flat, example=made[1]), "0")] == ["2"]  # "0" is the stem
    assert [tap.name for tap in taps_of(made, "0")] == ["0"]
    assert [tap.name for tap in taps_of(made, "-1")] == ["2"]


@pytest.mark.parametrize("selection", ["..50%", "-2..", "stem", "1", ["-1", "last"]])
def test_stored_layers_are_chosen_by_the_same_words(tmp_path, selection):
    torch.manual_seed(0)
    network = Network(timm.create_model("test_resnet", num_classes=3).eval(), torch.stack)
    rows = list(torch.randn(5, 3, 32, 32))
    whole = FullNetworkEmbedding(network, recipe="raw", taps=["auto", "last"], progress=False)
    raw = Embedding.load(whole.activations(rows, out=tmp_path / "raw").save(tmp_path / "again"))
    expected = FullNetworkEmbedding(network, recipe="raw", taps=selection, progress=False).activations(rows)
    for chosen in (raw.select(selection), LayerSelector(selection).fit_transform(raw)):
        assert [layer.name for layer in chosen.layers] == [layer.name for layer in expected.layers]
        assert np.array_equal(chosen, expected)
    part = raw.select("..50%").select("..50%")  # still the first half of the network
    assert part.layers == raw.select("..50%").layers


def test_a_fitted_embedding_keeps_its_places(tmp_path):
    network = Network(timm.create_model("test_resnet", num_classes=3).eval(), torch.stack)
    fne = FullNetworkEmbedding(network, taps="-2..", progress=False).fit(list(torch.randn(4, 3, 32, 32)))
    again = FullNetworkEmbedding.from_pretrained(str(fne.save_pretrained(tmp_path)), network=network)
    assert again.layers_ == fne.layers_
    assert again.taps == "-2.."


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ("stem, 9..12", "9 is no end of a range of 4 blocks.*\n  stem, 9..12\n        \\^\\^\\^\\^\\^$"),
        (["auto", "7"], "there is no block 7: '7'; the blocks are 0 to 3.*\n  7\n  \\^$"),
        ("..50%, layr1.*", "'layr1.\\*' matches none.*closest are 'layer1.*\n  ..50%, layr1.\\*\n         \\^{7}$"),
        ("head", "nothing is read in 'head', but in stem, 0/4, 1/4, 2/4, 3/4\n  head\n  \\^\\^\\^\\^$"),
        ("stem,, 1", "a layer is missing.*\n  stem,, 1\n       \\^$"),
        ("/lay[er/", "a regular expression stands between two slashes, got '/lay\\[er/'\n"),
    ],
)
def test_a_wrong_term_is_pointed_at_in_a_network_and_among_stored_layers(selection, message):
    taps = taps_of(resnet(), "auto")
    names, kinds, places = ([getattr(tap, field) for tap in taps] for field in ("name", "kind", "place"))
    with pytest.raises(InputError, match=f"(?s){message}"):
        taps_of(resnet(), selection)
    with pytest.raises(InputError, match=f"(?s){message}"):
        select_names(names, selection, kinds=kinds, places=places)


def test_a_network_of_two_towers_asks_which():
    with pytest.raises(InputError, match=r"the network has 2 towers, say which one: '-1'; write encoder.-1 or deco"):
        taps_of(t5(), "-1")


def test_layers_without_places_are_chosen_by_name():
    with pytest.raises(InputError, match="'-1' says where layers stand, which is not known of these; choose them by"):
        select_names(["a", "b"], "-1", places=["", ""])
    layers = FullNetworkEmbedding(Network(resnet()[0], torch.stack), recipe="raw", progress=False)
    raw = layers.activations(list(torch.randn(2, 3, 32, 32)))
    bare = replace(raw, layers=tuple(replace(layer, place="") for layer in raw.layers))
    assert bare.select("layer1*").shape == raw.select("layer1*").shape


def test_a_made_up_place_costs_no_memory():
    with pytest.raises(InputError, match="not known of these"):
        select_places(["3/99999999999", "nonsense"], "-1", text="-1", position=0)
