"""One forward pass: where it ends, and for whom its hooks read."""

import threading

import numpy as np
import pytest
import timm
import torch
from torch import nn

from hf_tl import FullNetworkEmbedding, Network
from hf_tl.embedding.anatomy import find_taps
from hf_tl.embedding.reader import TapReader


class Counted(nn.Module):
    """Counts how often it runs."""

    def __init__(self):
        super().__init__()
        self.layer, self.n = nn.Linear(4, 4), 0

    def forward(self, x):
        self.n += 1
        return self.layer(x).relu()


def taps_of(model, example, selection):
    return find_taps(Network(model, torch.stack), example, activation="after", selection=selection)[0]


def hooks(model):
    return [module for module in model.modules() if module._forward_hooks or module._forward_pre_hooks]


def test_reading_ends_behind_the_last_tap():
    model, x = nn.Sequential(*(Counted() for _ in range(4))), torch.randn(2, 4)
    early, whole = taps_of(model, x, "0.layer, 1.layer"), taps_of(model, x, "auto")
    for taps, runs in ((early, [1, 1, 0, 0]), (whole, [1, 1, 1, 1])):
        for part in model:
            part.n = 0
        with TapReader(model, taps) as read:
            values = read(x)
        # the second block's activation is a function, which the reader repeats: its layer is the last to run
        assert [part.n for part in model] == runs
        expected = torch.cat([model[: i + 1](x) for i in range(len(taps))], dim=1)
        assert torch.allclose(values, expected)
        assert not hooks(model)


def test_a_network_that_catches_every_error_ends_too():
    class Stubborn(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = Counted(), Counted()

        def forward(self, x):
            try:
                x = self.first(x)
            except Exception:
                x = x * 0
            return self.second(x)

    model, x = Stubborn(), torch.randn(2, 4)
    taps = taps_of(model, x, "first.layer")
    model.second.n = 0
    with TapReader(model, taps) as read:
        for _ in range(3):
            assert torch.allclose(read(x), model.first.layer(x).relu())
    assert model.second.n == 0


def test_a_shared_layer_is_read_to_the_last_of_its_wanted_calls():
    shared = nn.Linear(3, 3)
    model, x = nn.Sequential(shared, nn.Tanh(), shared, nn.Tanh(), Counted3()), torch.randn(2, 3)
    taps = taps_of(model, x, "0#2")
    model[4].n = 0
    with TapReader(model, taps) as read:
        assert torch.allclose(read(x), shared(shared(x).tanh()).tanh())
    assert model[4].n == 0


class Counted3(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.n = nn.Linear(3, 3), 0

    def forward(self, x):
        self.n += 1
        return self.layer(x)


def test_what_runs_for_somebody_else_is_not_read():
    model, x, other = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.zeros(2, 4), torch.ones(2, 4)
    with TapReader(model, taps_of(model, x, "auto")) as read:
        values = read(x).clone()
        with torch.no_grad():
            model(other)
        assert torch.equal(read(x), values)


def test_two_threads_on_one_network_read_their_own_samples():
    torch.manual_seed(0)
    network = Network(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2)), torch.stack)
    network.model.train()
    sets = [list(torch.randn(120, 16)) for _ in range(2)]

    def read(samples):
        fne = FullNetworkEmbedding(network, recipe="raw", taps="linear", progress=False, batch_size=4)
        return np.asarray(fne.fit_transform(samples))

    expected, got = [read(samples) for samples in sets], [None, None]

    def work(i):
        got[i] = read(sets[i])

    for _ in range(4):
        threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for one, other in zip(expected, got, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
    assert network.model.training


@pytest.mark.slow
@pytest.mark.parametrize("wrap", ["torch.compile(model)", "model.compile()"])
def test_a_compiled_network_is_read_as_the_plain_one(wrap):
    torch.manual_seed(0)
    model, samples = timm.create_model("test_resnet", num_classes=3).eval(), list(torch.randn(3, 3, 32, 32))
    fne = FullNetworkEmbedding(Network(model, torch.stack), recipe="raw", progress=False)
    expected = np.asarray(fne.activations(samples))
    if wrap == "model.compile()":
        model.compile(backend="eager")
    else:
        model = torch.compile(model, backend="eager")
    with torch.no_grad():
        model(torch.stack(samples))
    got = FullNetworkEmbedding(Network(model, torch.stack), recipe="raw", progress=False).activations(samples)
    np.testing.assert_allclose(got, expected, atol=1e-5)
