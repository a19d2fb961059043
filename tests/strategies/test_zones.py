"""Where to cut: zones of layers whose worth is known."""

import numpy as np
import pytest

from hf_tl.policies import Policy
from hf_tl.probes.layer_probes import LayerProbes, Probed
from hf_tl.strategies.zones import find_zones


def probes(shares, *, places=None, n=400):
    hard = (np.arange(n) + 0.5) / n
    single = tuple(Probed(f"layer{i}", 10, (hard < share).astype(np.int8)) for i, share in enumerate(shares))
    depths = tuple(np.linspace(0, 1, len(shares)))
    return LayerProbes(single, single, single, depths, 0.1, "made up", places=places or ())


def test_layers_above_the_best_that_are_worse_are_candidates():
    places = ("stem", "0/4", "1/4", "2/4", "3/4", "head")
    found = find_zones(probes([0.3, 0.5, 0.8, 0.79, 0.6, 0.5], places=places))
    assert found.names == ("stem", "block 0", "block 1", "block 2", "block 3", "head")
    assert found.best == 2
    assert found.names[found.first_worse] == "block 2"
    assert [found.zone(i) for i in range(6)] == ["keep"] * 3 + ["retrain"] * 3
    assert found.policy == "freeze: ..1; reinit: 2.., head"
    Policy(found.policy)
    assert "block 1 serves the task best alone, 0.8" in found.verdict
    assert found.table().count("retrain") == 3


@pytest.mark.parametrize("shares", [[0.3, 0.5, 0.8], [0.5, 0.8, 0.8, 0.8]])
def test_where_nothing_is_worse_nothing_starts_anew(shares):
    found = find_zones(probes(shares))
    assert found.first_worse is None
    assert found.policy == ""
    assert "none has to start anew" in found.verdict
    assert found.names[0] == "layer0"


def test_a_dip_from_which_layers_recover_is_none():
    found = find_zones(probes([0.5, 0.8, 0.6, 0.79, 0.8]))
    assert found.first_worse is None
