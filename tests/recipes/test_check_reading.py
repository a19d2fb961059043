"""A few networks of the sweep are read rightly, or refused in one sentence; all of them: `check_reading.py`."""

import pytest
from check_reading import read
from lanes import lanes
from sweep import sample


DRAWN = sample(6, families=("sequence", "token", "causal"), random_state=2)


@pytest.mark.parametrize("specimen", lanes(DRAWN, fast=lambda specimen: specimen in DRAWN[:2]), ids=str)
def test_a_network_is_read_rightly_or_refused(specimen):
    verdict = read(specimen.model(), name=specimen.name)
    assert verdict.outcome != "wrong", verdict.sentences
