"""Counters where they can be read, the stated model where not; a counter that passes its end starts anew."""

import sys
from types import SimpleNamespace

import pytest
import torch

from hf_tl.analysis.energy import Amount, EnergyMeter, PowerModel, _read_gpus, add_energies
from hf_tl.errors import InputError


SPENT = {"wall_seconds": 10.0, "cpu_seconds": 20.0, "memory": 4e9}


@pytest.fixture
def powercap(tmp_path):
    """RAPL's counters: one package, its memory, and one that only root may read."""
    for folder, name, joules in (("intel-rapl:0", "package-0", 100), ("intel-rapl:0:0", "dram", 50)):
        domain = tmp_path / folder
        domain.mkdir()
        (domain / "name").write_text(f"{name}\n")
        (domain / "energy_uj").write_text(str(joules * 10**6))
        (domain / "max_energy_range_uj").write_text(str(1000 * 10**6))
    (tmp_path / "intel-rapl:1").mkdir()
    return tmp_path


def test_without_counters_the_model_is_stated(tmp_path):
    meter = EnergyMeter(PowerModel(cpu_watts=5, memory_watts_per_gb=0.5), powercap=tmp_path)
    meter.start()
    found = meter.stop(**SPENT)
    assert found["cpu"] == Amount(100.0, "estimated", "5 W a busy core")
    assert found["memory"] == Amount(20.0, "estimated", "0.5 W a GB of memory")
    assert add_energies(found) == Amount(120.0, "estimated", "5 W a busy core; 0.5 W a GB of memory")


def test_memory_that_draws_the_same_however_full(tmp_path):
    meter = EnergyMeter(PowerModel(memory_watts=10), powercap=tmp_path)
    meter.start()
    assert meter.stop(**SPENT)["memory"] == Amount(100.0, "estimated", "10 W of memory")


def test_rapl_is_measured(powercap):
    meter = EnergyMeter(PowerModel(), powercap=powercap)
    meter.start()
    (powercap / "intel-rapl:0" / "energy_uj").write_text(str(340 * 10**6))
    (powercap / "intel-rapl:0:0" / "energy_uj").write_text(str(10 * 10**6))  # past its end
    found = meter.stop(**SPENT)
    assert {name: amount.method for name, amount in found.items()} == {"cpu": "measured", "memory": "measured"}
    assert found["cpu"].value == pytest.approx(240)
    assert found["memory"].value == pytest.approx(960)


def test_a_short_block_says_that_counters_are_coarse(powercap):
    meter = EnergyMeter(PowerModel(), powercap=powercap)
    meter.start()
    assert "coarse" in meter.stop(wall_seconds=0.2, cpu_seconds=0.2, memory=1e9)["cpu"].source


@pytest.mark.parametrize(("watts", "expected"), [(None, None), (300.0, 3000.0)])
def test_a_gpu_without_a_counter_is_unknown_or_assumed(monkeypatch, tmp_path, watts, expected):
    monkeypatch.setattr("hf_tl.analysis.energy._gpus_in_use", lambda: [0])
    meter = EnergyMeter(PowerModel(gpu_watts=watts), powercap=tmp_path)
    meter.start()
    found = meter.stop(**SPENT)
    assert (found["gpu"] and found["gpu"].value) == expected
    assert (add_energies(found) is None) == (expected is None)


def test_a_gpu_s_counter_is_measured(monkeypatch, tmp_path):
    readings = iter([{0: 1000.0, 1: 5.0}, {0: 1600.0, 1: 5.0}])
    monkeypatch.setattr("hf_tl.analysis.energy._gpus_in_use", lambda: [0])
    monkeypatch.setattr("hf_tl.analysis.energy._read_gpus", lambda: next(readings))
    meter = EnergyMeter(PowerModel(), powercap=tmp_path)
    meter.start()
    assert meter.stop(**SPENT)["gpu"] == Amount(600.0, "measured", "NVML, the whole board")


def test_nvml_counts_millijoules(monkeypatch):
    board = SimpleNamespace(uuid="1-2")
    counter = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: {"GPU-1-2": "the board"}[uuid],
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: 2500,
        NVMLError=RuntimeError,
    )
    monkeypatch.setitem(sys.modules, "pynvml", counter)
    for name, value in (("is_available", True), ("device_count", 1)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: board)
    assert _read_gpus() == {0: 2.5}


def test_impossible_watts():
    with pytest.raises(InputError, match="cpu_watts should be watts, 0 or more, got -1"):
        PowerModel(cpu_watts=-1)
