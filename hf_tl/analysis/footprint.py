"""What a piece of work cost: time, memory, operations, samples, energy, CO2, experiments and people's time.

with Footprint("search", country="ESP") as search:
    ...
    search.add(samples=800, experiments=4)
print(sum([search, training]))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from hf_tl.analysis.energy import Amount, PowerModel, add_energies
from hf_tl.analysis.grid_intensity import GridIntensity, find_intensity
from hf_tl.analysis.meters import EVERY, Meters
from hf_tl.card import in_bytes, in_time
from hf_tl.errors import InputError
from hf_tl.files import parse_json, read_untrusted, write_json
from hf_tl.table import format_table


LARGEST_FILE = 10**7  # bytes
JOULES_PER_KWH = 3.6e6


@dataclass
class Footprint:
    """The cost of what runs in its block; footprints of blocks that follow one another add up, the search's as well.

    CO2 is energy x `pue` x the intensity of the grid, which has to be named: there is no default country.

    Attributes:
        name: of the work.
        country: where it runs, "ESP" or "Spain"; see `hf_tl.analysis.grid_intensity`.
        grid_intensity: g CO2 a kWh, instead of a country.
        pue: energy that a data centre draws for each unit that its computers do (power usage effectiveness).
        power: what is assumed of parts without a counter.
        count_flops: whether operations of torch are counted inside, which costs some 20 % of the time of small
            networks; operations that are known otherwise are added with `add`.
        experiments: trainings, or whatever is counted as one.
        samples: that went through a network.
        human_minutes: as the user says.
        wall_seconds: duration; None before the block ends, as all that follows.
        cpu_seconds: of all threads of this process, and of processes that it waited for.
        memory_bytes: the peak of this process' resident memory, the largest of several blocks.
        gpu_memory_bytes: the peak of what torch held on all GPUs; None where no GPU was used.
        flops: operations; None where none were counted or added.
        energy: joules by "cpu", "memory" and "gpu"; None for a GPU of which nothing is known.
        co2_grams: None without a grid, or where the energy is not known.
        parts: the footprints that this one is the sum of.
    """

    name: str = "work"
    country: str | None = field(default=None, kw_only=True)
    grid_intensity: float | None = field(default=None, kw_only=True)
    pue: float = field(default=1.0, kw_only=True)
    power: PowerModel = field(default_factory=PowerModel, kw_only=True)
    count_flops: bool = field(default=False, kw_only=True)
    experiments: int = field(default=1, kw_only=True)
    samples: int = field(default=0, kw_only=True)
    human_minutes: float = field(default=0.0, kw_only=True)
    wall_seconds: Amount | None = field(default=None, init=False)
    cpu_seconds: Amount | None = field(default=None, init=False)
    memory_bytes: Amount | None = field(default=None, init=False)
    gpu_memory_bytes: Amount | None = field(default=None, init=False)
    flops: Amount | None = field(default=None, init=False)
    energy: dict[str, Amount | None] = field(default_factory=dict, init=False)
    co2_grams: Amount | None = field(default=None, init=False)
    parts: tuple[Footprint, ...] = field(default=(), init=False)
    _added_flops: Amount | None = field(default=None, init=False, repr=False, compare=False)
    _meters: Meters | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.country is not None and self.grid_intensity is not None:
            raise InputError(f"give a country or a grid_intensity, got {self.country!r} and {self.grid_intensity}")
        if not self.pue >= 1:
            raise InputError(f"pue is 1 or more, the energy of the whole per energy of the computers, got {self.pue}")
        self.grid()  # an unknown country is said now

    def grid(self) -> GridIntensity | None:
        """The intensity of the grid; None where it was not named."""
        if self.grid_intensity is not None:
            return GridIntensity(self.grid_intensity, f"{self.grid_intensity:g} g CO2 a kWh, as given")
        return None if self.country is None else find_intensity(self.country)

    def __enter__(self) -> Footprint:
        if self._meters is not None or self.wall_seconds is not None:
            raise InputError(f"footprint {self.name!r} has been measured; make a new one for each block, and add them")
        self._meters = Meters(self.power, count_flops=self.count_flops)
        self._meters.start()
        return self

    def __exit__(self, *error: object) -> None:
        assert self._meters is not None
        self._meters.stop()
        self.read()
        self._meters = None

    def abandon(self) -> None:
        """Ends a block that runs without reading its figures."""
        if self._meters is not None:
            self._meters.stop()
            self._meters = None

    def read(self) -> None:
        """Brings the figures of a block that still runs up to date."""
        if self._meters is None:
            raise InputError(f"footprint {self.name!r} does not run; it is read inside its own block")
        found = self._meters.read()
        self.wall_seconds = Amount(found.wall_seconds, "measured", "clock")
        self.cpu_seconds = Amount(found.cpu_seconds, "measured", "operating system")
        self.memory_bytes = Amount(found.memory_bytes, "measured", f"resident memory, every {EVERY:g} s")
        if found.gpu_memory_bytes:
            self.gpu_memory_bytes = Amount(found.gpu_memory_bytes, "measured", "torch.cuda")
        counted = None if found.flops is None else Amount(found.flops, "measured", "counted by operation")
        self.flops = _sum(counted, self._added_flops, unknown=False)
        self.set_energy(found.energy)

    def add(
        self,
        *,
        samples: int = 0,
        experiments: int = 0,
        human_minutes: float = 0.0,
        flops: float | None = None,
        source: str = "as given",
    ) -> None:
        """Adds what no clock or counter knows.

        Args:
            samples: that went through a network.
            experiments: beside those that were counted at the start.
            human_minutes: of people.
            flops: operations; they count as estimated.
            source: how `flops` are known.
        """
        self.samples += samples
        self.experiments += experiments
        self.human_minutes += human_minutes
        if flops is not None:
            amount = Amount(flops, "estimated", source)
            self._added_flops = _sum(self._added_flops, amount, unknown=False)
            self.flops = _sum(self.flops, amount, unknown=False)

    def set_energy(self, energy: Mapping[str, Amount | None]) -> None:
        """Sets the joules by part, and the CO2 that follows from them.

        Args:
            energy: by "cpu", "memory" and "gpu".
        """
        self.energy, grid, total = dict(energy), self.grid(), add_energies(energy)
        if grid is not None and total is not None:
            grams = total.value / JOULES_PER_KWH * self.pue * grid.grams_per_kwh
            self.co2_grams = Amount(grams, "estimated", f"energy x {grid.source}" + _with_pue(self.pue))

    @property
    def energy_joules(self) -> Amount | None:
        """Of all parts together; None where one is not known."""
        return add_energies(self.energy)

    def __add__(self, other: Footprint | int) -> Footprint:
        if isinstance(other, int):  # sum() starts at 0
            return self
        parts = (*(self.parts or (self,)), *(other.parts or (other,)))
        total = Footprint(
            " + ".join(dict.fromkeys(part.name for part in parts)),
            experiments=self.experiments + other.experiments,
            samples=self.samples + other.samples,
            human_minutes=self.human_minutes + other.human_minutes,
        )
        total.parts = parts
        for name in ("wall_seconds", "cpu_seconds", "flops", "co2_grams"):
            setattr(total, name, _sum(getattr(self, name), getattr(other, name), unknown=name != "flops"))
        for name in ("memory_bytes", "gpu_memory_bytes"):
            known = [amount for amount in (getattr(self, name), getattr(other, name)) if amount is not None]
            setattr(total, name, max(known, key=lambda amount: amount.value, default=None))
        for name in dict.fromkeys([*self.energy, *other.energy]):
            mine, theirs = (one.energy.get(name, Amount(0.0, "measured", "")) for one in (self, other))
            total.energy[name] = None if mine is None or theirs is None else _clean(mine + theirs)
        return total

    __radd__ = __add__

    def table(self) -> str:
        """One row a part and one for all; what is estimated is marked with a ~."""
        rows = [_row(part) for part in (*self.parts, self)] if self.parts else [_row(self)]
        header = ["work", "runs", "samples", "wall", "CPU", "memory", "FLOP", "energy", "CO2", "people"]
        return format_table(header, rows)

    def __str__(self) -> str:
        names = ("wall", "CPU", "memory", "FLOP", "energy", "CO2")
        row = _row(self)
        said = [f"{name} {text}" for name, text in zip(names, row[3:9], strict=True) if text]
        counts = f"{self.experiments} experiment{'s' * (self.experiments != 1)}, {self.samples:,} samples"
        missing = []
        if self.wall_seconds is not None and self.energy_joules is None:
            missing.append("the energy of the GPU is not known: pip install nvidia-ml-py, or give power")
        elif self.wall_seconds is not None and self.co2_grams is None:
            missing.append("no CO2: give a country or a grid_intensity")
        return "; ".join([f"{self.name}: {counts}", *said, *missing, "~ is estimated"])

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        said: dict[str, Any] = {"name": self.name}
        for name in ("country", "grid_intensity", "pue", "experiments", "samples", "human_minutes"):
            said[name] = getattr(self, name)
        said["power"] = vars(self.power)
        for name in _AMOUNTS:
            said[name] = _written(getattr(self, name))
        said["energy"] = {name: _written(amount) for name, amount in self.energy.items()}
        said["parts"] = [part.to_dict() for part in self.parts]
        return said

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> Footprint:
        """What `to_dict` said.

        Raises:
            InputError: anything else.
        """
        try:
            words = {name: said[name] for name in ("country", "grid_intensity")}
            found = cls(
                str(said["name"]),
                **words,
                pue=float(said["pue"]),
                power=PowerModel(**said["power"]),
                experiments=int(said["experiments"]),
                samples=int(said["samples"]),
                human_minutes=float(said["human_minutes"]),
            )
            for name in _AMOUNTS:
                setattr(found, name, _read(said[name]))
            found.energy = {str(name): _read(amount) for name, amount in said["energy"].items()}
            found.parts = tuple(cls.from_dict(part) for part in said["parts"])
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"this is no footprint as `to_dict` writes it: {error!r}") from error
        return found

    def save(self, path: str | Path) -> Path:
        """Writes a JSON file."""
        return write_json(Path(path), self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Footprint:
        """What `save` wrote.

        Raises:
            InputError: a file that is missing or something else.
        """
        try:
            content = read_untrusted(Path(path), largest=LARGEST_FILE)
        except FileNotFoundError as error:
            raise InputError(f"there is no footprint {str(path)!r}") from error
        return cls.from_dict(parse_json(content, Path(path)))

    def card_emissions(self, *, training_type: Literal["pre-training", "fine-tuning"] = "fine-tuning") -> dict:
        """The field `co2_eq_emissions` of a model card, in grams, as the Hub wants it: `CardInfo(emissions=...)`.

        Args:
            training_type: in the Hub's words.

        Raises:
            InputError: the CO2 is not known.
        """
        if self.co2_grams is None:
            raise InputError(f"the CO2 of {self.name!r} is not known: {self}")
        said = {"emissions": float(f"{self.co2_grams.value:.3g}"), "source": f"hf_tl: {self.co2_grams.source}"}
        return {**said, "training_type": training_type, **_location(self)}


_AMOUNTS = tuple(
    part.name for part in fields(Footprint) if "Amount | None" in str(part.type) and part.name != "energy"
)


def _sum(first: Amount | None, second: Amount | None, *, unknown: bool = True) -> Amount | None:
    """Their sum; with `unknown`, an unknown one makes it unknown."""
    if first is None or second is None:
        return None if unknown else first or second
    return first + second


def _clean(amount: Amount) -> Amount:
    return Amount(amount.value, amount.method, "; ".join(part for part in amount.source.split("; ") if part))


def _row(footprint: Footprint) -> list[str]:
    people = f"{footprint.human_minutes:g} min" if footprint.human_minutes else ""
    texts = [
        _said(footprint.wall_seconds, _in_seconds),
        _said(footprint.cpu_seconds, _in_seconds),
        _said(footprint.memory_bytes, lambda value: in_bytes(round(value))),
        _said(footprint.flops, lambda value: _in_units(value, "FLOP")),
        _said(footprint.energy_joules, lambda value: f"{value / 3600:.3g} Wh"),
        _said(footprint.co2_grams, lambda value: f"{value:.3g} g"),
    ]
    return [footprint.name, f"{footprint.experiments:,}", f"{footprint.samples:,}", *texts, people]


def _said(amount: Amount | None, words: Any) -> str:
    return "" if amount is None else ("~" if amount.method == "estimated" else "") + words(amount.value)


def _in_seconds(value: float) -> str:
    return in_time(value) if value >= 10 else f"{value:.2g} s"


def _in_units(value: float, unit: str) -> str:
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.0f} {unit}"


def _with_pue(pue: float) -> str:
    return "" if pue == 1 else f" x {pue:g} for the data centre"


def _location(footprint: Footprint) -> dict[str, str]:
    named = [part.country for part in (footprint.parts or (footprint,)) if part.country is not None]
    return {"geographical_location": ", ".join(dict.fromkeys(named))} if named else {}


def _written(amount: Amount | None) -> dict[str, Any] | None:
    return None if amount is None else vars(amount)


def _read(said: Mapping[str, Any] | None) -> Amount | None:
    if said is None:
        return None
    if said["method"] not in ("measured", "estimated"):
        raise ValueError(f"method {said['method']!r}")
    return Amount(float(said["value"]), said["method"], str(said["source"]))
