"""What a network makes of a task's samples before any training: layers alike, signs of its source, units, copies."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from hf_tl.analysis.cka import FEWEST, LayerSimilarity, compare_layers
from hf_tl.analysis.contact_sheet import Strip, write_contact_sheet
from hf_tl.analysis.similarity import SourceSigns, read_source_signs
from hf_tl.analysis.units import draw_top_images
from hf_tl.inputs import read_image
from hf_tl.models import find_modality, load_network
from hf_tl.strategies.transfer import Transfer
from hf_tl.strategies.zones import last_of_blocks


MOST_COMPARED = 512  # samples of which layers are compared: the Gram matrix of each has as many rows
MOST_READ = 64  # samples that the source's statistics and head are held against
MOST_COPIES = 12  # groups of copies that are shown
TOP = 6  # images for each unit


@dataclass(frozen=True)
class Portrait:
    """Pictures of a network and of the samples it is to learn from; what there was no time or no cause for is None.

    Attributes:
        similarity: CKA between the last layers of the blocks.
        signs: how far the samples lie from what the network was trained on.
        units: the images that excite units of the last block most.
        units_of: the layer of those units.
        copies: images that are copies of one another, a row each.
    """

    similarity: LayerSimilarity | None = None
    signs: SourceSigns | None = None
    units: Image.Image | None = None
    units_of: str = ""
    copies: Image.Image | None = None


def compare_blocks(transfer: Transfer, indices: np.ndarray) -> LayerSimilarity | None:
    """How alike the last layers of the blocks are on training samples (n,); None for too few samples."""
    if len(indices) < FEWEST:
        return None
    last = [*last_of_blocks(transfer.raw.layers).values()]
    return compare_layers(transfer.raw.select(last)[indices[:MOST_COMPARED]])


def read_signs(transfer: Transfer, indices: np.ndarray) -> SourceSigns:
    """How far training samples (n,) lie from what the network was trained on."""
    network = load_network(transfer.model, image_size=transfer.image_size)
    return read_source_signs(network, transfer.part(indices[:MOST_READ]), progress=False)


def draw_units(transfer: Transfer, indices: np.ndarray, *, groups: np.ndarray) -> tuple[Image.Image, str] | None:
    """The images that excite units of the last block most, and the layer's name; None for samples of another kind.

    Args:
        transfer: network and task.
        indices: (n,) of training samples.
        groups: (n_samples,) equal numbers are copies.
    """
    if find_modality(transfer.model) != "image":
        return None
    layer = [*last_of_blocks(transfer.raw.layers).values()][-1]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sheet.png"
        chosen = transfer.raw.select(layer)[indices]
        draw_top_images(path, chosen, transfer.samples, layer=layer, top=TOP, groups=groups, title="training samples")
        return _opened(path), layer


def draw_copies(transfer: Transfer, *, groups: np.ndarray) -> Image.Image | None:
    """Images that are copies of one another; None where there are none, or samples of another kind."""
    strips = _copies(transfer, groups) if find_modality(transfer.model) == "image" else []
    if not strips:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sheet.png"
        write_contact_sheet(path, strips, title="samples that are copies of one another", columns=3)
        return _opened(path)


def _copies(transfer: Transfer, groups: np.ndarray) -> list[Strip]:
    """The first few groups of copies, two images of each."""
    order = np.argsort(groups, kind="stable")
    _, starts, counts = np.unique(groups[order], return_index=True, return_counts=True)
    strips = []
    for i in np.flatnonzero(counts > 1)[:MOST_COPIES]:
        pair = order[starts[i] : starts[i] + 2]
        parts = ["training" if index < transfer.n_train else "test" for index in pair]
        strips.append(Strip(" and ".join(parts), [read_image(transfer.samples[int(index)]) for index in pair]))
    return strips


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")
