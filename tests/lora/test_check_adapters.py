"""A sample of recipes/benchmarks/check_adapters.py: what trains is what was asked, and PEFT computes the same."""

from pathlib import Path

import pytest


pytestmark = pytest.mark.slow


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "recipes" / "benchmarks"))
    import check_adapters
    import sweep

    return check_adapters, {str(one): one for one in sweep.specimens()}, sweep.sample(2, random_state=2)


def test_a_sample_of_the_sweep_is_right(recipe):
    check_adapters, _, sample = recipe
    for specimen in sample:
        for targets in check_adapters.TARGETS:
            outcome, why = check_adapters.check(specimen, targets)
            assert outcome != "wrong", f"{specimen} {targets}: {why}"


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("audio/WavLMForSequenceClassification", "said"),  # it reads the weights of its attention
        ("causal/Llama4ForCausalLM", "right"),  # its router is a linear layer that returns two tensors
        ("timm/caformer_s18", "right"),  # without the methods by which timm's networks are known
    ],
)
def test_what_the_sweep_once_found(recipe, name, outcome):
    check_adapters, specimens, _ = recipe
    assert check_adapters.check(specimens[name], "all-linear")[0] == outcome
