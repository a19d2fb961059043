"""What of a network can be read, and that each sample is read by itself."""

import numpy as np
import pytest
import timm
import torch
from sklearn.base import clone
from torch import nn

from hf_tl import FullNetworkEmbedding, InputError, Network
from hf_tl.embedding.anatomy import find_taps, hidden_layers
from hf_tl.trace import trace


class Gated(nn.Module):
    """A gated MLP: down(act(gate(x)) * up(x)), the two factors in either order."""

    def __init__(self, *, up_first):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(6, 10), nn.Linear(6, 10), nn.Linear(10, 6)
        self.act, self.up_first = nn.SiLU(), up_first

    def forward(self, x):
        if self.up_first:
            up = self.up_proj(x)
            return self.down_proj(self.act(self.gate_proj(x)) * up)
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))


@pytest.mark.parametrize("up_first", [False, True])
def test_the_hidden_values_of_a_gated_mlp_are_what_its_last_layer_reads(up_first):
    model = nn.Sequential(Gated(up_first=up_first))
    record = trace(model, torch.randn(2, 6))
    [(layer, reader)] = hidden_layers("0", [], record.layers)
    assert layer.name == "0.gate_proj"
    assert reader.name == "0.down_proj"


def test_a_plain_mlp_is_not_gated():
    model = nn.Sequential(nn.Sequential(nn.Linear(6, 10), nn.GELU(), nn.Linear(10, 6)))
    [(layer, reader)] = hidden_layers("0", [], trace(model, torch.randn(2, 6)).layers)
    assert (layer.name, reader) == ("0.0", None)


@pytest.mark.parametrize("channels", [16, 24])
def test_channels_last_maps_as_high_as_they_have_channels_are_read_over_space(channels):
    torch.manual_seed(0)
    model = timm.create_model(
        "swin_tiny_patch4_window7_224",
        embed_dim=channels,
        depths=(1, 1),
        num_heads=(2, 2),
        window_size=4,
        img_size=64,
        num_classes=3,
    ).eval()
    images, seen = list(torch.randn(3, 3, 64, 64)), []
    network = Network(model, torch.stack)
    made = FullNetworkEmbedding(network, recipe="raw", taps=["layers.0.blocks.0"], progress=False).activations(images)
    model.layers[0].blocks[0].register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        model(torch.stack(images))
    np.testing.assert_allclose(made, seen[0].mean(dim=(1, 2)), atol=1e-5)


class Routed(nn.Module):
    """Two experts, each of which gets the tokens of all samples that a router sends to it."""

    def __init__(self):
        super().__init__()
        self.embed, self.gate = nn.Linear(3, 8), nn.Linear(8, 2, bias=False)
        self.experts, self.head = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)]), nn.Linear(8, 2)

    def forward(self, x):
        tokens = self.embed(x)
        flat = tokens.flatten(0, 1)
        chosen, out = self.gate(flat).argmax(dim=1), torch.zeros_like(flat)
        for i, expert in enumerate(self.experts):
            if (chosen == i).any():
                out[chosen == i] = expert(flat[chosen == i])
        return self.head((tokens + out.view_as(tokens)).mean(dim=1))


@pytest.mark.parametrize("seed", range(6))
def test_what_is_read_of_routed_experts_does_not_depend_on_the_batch(seed):
    torch.manual_seed(seed)
    network, samples = Network(Routed(), torch.stack), list(torch.randn(4, 16, 3))
    fne = FullNetworkEmbedding(network, recipe="raw", progress=False, batch_size=4)
    together = fne.activations(samples)
    alone = fne.set_params(batch_size=1).activations(samples)
    assert not any("experts" in layer.name for layer in together.layers)
    np.testing.assert_allclose(together, alone, atol=1e-5)
    example = torch.stack(samples[:2])
    _, left_out = find_taps(network, example, activation="after")
    assert any("experts" in name for name in left_out)


