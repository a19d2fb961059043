"""Crossovers and decisions on made-up outcomes whose truth is known."""

import numpy as np
import pytest

from hf_tl.strategies.crossover import find_crossover
from hf_tl.strategies.decision import bootstrap, decide, samples_to_settle


LABELS = np.repeat(np.arange(4), 100)
SHOTS = (1, 2, 4, 8, 16, 32)


def outcomes(accuracies, *, seed, draws=5):
    """(shots, draws, n_test) with samples that are easy for everybody or hard for everybody."""
    rng = np.random.default_rng(seed)
    difficulty = np.random.default_rng(9).random(len(LABELS))
    noise = 0.2 * rng.normal(size=(len(accuracies), draws, len(LABELS)))
    return (difficulty + noise < np.asarray(accuracies)[:, None, None]).astype(np.int8)


def test_a_crossover_is_found_where_it_is():
    n = np.array(SHOTS)
    first, second = 0.6 + 0.02 * np.log2(n), 0.4 + 0.09 * np.log2(n)  # equal at log2 n = 2.86, n = 7.2
    found = find_crossover(
        outcomes(first, seed=1), outcomes(second, seed=2), names=("a", "b"), shots=SHOTS, labels=LABELS
    )
    assert found.is_seen
    assert found.low <= 7.2 <= found.high
    assert found.at == pytest.approx(7.2, rel=0.35)
    assert "b overtakes a at" in str(found)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (0.6, 0.8, "no crossover in this range: b is ahead of a at 1 to 32"),
        (0.8, 0.6, "no crossover in this range: a is ahead of b at 1 to 32"),
        (0.7, 0.7, "no crossover can be told in this range"),
    ],
)
def test_no_crossover_is_said(first, second, words):
    a, b = (outcomes(np.full(6, value), seed=seed) for seed, value in enumerate((first, second)))
    assert words in str(find_crossover(a, b, names=("a", "b"), shots=SHOTS, labels=LABELS))


@pytest.mark.slow
def test_crossover_intervals_hold_the_truth():
    n, held = np.array(SHOTS), 0
    first, second = 0.6 + 0 * n, 0.5 + 0.03 * np.log2(n)  # equal at log2 n = 3.33
    many = 25
    for seed in range(many):
        rng = np.random.default_rng((seed, 1))
        easy = rng.random(len(LABELS))  # other test samples each time
        a, b = (
            (easy + 0.2 * rng.normal(size=(6, 5, len(LABELS))) < values[:, None, None]).astype(np.int8)
            for values in (first, second)
        )
        found = find_crossover(a, b, names=("a", "b"), shots=SHOTS, labels=LABELS, seed=seed)
        held += found.low <= 2**3.33 <= found.high
    assert held >= 0.85 * many


def test_the_cheapest_of_equals_is_taken_and_the_best_of_unequals():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.01, 4000)
    equal = {"cheap": 0.8 + noise, "dear": 0.802 + noise}
    costs = {"cheap": 1.0, "dear": 10.0}
    assert decide(equal, costs, delta=0.01).chosen == "cheap"
    unequal = {"cheap": 0.8 + noise, "dear": 0.85 + noise}
    found = decide(unequal, costs, delta=0.01)
    assert (found.chosen, found.best, found.is_sure) == ("dear", "dear", True)
    assert found.risk == {"cheap": 1.0, "dear": 0.0}
    assert decide(unequal, costs, delta=0.1).chosen == "cheap"
    unclear = {"cheap": 0.8 + 0.05 * rng.normal(size=4000), "dear": 0.8 + 0.05 * rng.normal(size=4000)}
    assert not decide(unclear, costs, delta=0.01).is_sure


def test_what_samples_have_in_common_cancels():
    right = np.random.default_rng(0).random(200) < 0.7
    other = right.copy()
    other[:4] = True
    draws = bootstrap({"a": right, "b": other})
    assert draws["a"].mean() == pytest.approx(right.mean(), abs=0.01)
    assert draws["a"].std() == pytest.approx(np.sqrt(0.21 / 200), rel=0.2)
    assert (draws["b"] - draws["a"]).std() < 0.5 * draws["a"].std()
    assert samples_to_settle(right, other, delta=0.02) < samples_to_settle(right, ~right, delta=0.02)
    assert bootstrap({"sure": np.ones(50)})["sure"].std() > 0
