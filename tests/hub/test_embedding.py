"""A fitted embedding on the Hub: what is pushed is what comes back."""

import json

import numpy as np
import pytest
from PIL import Image

from hf_tl import CardInfo, FullNetworkEmbedding, InputError, load_network, push_embedding


def pictures(n, seed=0):
    generator = np.random.default_rng(seed)
    return [Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(n)]


@pytest.fixture
def network(timm_folder):
    return load_network(str(timm_folder))


@pytest.mark.slow
@pytest.mark.parametrize("hub", ["lfs", "xet"], indirect=True)
def test_what_is_pushed_is_what_comes_back(hub, network):
    fne = FullNetworkEmbedding(network, progress=False).fit(pictures(6))
    info = CardInfo(datasets=["me/pictures"], results={"accuracy": 0.5}, training_seconds=5)
    done = push_embedding(fne, "me/fne", info=info)
    assert set(done.sizes) == {"README.md", "embedding_config.json", "statistics.safetensors"}
    assert len(hub.commits("me/fne")) == 2
    old = fne.transform(pictures(3, 1))
    again = FullNetworkEmbedding(network, progress=False).fit(pictures(9, 2))
    again.push_to_hub("me/fne")
    new = again.transform(pictures(3, 1))
    assert not np.array_equal(old, new)
    for revision, expected in ((done.commit, old), (None, new), ("main", new)):
        loaded = FullNetworkEmbedding.from_pretrained("me/fne", network=network, revision=revision)
        loaded.set_params(progress=False)
        assert np.abs(np.asarray(loaded.transform(pictures(3, 1))) - np.asarray(expected)).max() == 0.0
    card = hub.files("me/fne", done.commit)["README.md"].decode()
    for part in (
        "library_name: hf_tl",
        'from_pretrained("me/fne")',
        "6 training samples",
        "fitted in | 5 s",
        "value: 0.5",
    ):
        assert part in card, part


def test_a_downloaded_file_opens_no_folder_here(hub, network, timm_folder):
    fne = FullNetworkEmbedding(network, progress=False).fit(pictures(4))
    push_embedding(fne, "me/fne", private=True)
    assert hub.repos["me/fne"].private
    said = json.loads(hub.files("me/fne")["embedding_config.json"])["base_model"]
    assert said == f"a folder: {timm_folder.name}"  # and not whose, and where
    with pytest.raises(InputError, match="neither a Hub id nor a timm name; give it with network="):
        FullNetworkEmbedding.from_pretrained("me/fne")
    assert FullNetworkEmbedding.from_pretrained("me/fne", network=network).layers_ == fne.layers_


def test_a_repository_of_something_else_is_a_network(hub, network):
    push_embedding(FullNetworkEmbedding(network, progress=False).fit(pictures(4)), "me/fne")
    with pytest.raises(InputError, match=r"model 'me/nothing' is not a folder"):
        FullNetworkEmbedding.from_pretrained("me/nothing")
    with pytest.raises(InputError, match="called 'user/name', got 'fne'"):
        push_embedding(FullNetworkEmbedding(network, progress=False).fit(pictures(4)), "fne")
