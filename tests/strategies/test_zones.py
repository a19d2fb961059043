"""Where to cut: zones of layers whose worth is known."""

import numpy as np
import pytest

from hf_tl.embedding.embedding import LayerColumns
from hf_tl.policies import Policy
from hf_tl.strategies import Effort
from hf_tl.strategies.fine_tuning import FineTuning, measured_cut
from hf_tl.strategies.strategy import Fitted
from hf_tl.strategies.zones import find_zones, last_of_blocks, measure_zones


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
    assert "reinit" not in found.policy
    assert "none has to start anew" in found.verdict
    assert found.names[0] == "layer0"


@pytest.mark.parametrize(
    ("shares", "policy"),
    [
        ([0.3, 0.5, 0.9, 0.9, 0.9], "freeze: ..1"),  # block 2 and the head are no worse: tuned
        ([0.3, 0.5, 0.6, 0.7, 0.9], "freeze: ..1"),  # nothing lies above the best: the last block is tuned
        ([0.3, 0.5, 0.9, 0.7, 0.6], "freeze: ..1; reinit: 2.., head"),
        ([0.3, 0.5, 0.7, 0.9, 0.6], "freeze: ..2; reinit: head"),
        ([0.9, 0.5, 0.4, 0.3, 0.2], ""),  # the stem alone: no block to freeze
    ],
)
def test_the_policy_is_that_of_the_zones(shares, policy):
    found = zones(shares, names=["stem", "block 0", "block 1", "block 2", "head"])
    assert found.policy == policy
    if policy:
        Policy(policy)


def test_a_strategy_cuts_there(transfer, drawn, monkeypatch):
    applied = []
    monkeypatch.setattr(
        FineTuning,
        "fit",
        lambda tuning, *_, **__: applied.append(tuning) or Fitted(None, "learning rate 1", 1.0, 1, 1),
    )
    policy = "freeze: ..1; reinit: 2.., head"
    found = zones([0.3, 0.5, 0.9, 0.7, 0.6], names=["stem", "block 0", "block 1", "block 2", "head"])
    monkeypatch.setattr("hf_tl.strategies.fine_tuning.measure_zones", lambda *_: found)
    fitted = measured_cut().fit(transfer, drawn.train, drawn.validation, effort=Effort(), seed=0)
    assert [(one.policy, one.cached) for one in applied] == [(policy, True)]
    assert fitted.setting == f"learning rate 1, {policy}"
    code = measured_cut().code(transfer, fitted.setting)
    assert f"PolicyCallback({policy!r}, cache=PrefixCache())" in code
    assert "learning_rate=1," in code
    none = measured_cut().fit(transfer, drawn.train, np.zeros(0, int), effort=Effort(), seed=0)
    assert none.setting == "learning rate 1, freeze: ..75%"  # nothing to measure by


def test_zones_are_measured_on_the_samples_that_are_given(transfer, drawn):
    found = measure_zones(transfer, drawn.train, drawn.validation)
    assert found.n_samples == len(drawn.validation)
    assert len(found.names) == len(last_of_blocks(transfer.raw.layers)) > 1
    wrong = measure_zones(transfer, drawn.train, drawn.train)  # of what it has learnt it gets nearly all right
    assert wrong.accuracy.max() > 0.9


def test_a_dip_from_which_layers_recover_is_none():
    found = zones([0.5, 0.8, 0.6, 0.79, 0.8])
    assert found.first_worse is None


def test_of_a_block_the_last_layer_stands():
    assert last_of_blocks(layers(("stem", "0/2", "0/2", "1/2")))["block 0"] == "layer2"
    assert list(last_of_blocks(layers(("", "", "")))) == ["layer0", "layer1", "layer2"]