def test_layers_whose_first_axis_is_not_the_samples_are_refused_by_name():
    class Stacked(nn.Module):
        """Two streams of each sample, in front of the samples."""

        def __init__(self):
            super().__init__()
            self.first, self.streams = nn.Linear(3, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.streams(torch.stack([self.first(x), -self.first(x)])).sum(dim=0)

    network = Network(Stacked(), torch.stack)
    fne = FullNetworkEmbedding(network, recipe="raw", progress=False)
    assert [layer.name for layer in fne.activations(list(torch.randn(4, 3))).layers] == ["first#1", "first#2"]
    assert "not read: streams: its first axis is not the samples'" in fne.describe(list(torch.randn(4, 3)))
    with pytest.raises(InputError, match="layer 'streams' of network cannot be read: its first axis is not the samp"):
        fne.set_params(taps="streams").activations(list(torch.randn(4, 3)))


def test_a_layer_that_depends_on_the_others_in_the_batch_is_left_out_by_name():
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.centred, self.head = nn.Linear(3, 16), nn.Linear(16, 16), nn.Linear(16, 2)

        def forward(self, x):
            x = self.first(x).relu()
            return self.head(self.centred(x - x.mean(dim=0)).relu())

    network, rows = Network(Centred(), torch.stack), list(torch.randn(4, 3))
    fne = FullNetworkEmbedding(network, recipe="raw", progress=False)
    assert [layer.name for layer in fne.activations(rows).layers] == ["first"]
    assert "not read: centred: what it gives for a sample depends on the others in the batch" in fne.describe(rows)
    alone = FullNetworkEmbedding(network, recipe="raw", progress=False, batch_size=1).activations(rows)
    assert [layer.name for layer in alone.layers] == ["first", "centred"]


def test_a_network_that_draws_masks_is_read_all_the_same():
    class Drops(nn.Sequential):
        def forward(self, x):
            return super().forward(x * (torch.rand_like(x) > 0.5))

    network = Network(Drops(nn.Linear(9, 4), nn.ReLU(), nn.Linear(4, 2)), torch.stack)
    fne = FullNetworkEmbedding(network, recipe="raw", progress=False)
    assert [layer.name for layer in fne.activations(list(torch.randn(4, 9))).layers] == ["0"]


def test_a_network_that_padding_leaks_into_says_so_when_it_is_fitted():
    class Longest(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out = nn.Embedding(9, 4), nn.Linear(4, 4)

        def forward(self, input_ids, attention_mask):
            return self.out(self.embed(input_ids) / input_ids.shape[1]).relu()

    def prepare(texts):
        ids = nn.utils.rnn.pad_sequence(texts, batch_first=True)
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}

    fne = FullNetworkEmbedding(Network(Longest(), prepare, name="longest"), progress=False, recipe="raw")
    texts = [torch.tensor([1, 2, 3]), torch.tensor([4])]
    with pytest.warns(UserWarning, match="padding changes what 1 of 1 layers of longest give, the first 'out'"):
        fne.fit(texts)
    assert "padding changes" in fne.describe(texts)


class Latents(nn.Module):
    """Reads tokens, then works on three latents a sample, of which none is padding; `side` is as long as neither."""

    def __init__(self):
        super().__init__()
        self.embed, self.tokens, self.latents = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, input_ids, attention_mask):
        read = self.tokens(self.embed(input_ids)).relu() * attention_mask[:, :, None]
        return self.latents(read.sum(dim=1, keepdim=True).repeat(1, 3, 1)).relu().mean(dim=1)


def padded(texts):
    ids = nn.utils.rnn.pad_sequence(texts, batch_first=True)
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def test_a_layer_whose_positions_are_not_the_tokens_is_left_out_by_name_where_something_is_padded():
    texts = [torch.tensor([1, 2, 3, 4]), torch.tensor([5]), torch.tensor([1, 2])]
    fne = FullNetworkEmbedding(Network(Latents(), padded), progress=False, recipe="raw")
    assert [layer.name for layer in fne.activations(texts).layers] == ["tokens"]
    assert "not read: latents: positions of shape (2, 3, 4) cannot be matched with tokens (2, 4)" in fne.describe(
        texts
    )
    alone = clone(fne).set_params(batch_size=1).activations(texts)
    assert [layer.name for layer in alone.layers] == ["tokens", "latents"]
    with pytest.raises(InputError, match="layer 'latents' of network cannot be read: positions of shape"):
        fne.set_params(batch_size=3, taps="latents").activations(texts)


def test_padding_that_only_a_later_sample_shows_is_found():
    class Third(nn.Module):
        """What it gives for a sample depends on the others where it has three tokens."""

        def __init__(self):
            super().__init__()
            self.embed, self.out = nn.Embedding(9, 4), nn.Linear(4, 4)

        def forward(self, input_ids, attention_mask):
            lengths = attention_mask.sum(dim=1)
            wrong = (lengths == 3) & (lengths < input_ids.shape[1])
            return self.out(self.embed(input_ids) + wrong[:, None, None]).relu()

    texts = [torch.arange(1, 5), torch.arange(1, 5), torch.arange(1, 3), torch.arange(1, 4)]
    fne = FullNetworkEmbedding(Network(Third(), padded, name="third"), progress=False, recipe="raw")
    with pytest.warns(UserWarning, match="padding changes what 1 of 1 layers of third give"):
        fne.fit(texts)


def test_a_network_that_takes_no_single_sample_is_refused_with_its_reason():
    class Clips(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, frames):
            return self.second(self.first(frames)).view(-1, 2, 4)  # two frames a clip

    with pytest.raises(InputError, match=r"runs on 2 samples at a time and not on one.*RuntimeError"):
        find_taps(Network(Clips(), torch.stack), torch.randn(2, 4), activation="after")
