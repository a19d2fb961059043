"""Grids by code and by name, with the year of the figure; codecarbon, where it is installed, says the same."""

import socket

import pytest

from hf_tl import Footprint, PowerModel
from hf_tl.analysis.energy import Amount
from hf_tl.analysis.grid_intensity import GridIntensity, find_intensity
from hf_tl.errors import InputError


def test_countries_by_code_and_by_name():
    assert find_intensity("esp") == find_intensity("Spain")
    assert "2023" in find_intensity("ESP").source


def test_mistakes():
    with pytest.raises(InputError, match="'Atlantis' is not in the table"):
        find_intensity("Atlantis")
    with pytest.raises(InputError, match="grams, not kilograms"):
        GridIntensity(-1, "as given")


@pytest.fixture
def offline(monkeypatch):
    """Whoever calls the network fails."""

    def refuse(*args, **kwargs):
        raise OSError("there is no network in this test")

    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_every_grid_is_that_of_codecarbon(offline):
    pytest.importorskip("codecarbon")
    from codecarbon.input import DataSource

    found = DataSource().get_global_energy_mix_data()
    assert len(found) > 150
    for code, mix in found.items():
        if "carbon_intensity" in mix and len(code) == 3:
            assert find_intensity(code).grams_per_kwh == pytest.approx(mix["carbon_intensity"], rel=0.01), code


def test_a_block_costs_what_codecarbon_says(offline):
    """Its energy in our conversion: it samples the load of a processor, which no two runs do alike."""
    codecarbon = pytest.importorskip("codecarbon")
    tracker = codecarbon.OfflineEmissionsTracker(
        country_iso_code="ESP",
        measure_power_secs=0.2,
        force_ram_power=10,
        force_cpu_power=24,
        tracking_mode="process",
        save_to_file=False,
        log_level="critical",
        allow_multiple_runs=True,
    )
    tracker.start()
    sum(range(10**6))
    tracker.stop()
    theirs, ours = tracker.final_emissions_data, Footprint(country="ESP", power=PowerModel())
    ours.set_energy({"all": Amount(theirs.energy_consumed * 3.6e6, "estimated", "codecarbon")})
    assert ours.co2_grams.value == pytest.approx(1000 * theirs.emissions, rel=0.01)
