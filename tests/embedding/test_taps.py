"""Which values are read, and reading them."""

import pytest
import timm
import torch
from torch import nn

from hf_tl import InputError, Network
from hf_tl.embedding.anatomy import find_taps
from hf_tl.embedding.reader import TapReader
from hf_tl.embedding.taps import select_names


def network(model, **fields):
    return Network(model, torch.stack, **fields)


def features(taps):
    return sum(tap.n_features for tap in taps if tap.name != "last")


def vgg16s():
    """Those of timm and of torchvision, of zeros: drawing 138 million weights takes seconds."""
    from torchvision.models import vgg16 as torchvision_vgg16

    for make in (lambda: timm.create_model("vgg16"), lambda: torchvision_vgg16(weights=None, init_weights=False)):
        with torch.device("meta"):
            model = make()
        model = model.to_empty(device="cpu")
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
        yield model


@pytest.mark.slow
def test_vgg16_gives_12416_features():
    images = torch.randn(2, 3, 64, 64)
    for model in vgg16s():
        for activation in ("after", "before"):
            taps, left_out = find_taps(network(model), images, activation=activation)
            names = [tap.name for tap in taps]
            by_name = {tap.name: tap.n_features for tap in taps}
            spatial = sum(by_name[name] for name in select_names(names, ["features.*"]))
            assert (spatial, features(taps) - spatial, features(taps)) == (4224, 8192, 12416)
            assert by_name["last"] == 4096
            assert list(left_out.values()) == ["the classifier of the source task"]


def test_the_presets_read_before_or_after_the_activation():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(2))
    images = torch.randn(4, 3, 6, 6)
    model(images)
    convolved = model[0](images).detach().mean(dim=(2, 3))
    rectified = model[0](images).detach().relu().mean(dim=(2, 3))
    for activation, expected in (("before", convolved), ("after", rectified)):
        taps, _ = find_taps(network(model), images, activation=activation)
        with TapReader(model, taps[:1]) as read:
            assert torch.allclose(read(images), expected, atol=1e-6)


def test_depth_runs_from_0_to_1():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 6), nn.ReLU())
    taps, _ = find_taps(network(model), torch.randn(2, 3), activation="after")
    assert [(tap.name, tap.depth) for tap in taps] == [("0", 0.0), ("1", 0.5), ("2", 1.0), ("last", 1.0)]


def test_each_call_of_a_shared_layer_is_a_tap_of_its_own():
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.Tanh(), shared, nn.Sigmoid())
    x = torch.randn(2, 3)
    taps, _ = find_taps(network(model), x, activation="after")
    assert [tap.name for tap in taps] == ["0#1", "0#2", "last"]
    with TapReader(model, taps) as read:
        first = shared(x).tanh()
        second = shared(first).sigmoid()
        assert torch.allclose(read(x), torch.cat([first, second, second], dim=1))


def test_calls_of_one_module_are_never_mixed():
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, shared, shared, nn.Softmax(dim=1))
    x = torch.randn(2, 3)
    taps, _ = find_taps(network(model), x, activation="after")
    assert {tap.reading.module for tap in taps[:3]} == {"0"}
    with TapReader(model, taps[:3]) as read:
        assert torch.allclose(read(x), torch.cat([shared(x), shared(shared(x)), shared(shared(shared(x)))], dim=1))


def test_random_layers_and_layers_without_the_batch_are_left_out_with_a_reason():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.bias, self.pooler = nn.Linear(3, 4), nn.Linear(2, 4), nn.Linear(4, 4)

        def forward(self, x):
            return torch.tanh(self.pooler(self.body(x) + self.bias(torch.ones(1, 2))))

    taps, left_out = find_taps(
        network(Model(), untrained=frozenset({"pooler"})), torch.randn(2, 3), activation="after"
    )
    assert [tap.name for tap in taps] == ["body", "last"]
    assert left_out == {
        "bias": "its output (1, 4) does not have the batch's 2 samples first",
        "pooler": "its weights are not in the checkpoint",
    }


@pytest.mark.parametrize(
    ("taps", "top", "expected"),
    [
        ("auto", 1.0, ["a.0", "a.1", "b.0", "b.1"]),
        ("last", 1.0, ["last"]),
        (["auto", "last"], 1.0, ["a.0", "a.1", "b.0", "b.1", "last"]),
        (["b.*", "a.0"], 1.0, ["a.0", "b.0", "b.1"]),
        ("auto", 0.5, ["b.0", "b.1"]),
        ("auto", 0.74, ["b.0", "b.1"]),
        ("auto", 0.1, ["b.1"]),
        (["*"], 1.0, ["a.0", "a.1", "b.0", "b.1"]),
    ],
)
def test_selections(taps, top, expected):
    assert select_names(["a.0", "a.1", "b.0", "b.1", "last"], taps, top) == expected


def test_wrong_selections_are_refused():
    with pytest.raises(InputError, match=r"'layer4.\*' matches none of the 1 layers; the closest are 'stem'"):
        select_names(["stem", "last"], ["layer4.*"])
    with pytest.raises(InputError, match=r"the share of layers to keep, got 1.5"):
        select_names(["stem"], "auto", 1.5)


def hooks(model):
    return [module for module in model.modules() if module._forward_hooks or module._forward_pre_hooks]


@pytest.mark.parametrize("fails", [False, True])
def test_hooks_go_and_training_flags_come_back(fails):
    model = timm.create_model("test_resnet", num_classes=3).train()
    model.layer2.eval()
    flags = [module.training for module in model.modules()]
    statistics = model.bn1.running_mean.clone()
    images = torch.randn(2, 3, 32, 32)
    taps, _ = find_taps(network(model), images, activation="after")
    try:
        with TapReader(model, taps) as read:
            assert not model.training
            assert hooks(model)
            values = read(images)
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert values.is_inference()
    assert not hooks(model)
    assert flags == [module.training for module in model.modules()]
    assert torch.equal(statistics, model.bn1.running_mean)


def test_hooks_go_when_one_cannot_be_registered():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    taps, _ = find_taps(network(model), torch.randn(2, 3), activation="after")
    del model[1]  # the module that the first tap reads is gone
    with pytest.raises(KeyError), TapReader(model, taps):
        pass
    assert not hooks(model)


def test_one_row_equals_the_same_row_in_a_batch():
    model = timm.create_model("test_vit", num_classes=3).eval()
    images = torch.randn(3, 3, 160, 160)
    taps, _ = find_taps(network(model), images, activation="after")
    with TapReader(model, taps) as read:
        together = read(images)
        alone = torch.cat([read(image[None]) for image in images])
    assert torch.allclose(together, alone, atol=1e-5)


def test_a_layer_that_does_not_run_on_a_batch_is_named():
    class Fickle(nn.Module):
        def __init__(self):
            super().__init__()
            self.always, self.sometimes = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            x = self.always(x)
            return self.sometimes(x) * 2 if x.shape[0] > 1 else x * 2

    model = Fickle()
    taps, _ = find_taps(network(model), torch.randn(2, 2), activation="after")
    with TapReader(model, taps) as read, pytest.raises(InputError, match=r"1 of 3 layers did not run .* 'sometimes'"):
        read(torch.randn(1, 2))
