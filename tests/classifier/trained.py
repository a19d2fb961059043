"""Networks with a head of their own, of each kind that a Trainer leaves behind, and inputs for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tiny import save_vit, save_wav2vec2

from hf_tl import Network, load_network


CLASSES = ("low", "middle", "high")


@dataclass(frozen=True)
class Trained:
    """A network whose head tells three classes apart.

    Attributes:
        network: as if it had been trained.
        inputs: raw ones.
        task: of transformers' pipeline.
    """

    network: Network
    inputs: list
    task: str


def pictures(n: int, *, side: int = 40, seed: int = 0) -> list[Image.Image]:
    """Noise."""
    generator = np.random.default_rng(seed)
    return [Image.fromarray(generator.integers(0, 256, (side, side + 8, 3), dtype=np.uint8)) for _ in range(n)]


def trained(kind: str, *, folder: Path, timm_folder: Path, text_folder: Path) -> Trained:
    """A network of a kind: "timm" in transformers' wrapper, "vit", "bert" or "wav2vec2"."""
    if kind == "timm":
        network, inputs, task = load_network(str(timm_folder), classes=CLASSES, image_size=64), pictures(5), "image"
    elif kind == "vit":
        network, inputs, task = load_network(str(save_vit(folder)), classes=CLASSES), pictures(5), "image"
    elif kind == "bert":
        texts = ["the film was very good", "a dull film", "not bad", "fine", "was the film not very very dull"]
        network, inputs, task = load_network(str(text_folder), classes=CLASSES), texts, "text"
    else:
        generator = np.random.default_rng(0)
        sounds = [generator.normal(0, 0.1, 1600 + 300 * i).astype(np.float32) for i in range(4)]
        network, inputs, task = load_network(str(save_wav2vec2(folder)), classes=CLASSES), sounds, "audio"
    spread(network)
    return Trained(network, inputs, f"{task}-classification")


def spread(network: Network) -> None:
    """Draws the head anew, wide enough for probabilities that differ."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in network.model.named_parameters():
            if parameter.shape[:1] == (len(CLASSES),):
                parameter.copy_(torch.randn(parameter.shape) * (3 if name.endswith("weight") else 1))
