"""How much CO2 a kilowatt hour costs: a table of countries, with the year of each figure and where it is from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from hf_tl.errors import InputError
from hf_tl.names import closest


@dataclass(frozen=True)
class GridIntensity:
    """Emissions of electricity.

    Attributes:
        grams_per_kwh: grams of CO2 equivalents a kilowatt hour.
        source: where the figure is from, with its year and country.
    """

    grams_per_kwh: float
    source: str

    def __post_init__(self) -> None:
        if not 0 <= self.grams_per_kwh < 5000:
            raise InputError(
                f"a grid emits 0 to 5000 g CO2 a kWh, got {self.grams_per_kwh}; give grams, not kilograms"
            )


def find_intensity(country: str) -> GridIntensity:
    """The intensity of a country's grid, the mean of a year; the grid of a region can be far from it.

    Args:
        country: its ISO code of three letters, "ESP", or its English name, "Spain".

    Raises:
        InputError: a country that the table does not have.
    """
    table = _read_table()
    names = {str(name).lower(): code for code, (name, _, _) in table["countries"].items()}
    code = country.upper() if country.upper() in table["countries"] else names.get(country.lower())
    if code is None:
        known = [*table["countries"], *(name for name, _, _ in table["countries"].values())]
        raise InputError(
            f"country {country!r} is not in the table of grids, {closest(country, known)}; give an ISO code of three "
            f"letters, such as 'ESP', or the grid's own intensity in g CO2 a kWh"
        )
    name, grams, year = table["countries"][code]
    return GridIntensity(float(grams), f"{name} {year}: {grams:g} g CO2 a kWh ({table['source']})")


@cache
def _read_table() -> dict:
    return json.loads(files("hf_tl.analysis").joinpath("grid_intensity.json").read_text(encoding="utf-8"))
