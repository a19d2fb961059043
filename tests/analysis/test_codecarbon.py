"""Beside codecarbon, where it is installed: the same block costs the same, up to what it misses between two looks."""

import builtins
import os
import socket
import time

import numpy as np
import pytest

from hf_tl import Footprint, PowerModel
from hf_tl.errors import InputError


BUSY = 1.5  # CPU seconds of the block
COARSE = 0.15  # of the energy: what passes while codecarbon looks, and its clock's ticks of 10 ms


@pytest.fixture
def offline(monkeypatch):
    """Whoever calls the network fails."""

    def refuse(*args, **kwargs):
        raise OSError("there is no network in this test")

    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def work():
    """Products of matrices, which let other threads run."""
    values, start = np.ones((300, 300)), time.process_time()
    while time.process_time() < start + BUSY:
        values @ values


@pytest.mark.slow
@pytest.mark.skipif(os.path.exists("/sys/class/powercap/intel-rapl:0"), reason="counters take the place of the models")
def test_a_block_costs_what_codecarbon_says(offline):
    codecarbon = pytest.importorskip("codecarbon")
    power = PowerModel.from_codecarbon()
    tracker = codecarbon.OfflineEmissionsTracker(
        country_iso_code="ESP",
        tracking_mode="process",
        measure_power_secs=60,  # at the start and at the end
        save_to_file=False,
        log_level="critical",
        allow_multiple_runs=True,
        pue=1.2,
    )
    tracker.start()
    with Footprint("block", country="ESP", pue=1.2, power=power) as ours:
        work()
    tracker.stop()
    theirs = tracker.final_emissions_data
    for part, kwh in (("cpu", theirs.cpu_energy), ("memory", theirs.ram_energy)):
        assert 1.2 * ours.energy[part].value == pytest.approx(3.6e6 * kwh, rel=COARSE)  # codecarbon's are with it
    assert ours.co2_grams.value == pytest.approx(1000 * theirs.emissions, rel=COARSE)


def test_its_power_model_is_that_of_its_tracker(monkeypatch):
    pytest.importorskip("codecarbon")
    from codecarbon.core import cpu, util

    monkeypatch.setattr(cpu.TDP, "_main", lambda self: ("a processor", 130))
    monkeypatch.setattr(util, "count_cpus", lambda: 16)
    monkeypatch.setattr(util, "count_physical_cpus", lambda: 2)
    assert PowerModel.from_codecarbon().cpu_watts == 130 * 2 / 16
    assert PowerModel.from_codecarbon(gpu_watts=300).gpu_watts == 300


def test_without_it_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("codecarbon"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(InputError, match=r"pip install 'hf-tl\[carbon\]'"):
        PowerModel.from_codecarbon()
