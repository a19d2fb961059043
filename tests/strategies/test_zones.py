"""Where to cut: zones of layers whose worth is known."""

import numpy as np
import pytest

from hf_tl.embedding.embedding import LayerColumns
from hf_tl.policies import Policy
from hf_tl.strategies.zones import find_zones, last_of_blocks


def layers(places):
    return [LayerColumns(f"layer{i}", i, i + 1, i / 9, "conv", place) for i, place in enumerate(places)]


def zones(shares, *, names=None, n=400):
    hard = (np.arange(n) + 0.5) / n
    outcomes = np.stack([hard < share for share in shares]).astype(np.int8)
    return find_zones(names or [f"layer{i}" for i in range(len(shares))], outcomes)


def test_layers_above_the_best_that_are_worse_are_candidates():
    names = list(last_of_blocks(layers(("stem", "0/4", "0/4", "1/4", "2/4", "3/4", "head"))))
    found = zones([0.3, 0.5, 0.8, 0.79, 0.6, 0.5], names=names)
    assert found.names == ("stem", "block 0", "block 1", "block 2", "block 3", "head")
    assert found.best == 2
    assert found.names[found.first_worse] == "block 2"
    assert [found.zone(i) for i in range(6)] == ["freeze"] * 3 + ["reinit"] * 3
    assert found.policy == "freeze: ..1; reinit: 2.., head"
    Policy(found.policy)
    assert "block 1 serves the task best alone, 0.8" in found.verdict
    assert found.table().count("reinit") == 3


@pytest.mark.parametrize("shares", [[0.3, 0.5, 0.8], [0.5, 0.8, 0.8, 0.8]])
def test_where_nothing_is_worse_nothing_starts_anew(shares):
    found = zones(shares)
    assert found.first_worse is None
    assert found.policy == ""
    assert "none has to start anew" in found.verdict
    assert found.names[0] == "layer0"


def test_a_dip_from_which_layers_recover_is_none():
    found = zones([0.5, 0.8, 0.6, 0.79, 0.8])
    assert found.first_worse is None


def test_of_a_block_the_last_layer_stands():
    assert last_of_blocks(layers(("stem", "0/2", "0/2", "1/2")))["block 0"] == "layer2"
    assert list(last_of_blocks(layers(("", "", "")))) == ["layer0", "layer1", "layer2"]
