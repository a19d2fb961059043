"""An estimate is what the steps would cost, and leaves the network as it is."""

import pytest
import torch
from torch import nn

from hf_tl import estimate_footprint


@pytest.mark.parametrize("train", [True, False])
def test_an_estimate_is_that_of_the_steps(train):
    model, batch = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2)), torch.randn(4, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = estimate_footprint(model, batch, n_samples=400, epochs=2.5, train=train, country="ESP")
    forward = 2 * (8 * 64 + 64 * 2)
    each = 3 * forward - 2 * 8 * 64 if train else forward
    assert found.flops.value == pytest.approx(1000 * each)
    assert found.samples == 1000
    assert found.wall_seconds.value > 0
    assert {amount.method for amount in (found.wall_seconds, found.flops, found.co2_grams)} == {"estimated"}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
