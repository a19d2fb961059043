"""One number per channel and row."""

import pytest
import torch

from hf_tl.embedding.pooling import pool


def test_convolution_maps_are_averaged_over_space():
    value = torch.randn(4, 3, 5, 6)
    assert torch.allclose(pool(value, n=4, channels_last=False), value.mean(dim=(2, 3)))


@pytest.mark.parametrize("shape", [(4, 7, 3), (4, 2, 5, 3)])
def test_fully_connected_outputs_are_averaged_over_their_positions(shape):
    value = torch.randn(shape)
    assert torch.allclose(pool(value, n=4, channels_last=True), value.flatten(1, -2).mean(dim=1))


def test_a_vector_stays_as_it_is():
    value = torch.randn(4, 3)
    assert torch.equal(pool(value, n=4, channels_last=True), value)
    assert torch.equal(pool(value, n=4, channels_last=False), value)


def test_windows_count_as_positions_of_their_row():
    value = torch.randn(4, 9, 5, 3)  # rows, windows, tokens, channels
    expected = value.mean(dim=(1, 2))
    assert torch.allclose(pool(value.flatten(0, 1), n=4, channels_last=True), expected, atol=1e-6)
    maps = value.permute(0, 1, 3, 2)
    assert torch.allclose(pool(maps.flatten(0, 1), n=4, channels_last=False), expected, atol=1e-6)


def test_padding_does_not_count():
    value, mask = torch.randn(2, 4, 3), torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]])
    pooled = pool(value, n=2, channels_last=True, mask=mask)
    assert torch.allclose(pooled, torch.stack([value[0, :2].mean(0), value[1, 1:].mean(0)]), atol=1e-6)


def test_padding_that_cannot_be_matched_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 5, 3\) cannot be matched with tokens \(2, 4\)"):
        pool(torch.randn(2, 5, 3), n=2, channels_last=True, mask=torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]))
    full = torch.ones(2, 4)
    assert pool(torch.randn(2, 5, 3), n=2, channels_last=True, mask=full).shape == (2, 3)


def test_half_precision_is_averaged_in_float32():
    value = torch.full((1, 2, 64, 64), 1.0009765625, dtype=torch.bfloat16)
    value[:, 1] = 3
    pooled = pool(value, n=1, channels_last=False)
    assert pooled.dtype == torch.float32
    assert torch.equal(pooled, torch.tensor([[1.0, 3.0]]))


@pytest.mark.parametrize("size", [(56, 56), (16, 16), (14, 14), (13, 5), (7, 7), (2, 2), (500,)])
def test_maps_are_averaged_nearly_as_well_as_in_float64(size):
    maps = torch.rand(16, 64, *size, generator=torch.Generator().manual_seed(0))
    exact = maps.flatten(2).double().mean(dim=2)
    got = pool(maps, n=16, channels_last=False)
    ulp = (torch.nextafter(got, torch.tensor(2.0)) - got).double()
    assert got.dtype == torch.float32
    # one rounding to float32 costs about .25 on average, torch.mean .33 to .56
    assert ((got.double() - exact).abs() / ulp).mean() < 0.32


def test_tokens_in_one_row_or_beside_heads_are_masked_where_they_stand():
    value, mask = torch.randn(2, 5, 3), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    expected = pool(value, n=2, channels_last=True, mask=mask)
    assert torch.equal(pool(value.flatten(0, 1), n=2, channels_last=True, mask=mask), expected)
    heads = torch.stack([value, value + 1], dim=1)  # samples, heads, tokens, channels
    assert torch.allclose(pool(heads, n=2, channels_last=True, mask=mask), expected + 0.5, atol=1e-6)
    streams = torch.stack([value, value + 1], dim=2)
    assert torch.allclose(pool(streams, n=2, channels_last=True, mask=mask), expected + 0.5, atol=1e-6)
    one = torch.randn(2, 1, 3)  # what was decoded of the tokens has no padding
    assert torch.equal(pool(one, n=2, channels_last=True, mask=mask), one[:, 0])


@pytest.mark.parametrize("shape", [(2, 5, 5, 3), (2, 4, 3)])
def test_which_axis_is_that_of_the_tokens_is_never_guessed(shape):
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    with pytest.raises(ValueError, match="cannot be matched with tokens"):
        pool(torch.randn(shape), n=2, channels_last=True, mask=mask)
    with pytest.raises(ValueError, match="cannot be matched with tokens"):  # a map is as high as the text is long
        pool(torch.randn(2, 3, 5, 4), n=2, channels_last=False, mask=mask)
