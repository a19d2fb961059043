"""A footprint adds up, survives JSON, and never guesses a country."""

import json
import time

import numpy as np
import pytest
import torch

from hf_tl import CardInfo, Footprint, PowerModel
from hf_tl.analysis.energy import Amount
from hf_tl.analysis.grid_intensity import find_intensity
from hf_tl.card import write_card
from hf_tl.errors import InputError


def made(name, *, wall, memory, joules, experiments=1, **options):
    """A footprint with given figures."""
    footprint = Footprint(name, experiments=experiments, **options)
    footprint.wall_seconds = footprint.cpu_seconds = Amount(wall, "measured", "clock")
    footprint.memory_bytes = Amount(memory, "measured", "resident memory")
    footprint.set_energy({"cpu": Amount(joules, "estimated", "12 W a busy core")})
    return footprint


def test_a_block_is_measured():
    with Footprint("search", country="ESP", count_flops=True, power=PowerModel(cpu_watts=10)) as footprint:
        started = time.process_time()
        kept = np.ones(10_000_000)  # 80 MB
        torch.ones(64, 64) @ torch.ones(64, 64)
        while time.process_time() < started + 0.2:
            pass
        footprint.add(samples=8, experiments=3, human_minutes=2, flops=1000)
    assert footprint.wall_seconds.value >= 0.15
    assert footprint.cpu_seconds.value > 0.18 - 1e-6  # two readings of a clock of the system, whose ticks are 10 ms
    assert footprint.memory_bytes.value >= kept.nbytes
    assert footprint.flops == Amount(2 * 64**3 + 1000, "estimated", "counted by operation; as given")
    assert (footprint.samples, footprint.experiments, footprint.human_minutes) == (8, 4, 2)
    assert footprint.energy["cpu"].value == pytest.approx(10 * footprint.cpu_seconds.value)
    expected = footprint.energy_joules.value / 3.6e6 * find_intensity("ESP").grams_per_kwh
    assert footprint.co2_grams.value == pytest.approx(expected)
    assert {footprint.wall_seconds.method, footprint.memory_bytes.method} == {"measured"}
    assert footprint.co2_grams.method == "estimated"


def test_footprints_add_up():
    parts = [
        made("search", wall=10, memory=5e8, joules=100, experiments=7, country="ESP"),
        made("training", wall=2, memory=9e8, joules=30, country="ESP"),
    ]
    total = sum(parts)
    assert total.name == "search + training"
    assert total.wall_seconds.value == 12
    assert total.memory_bytes.value == 9e8
    assert total.energy_joules.value == 130
    assert total.co2_grams.value == pytest.approx(sum(part.co2_grams.value for part in parts))
    assert total.experiments == 8
    assert [part.name for part in sum([total, made("more", wall=1, memory=1, joules=1)]).parts] == [
        "search",
        "training",
        "more",
    ]
    assert total.table().count("\n") == 4


def test_emissions_are_energy_times_the_centre_s_share_times_the_grid():
    footprint = made("a", wall=1, memory=1, joules=7.2e6, grid_intensity=100, pue=1.5)
    assert footprint.co2_grams.value == pytest.approx(2 * 1.5 * 100)


def test_unknown_emissions_stay_unknown_in_a_sum():
    with_grid = made("a", wall=1, memory=1, joules=1, grid_intensity=100)
    without = made("b", wall=1, memory=1, joules=1)
    assert with_grid.co2_grams is not None
    assert without.co2_grams is None
    assert (with_grid + without).co2_grams is None
    assert "no CO2: give a country" in str(without)


def test_energy_of_an_unknown_gpu_is_said():
    footprint = made("a", wall=1, memory=1, joules=1, country="ESP")
    unknown = made("b", wall=1, memory=1, joules=1, country="ESP")
    unknown.co2_grams = None
    unknown.set_energy({**unknown.energy, "gpu": None})
    assert unknown.energy_joules is None
    assert unknown.co2_grams is None
    assert (footprint + unknown).energy_joules is None
    assert "nvidia-ml-py" in str(unknown)


def test_json_round_trip(tmp_path):
    total = made("a", wall=1, memory=2, joules=3, country="Spain", pue=1.2) + made("b", wall=4, memory=5, joules=6)
    assert Footprint.load(total.save(tmp_path / "footprint.json")) == total
    assert Footprint.from_dict(json.loads(json.dumps(total.to_dict()))) == total


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda said: said.pop("energy"), "no footprint as"),
        (lambda said: said["wall_seconds"].update(method="guessed"), "no footprint as"),
        (lambda said: said.update(country="Atlantis"), "Atlantis"),
    ],
)
def test_foreign_json_is_refused(change, message):
    said = json.loads(json.dumps(made("a", wall=1, memory=2, joules=3).to_dict()))
    change(said)
    with pytest.raises(InputError, match=message):
        Footprint.from_dict(said)


def test_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match="there is no footprint"):
        Footprint.load(tmp_path / "none.json")
    for content, message in (("{", "is not JSON"), ("[" * 10**5, "is not JSON"), ("[1]", "a JSON object, got a list")):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(InputError, match=message):
            Footprint.load(tmp_path / "bad.json")


def test_the_card_has_grams():
    footprint = made("a", wall=1, memory=1, joules=3.6e6, grid_intensity=174)
    card = write_card(None, title="t", body="b", info=CardInfo(emissions=footprint.card_emissions()), metadata={})
    assert "co2_eq_emissions:\n  emissions: 174.0" in card
    with pytest.raises(InputError, match="is not known"):
        made("b", wall=1, memory=1, joules=1).card_emissions()


def test_mistakes():
    with pytest.raises(InputError, match="'Atlantis' is not in the table"):
        Footprint(country="Atlantis")
    with pytest.raises(InputError, match="give a country or a grid_intensity"):
        Footprint(country="ESP", grid_intensity=100)
    with pytest.raises(InputError, match="pue is 1 or more"):
        Footprint(pue=0.5)
    with pytest.raises(InputError, match="grams, not kilograms"):
        Footprint(grid_intensity=-1)
    with Footprint() as footprint:
        pass
    with pytest.raises(InputError, match="has been measured"), footprint:
        pass
