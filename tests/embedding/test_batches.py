"""How rows go through a network: precision, layout, compilation, workers, adapters."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

from hf_tl import FullNetworkEmbedding, InputError, Network
from hf_tl.embedding.anatomy import find_taps
from hf_tl.embedding.pooling import pool
from hf_tl.embedding.reader import TapReader


def network(name="test_resnet"):
    torch.manual_seed(0)
    return Network(timm.create_model(name, num_classes=3).eval(), torch.stack)


def images(n=6, size=32):
    return list(torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0)))


def read(net, rows, **options):
    fne = FullNetworkEmbedding(net, recipe="raw", batch_size=4, progress=False, **options)
    return np.asarray(fne.activations(rows))


def test_layout_changes_rounding_alone_and_leaves_the_network_as_it_is():
    net = network()
    strides = [parameter.stride() for parameter in net.model.parameters()]
    expected = read(net, images())
    np.testing.assert_allclose(read(net, images(), channels_last=True), expected, atol=1e-5, rtol=1e-4)
    assert strides == [parameter.stride() for parameter in net.model.parameters()]


@pytest.mark.parametrize("channels_last", [False, True])
def test_bfloat16_runs_a_copy_in_that_precision(channels_last):
    net = network()
    expected = read(net, images())
    got = read(net, images(), dtype="bfloat16", channels_last=channels_last)
    assert got.dtype == np.float32
    assert not np.array_equal(got, expected)
    assert np.corrcoef(got.ravel(), expected.ravel())[0, 1] > 0.9999
    assert {parameter.dtype for parameter in net.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("shape", [(2, 8, 56, 56), (2, 8, 7, 7), (2, 8, 1, 1), (2, 8, 13, 5), (2, 8, 50)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_bfloat16_is_pooled_nearly_as_well_as_in_float64(shape, layout):
    value = torch.rand(shape).to(torch.bfloat16)
    if len(shape) == 4:
        value = value.to(memory_format=layout)
    exact = value.double().mean(dim=tuple(range(2, len(shape))))
    maps = pool(value, n=2, channels_last=False)
    tokens = pool(value.flatten(2).transpose(1, 2).contiguous(), n=2, channels_last=True)
    for got in (maps, tokens):
        assert got.dtype == torch.float32
        assert ((got - exact).abs() / exact).max() < 2**-9  # less than the rounding of one bfloat16 number


def test_an_error_in_a_worker_is_the_same_sentence():
    rows = images()
    rows[3] = None
    for workers in (0, 2):
        with pytest.raises(InputError, match="sample 3 of samples cannot be read: ") as error:
            read(network(), rows, num_workers=workers)
        assert "\n" not in str(error.value)
        assert len(read(network(), rows, num_workers=workers, on_bad_samples="skip")) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, "dtype should be 'float32' or 'bfloat16'"),
        ({"num_workers": -1}, "num_workers must be at least 0"),
    ],
)
def test_wrong_options_end_in_a_sentence(options, message):
    with pytest.raises(InputError, match=message):
        read(network(), images(), **options)


def test_a_network_that_fails_on_some_samples_says_on_which():
    class Fails(nn.Sequential):
        def forward(self, x):
            return super().forward(x if x.max() < 9 else x[:, :2])

    rows = [*torch.rand(7, 3), torch.full((3,), 10.0)]
    net = Network(Fails(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.stack)
    with pytest.raises(InputError, match=r"network cannot run on samples 4 to 7 of samples, \(4, 3\): RuntimeError"):
        read(net, rows)


@pytest.mark.slow
def test_a_compiled_network_runs_its_hooks_even_if_it_was_compiled_without_them():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU()).eval()  # little for a C++ compiler to do
    net, rows = Network(model, torch.stack), list(torch.randn(4, 3))
    with torch.inference_mode():
        torch.compile(model)(torch.stack(rows))  # without hooks
    expected = read(net, rows)
    for _ in range(2):
        np.testing.assert_allclose(read(net, rows, torch_compile=True), expected, atol=1e-5)
    assert not any(module._forward_hooks for module in model.modules())


def test_calls_that_the_example_did_not_make_are_named():
    class Repeats(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.times = nn.Linear(3, 3), 1

        def forward(self, x):
            for _ in range(self.times):
                x = self.layer(x)
            return x * 1

    model = Repeats()
    taps, _ = find_taps(Network(model, torch.stack), torch.randn(2, 3), activation="after", selection="auto")
    model.times = 2
    with TapReader(model, taps) as reader, pytest.raises(InputError, match=r"'layer' ran 2 times .* and 1 times on"):
        reader(torch.randn(2, 3))


def test_a_layer_with_an_adapter_is_read_whole_and_its_matrices_are_not():
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4), nn.Tanh())
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)).eval()
    rows = list(torch.randn(5, 6))
    fne = FullNetworkEmbedding(Network(adapted, torch.stack), recipe="raw", progress=False)
    made = fne.activations(rows)
    assert [layer.name.removeprefix("base_model.model.") for layer in made.layers] == ["0", "2"]
    with torch.no_grad():
        expected = adapted.base_model.model[0](torch.stack(rows)).relu()
        without = adapted.base_model.model[0].base_layer(torch.stack(rows)).relu()
    np.testing.assert_allclose(made.values[:, :8], expected, atol=1e-6)
    assert not np.allclose(made.values[:, :8], without, atol=1e-3)
