"""Policies on a seeded sample of the sweep: `python recipes/benchmarks/check_policies.py` tries every network."""

import check_policies
import pytest
from check_policies import RIGHT, WRONG, examine
from sweep import sample, specimens


pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def bert():
    return next(one for one in specimens(["token"]) if one.name == "BertForTokenClassification")


@pytest.mark.slow
@pytest.mark.parametrize("specimen", sample(6, families=["image", "token", "causal"], random_state=3), ids=str)
def test_a_sample_is_right_or_refused(specimen):
    found = examine(specimen)
    assert found.outcome != WRONG, found.sentences


def test_every_law_holds_of(bert):
    found = examine(bert)
    assert found.outcome == RIGHT, found.sentences


def test_a_policy_that_does_nothing_is_seen(bert, monkeypatch):
    monkeypatch.setattr(check_policies, "start", lambda *arguments: None)
    found = examine(bert)
    assert found.outcome == WRONG
    assert [sentence.partition(":")[0] for sentence in found.sentences] == ["freeze", "tune", "reinit"]
