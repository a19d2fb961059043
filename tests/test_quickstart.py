"""The digits experiment: its task is what it claims to be, and the same seed gives the same numbers."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from hf_tl import quickstart


@pytest.mark.slow
def test_canvases_hold_the_digit_whole_at_random_places():
    digits = load_digits().images[:200]
    canvases = quickstart.draw_canvases(digits, np.random.default_rng(0))
    assert canvases.shape == (200, 1, 32, 32)
    assert canvases.dtype == torch.float32
    assert canvases.min() >= 0
    assert canvases.max() <= 1
    found = set()
    for canvas, digit in zip(canvases[:, 0].numpy(), digits / 16, strict=True):
        large = np.kron(digit, np.ones((2, 2)))
        places = [
            (top, left)
            for top in range(17)
            for left in range(17)
            if np.allclose(canvas[top : top + 16, left : left + 16][large > 0.25], large[large > 0.25], atol=1e-6)
        ]
        assert places
        found.add(places[0])
    assert len(found) > 100


def test_new_networks_depend_on_their_seed_alone():
    first, second, other = (quickstart.new_network(seed).state_dict() for seed in (1, 1, 2))
    torch.manual_seed(7)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert not torch.equal(first["conv1.0.weight"], other["conv1.0.weight"])


@pytest.mark.slow
def test_reuse_beats_pixels_and_guessing():
    found = quickstart.run(seed=0, shots=(5, 20), draws=2, progress=False)
    assert found.source_accuracy > 0.95
    mean = {method: values.mean() for method, values in found.curve.accuracy.items()}
    assert mean["full network"] > mean["raw pixels"] + 0.15
    assert mean["last layer"] > mean["raw pixels"] + 0.1
    assert mean["raw pixels"] < 0.35
    assert min(mean["fine-tuned"], mean["adapters"]) > mean["from scratch"]
    assert list(mean) == list(quickstart.METHODS)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_numbers(monkeypatch):
    for name, small in (
        ("SOURCE_COPIES", 1),
        ("SOURCE_EPOCHS", 1),
        ("SCRATCH_STEPS", 2),
        ("SCRATCH_EPOCHS", 1),
        ("TUNING_STEPS", 2),
    ):
        monkeypatch.setattr(quickstart, name, small)
    first, again = (quickstart.run(seed=0, shots=(2,), draws=2, progress=False) for _ in range(2))
    for method in quickstart.METHODS:
        assert first.curve.accuracy[method] == pytest.approx(again.curve.accuracy[method], abs=0.02)
