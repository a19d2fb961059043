"""Batch size and memory layout are chosen on the first samples, without reading any of them twice."""

import threading

import numpy as np
import pytest
import torch
from torch import nn

from hf_tl import FullNetworkEmbedding, InputError, Network
from hf_tl.embedding.autotune import Autotune
from hf_tl.embedding.batches import Execution
from hf_tl.embedding.store import Store


CHOICE = {"batch_size": 8, "channels_last": True}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))


def parts_of(n_samples, seconds, model=None, **options):
    """The parts of a pass in which a sample takes `seconds` of (batch size, channels last)."""
    execution = Execution(**options)
    parts, found = Autotune(execution, model or network(), execution.batches(n_samples)), []
    for how, batches in parts:
        found.append((how.size, how.channels_last, batches))
        for batch in batches:
            parts.took(seconds(len(batch), how.channels_last is True) * len(batch), len(batch))
    return parts, found


def favour(monkeypatch, *wanted):
    """Whatever a pass measures, this size and layout look fastest."""

    trial = Autotune._trial

    def remember(self, *tried):
        self.tried = tried
        return trial(self, *tried)

    monkeypatch.setattr(Autotune, "_trial", remember)
    monkeypatch.setattr(
        Autotune, "_fastest", lambda self: sum(a != b for a, b in zip(self.tried, wanted, strict=True))
    )


@pytest.mark.parametrize("layout", [True, False, "auto"])
@pytest.mark.parametrize("size", ["auto", 7, 32])
@pytest.mark.parametrize("n_samples", [1, 127, 128, 129, 161, 300])
def test_every_sample_is_read_once_and_in_order(n_samples, size, layout):
    parts, found = parts_of(n_samples, lambda n, last: 1 / n, batch_size=size, channels_last=layout)
    assert [i for *_, batches in found for batch in batches for i in batch] == list(range(n_samples))
    assert all(len(batch) <= used for used, _, batches in found for batch in batches)
    if layout != "auto":
        assert all(used == layout for _, used, _ in found)
    if size != "auto":
        assert [used for used, *_ in found] == [size]
    if parts.choice:
        assert found[-1][:2] == (parts.choice["batch_size"], parts.choice["channels_last"])


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("size", [8, 32])
def test_the_fastest_is_chosen_and_said_in_one_line(size, last):
    parts, found = parts_of(400, lambda n, layout: 0.002 * (1 + (n != size) + (layout != last)))
    assert parts.choice == {"batch_size": size, "channels_last": last}
    assert [(used, layout) for used, layout, _ in found] == [(8, False), (8, True), (32, last), (size, last)]
    assert str(parts).startswith(
        f"chosen on the first samples: batches of {size}, channels {'last' if last else 'fi'}"
    )
    assert "2 ms a sample" in str(parts)


def test_a_layout_that_is_hardly_faster_is_not_worth_a_copy():
    assert not parts_of(400, lambda n, layout: 0.95 if layout else 1.0)[0].choice["channels_last"]


def test_a_network_without_maps_has_one_layout():
    parts, found = parts_of(400, lambda n, layout: 1.0, model=nn.Linear(3, 3))
    assert [(used, layout) for used, layout, _ in found] == [(8, False), (32, False), (8, False)]
    assert parts.choice == {"batch_size": 8, "channels_last": False}


def test_a_trial_whose_samples_were_all_skipped_is_not_the_fastest():
    execution = Execution()
    parts = Autotune(execution, network(), execution.batches(400))
    for how, batches in parts:
        for batch in batches if how.size == 32 else ():
            parts.took(1.0, len(batch))
    assert parts.choice == {"batch_size": 32, "channels_last": False}


@pytest.mark.parametrize("choice", [CHOICE, {"batch_size": 32, "channels_last": False}])
def test_a_choice_changes_nothing_but_rounding(tmp_path, monkeypatch, choice):
    images = list(torch.randn(200, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
    fne = FullNetworkEmbedding(Network(network(), torch.stack), recipe="raw", progress=False)
    fixed = fne.set_params(batch_size=32, channels_last=False).activations(images)
    favour(monkeypatch, *choice.values())
    fne.set_params(batch_size="auto", channels_last="auto")
    for out in (None, tmp_path):
        chosen = fne.activations(images, out=out)
        np.testing.assert_allclose(chosen, fixed, atol=1e-6)
    assert Store.open(tmp_path).choice == choice
    fne.fit(images)
    assert fne._choice == choice  # and what is read next is read likewise


def test_a_pass_that_resumes_keeps_its_choice(tmp_path, monkeypatch):
    images = list(torch.randn(200, 3, 8, 8))

    write = Store.write_rows

    def stopped(self, rows, values):
        if rows[0] == 144:
            raise KeyboardInterrupt
        write(self, rows, values)

    monkeypatch.setattr(Store, "write_rows", stopped)
    fne = FullNetworkEmbedding(Network(network(), torch.stack), recipe="raw", progress=False, num_workers=0)
    favour(monkeypatch, 8, True)
    with pytest.raises(KeyboardInterrupt):
        fne.activations(images, out=tmp_path)
    store = Store.open(tmp_path)
    assert store.choice == CHOICE
    assert len(store.positions) == 144
    monkeypatch.setattr(Store, "write_rows", write)
    favour(monkeypatch, 32, False)
    seen = []
    prepare = Network(network(), lambda batch: seen.append(len(batch)) or torch.stack(batch))
    again = FullNetworkEmbedding(prepare, recipe="raw", progress=False, num_workers=0).activations(
        images, out=tmp_path
    )
    assert seen[-7:] == [8] * 7
    assert Store.open(tmp_path).choice == CHOICE
    fixed = fne.set_params(batch_size=32, channels_last=False).activations(images)
    np.testing.assert_allclose(again, fixed, atol=1e-6)


@pytest.mark.parametrize(("workers", "thread"), [("auto", "hf_tl-reading_0"), (0, "MainThread")])
def test_a_thread_reads_ahead_unless_it_is_told_not_to(workers, thread):
    names = []

    def prepare(batch):
        names.append(threading.current_thread().name)
        return torch.stack(batch)

    fne = FullNetworkEmbedding(Network(network(), prepare), progress=False, batch_size=4, num_workers=workers)
    fne.activations(list(torch.randn(12, 3, 8, 8)))
    assert set(names[-3:]) == {thread}
    assert not [running for running in threading.enumerate() if running.name.startswith("hf_tl-reading")]


def test_settings_that_are_none_are_refused():
    for options in ({"batch_size": "many"}, {"num_workers": 1.5}, {"channels_last": "yes"}):
        with pytest.raises(InputError, match=f"{next(iter(options))} "):
            Execution(**options).check()
