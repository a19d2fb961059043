"""Grids by code and by name, with the year of the figure; codecarbon, where it is installed, says the same."""

import pytest

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


def test_every_grid_is_that_of_codecarbon():
    pytest.importorskip("codecarbon")
    from codecarbon.input import DataSource

    found = DataSource().get_global_energy_mix_data()
    assert len(found) > 150
    for code, mix in found.items():
        if "carbon_intensity" in mix and len(code) == 3:
            assert find_intensity(code).grams_per_kwh == pytest.approx(mix["carbon_intensity"], rel=0.01), code
