"""Laws of the grammar over drawn policies: what is read is what is written, and what is wrong gets a pointer."""

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import nn

from hf_tl import InputError, Policy, list_layers, select_layers
from hf_tl.policies.grammar import parse_policy


QUICK = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])

numbers = st.integers(-7, 7).map(str)
bounds = st.one_of(st.just(""), numbers, st.integers(0, 100).map(lambda share: f"{share}%"))
terms = st.one_of(
    st.sampled_from(["all", "stem", "norm", "head", "each -1", "each ..50%", "[0-9].weight", "*", "/a;b,c/"]),
    numbers,
    st.tuples(bounds, bounds).map("..".join),
)
selections = st.lists(terms, min_size=1, max_size=3).map(", ".join)
rates = st.floats(1e-300, 1e300)
clauses = st.one_of(
    st.tuples(st.sampled_from(["freeze: ", "tune: ", "reinit: "]), selections).map("".join),
    rates.map(lambda rate: f"lr: decay {rate!r}"),
    st.tuples(rates, st.one_of(st.just(""), selections)).map(lambda pair: f"lr: x{pair[0]!r} {pair[1]}"),
    st.sampled_from(["norm: eval", "norm: train 0", "dropout: off ..50%", "dropout: on"]),
)
policies = st.lists(clauses, min_size=1, max_size=4).map("; ".join)
# near misses: pieces of the language in any order
pieces = st.sampled_from(
    [
        *["freeze", "tune", "reinit", "lr", "norm", "dropout", "each", "decay", "all", "stem", "head"],
        *":;,.%/x-0 9\n\té(",
    ]
)
scraps = st.lists(st.one_of(pieces, st.text(max_size=3)), max_size=12).map("".join)


@pytest.fixture(scope="module")
def layers():
    import torch

    net = nn.Sequential(*[nn.Linear(2, 2) for _ in range(6)])
    return list_layers(net, example=torch.ones(1, 2), blocks=["1", "2", "3", "4"])


@QUICK
@given(policies)
def test_what_is_written_is_what_was_read(text):
    found = parse_policy(text)
    written = "; ".join(clause.statement for clause in found)
    assert parse_policy(written) == found
    assert "; ".join(clause.statement for clause in parse_policy(written)) == written


@QUICK
@given(policies)
@example("lr: decay 1e300; tune: all")
@example("lr: decay 1e-300; tune: all")
@example("freeze: " + "9" * 5000)
@example("freeze: .." + "9" * 5000 + "%")
def test_a_policy_fits_or_is_answered_with_a_sentence(layers, text):
    try:
        plans = Policy(text).plans(layers)
    except InputError as error:
        check_pointer(error, text)
    else:
        assert all(0 < setting.rate < float("inf") for plan in plans for setting in plan.settings)
        assert all(plan.trained for plan in plans)


@pytest.mark.slow
@QUICK
@given(scraps)
def test_scraps_of_a_policy_are_answered_with_a_sentence(layers, text):
    try:
        Policy(text).plans(layers)
    except InputError as error:
        check_pointer(error, text)


@QUICK
@given(scraps)
def test_scraps_of_a_selection_are_answered_with_a_sentence(layers, text):
    try:
        found = select_layers(layers, text)
    except InputError as error:
        check_pointer(error, text)
    else:
        assert found == [layer for layer in layers if layer in found]


@QUICK
@given(selections, selections)
def test_a_selection_of_two_is_both(layers, one, other):
    try:
        both = select_layers(layers, f"{one}, {other}")
    except InputError:
        return
    assert set(both) == {*select_layers(layers, one), *select_layers(layers, other)}


def check_pointer(error, text):
    """A pointer stands under what the policy says, on one line."""
    lines = str(error).split("\n")
    if len(lines) > 1:
        shown, pointer = lines[-2:]
        assert len(lines) == 3
        assert len(shown) == len(text) + 2
        assert set(pointer) == {" ", "^"}
