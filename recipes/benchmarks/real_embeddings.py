"""Raw full-network activations of the real data sets, read once and kept for the benchmarks that evaluate them.

They go to $HF_TL_BENCH_CACHE, or to a folder beside other temporary files.
"""

import os
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from machine import real_data

from hf_tl import Embedding, FullNetworkEmbedding, Network, load_network, load_task


SETS = ("flowers12", "dtd10", "fashion900")
IMAGE_SIZE = 160
IMAGENET, BIRDS = "mobilenetv2_100.tf2_in1k", "mobilenetv2_100.inat_bird"


def raw_embeddings(name: str, *, trained: bool = True, weights: str = IMAGENET) -> tuple[Embedding, Embedding]:
    """Raw activations of training and test samples, all layers and the last, of MobileNetV2.

    Args:
        name: one of the folders in sets/.
        trained: weights of a training, or the same network as it is before training (seed 0).
        weights: one of the folders in weights/.
    """
    cache = Path(os.environ.get("HF_TL_BENCH_CACHE", Path(tempfile.gettempdir()) / "hf-tl-bench"))
    folder = cache / f"{name}-{'random' if not trained else 'trained' if weights == IMAGENET else weights}"
    if not (folder / "test" / "embedding.json").is_file():
        network = load_network(str(real_data() / "weights" / weights), image_size=IMAGE_SIZE)
        task = load_task(str(real_data() / "sets" / name), modality="image")
        reader = FullNetworkEmbedding(
            network if trained else untrained(network), recipe="raw", taps=["auto", "last"], batch_size=32
        )
        for split, samples in (("train", task.train), ("test", task.test)):
            reader.activations(samples).save(folder / split)
    return Embedding.load(folder / "train"), Embedding.load(folder / "test")


def features(name: str, *, recipe: str = "paper", taps: str = "auto", trained: bool = True):
    """The embedding of training and test samples by a recipe, with the training samples' statistics."""
    train, test = raw_embeddings(name, trained=trained)
    fne = FullNetworkEmbedding(recipe=recipe, taps=taps)
    return fne.fit_transform(train), fne.transform(test)


def untrained(network: Network) -> Network:
    """The same architecture with its initial random weights."""
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return replace(network, model=timm.create_model("mobilenetv2_100", pretrained=False).eval())
