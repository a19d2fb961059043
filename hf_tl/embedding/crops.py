"""Ten crops of an image, each a row of its own, and the ways back to one answer an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from hf_tl.data import Samples
from hf_tl.embedding.embedding import Embedding
from hf_tl.errors import InputError


if TYPE_CHECKING:
    from PIL.Image import Image

N_CROPS = 10


@dataclass(frozen=True)
class TenCrops(Samples):
    """Rows of images as rows of their crops: ten for each, one after the other, each with the image's label.

    Attributes:
        share: side of a crop as a share of the image's; 0.875 is 224 of 256 pixels, as in the paper.
    """

    share: float = 0.875

    @classmethod
    def of(cls, rows: Samples, *, share: float = 0.875) -> TenCrops:
        """The crops of the images of `rows`.

        Raises:
            InputError: a share outside (0, 1].
        """
        if not 0 < share <= 1:
            raise InputError(f"share must be above 0 and at most 1, the side of a crop, got {share}")
        labels = None if rows.labels is None else np.repeat(rows.labels, N_CROPS)
        dataset = _Repeated(rows)
        return cls(dataset, rows.input_column, labels, rows.class_names, f"crops of {rows.name}", share)

    def __getitem__(self, index: int) -> Image:
        """One crop of one image."""
        return ten_crops(self.dataset.rows[index // N_CROPS], share=self.share)[index % N_CROPS]


@dataclass(frozen=True)
class _Repeated(Sequence):
    """As many rows as there are crops."""

    rows: Samples

    def __len__(self) -> int:
        return len(self.rows) * N_CROPS

    def __getitem__(self, index: int) -> Mapping:
        return {self.rows.input_column: self.rows[index // N_CROPS]}


def ten_crops(image: Image, *, share: float = 0.875) -> list[Image]:
    """The four corners and the centre of an image, then their mirror images (Krizhevsky et al., NIPS 2012)."""
    from PIL import ImageOps

    width, height = round(image.width * share), round(image.height * share)
    right, bottom = image.width - width, image.height - height
    corners = [(0, 0), (right, 0), (0, bottom), (right, bottom), (right // 2, bottom // 2)]
    crops = [image.crop((x, y, x + width, y + height)) for x, y in corners]
    return [*crops, *(ImageOps.mirror(crop) for crop in crops)]


def vote(predictions: np.ndarray) -> np.ndarray:
    """The most frequent class of each image's crops; of equally frequent ones the smallest.

    Args:
        predictions: (10 n,) the classes of the crops, image by image.

    Returns:
        (n,) the classes of the images.

    Raises:
        InputError: a number of crops that is no multiple of ten.
    """
    return np.asarray([_most_frequent(crops) for crops in _by_image(np.asarray(predictions))])


def mean_score(scores: np.ndarray) -> np.ndarray:
    """The average of each image's crops, for values of `decision_function` or probabilities.

    Args:
        scores: (10 n, classes) of the crops, image by image.

    Returns:
        (n, classes).

    Raises:
        InputError: a number of crops that is no multiple of ten.
    """
    return _by_image(np.asarray(scores)).mean(axis=1)


def mean_feature(embedding: Embedding) -> Embedding:
    """One row an image, the average of the features of its crops.

    Args:
        embedding: (10 n, n_features) of the crops, image by image.

    Returns:
        (n, n_features) in float32.

    Raises:
        InputError: crops that were skipped.
    """
    if len(embedding) % N_CROPS or (embedding.rows % N_CROPS != np.arange(len(embedding)) % N_CROPS).any():
        raise InputError(f"expected all {N_CROPS} crops of each image, got {len(embedding)} rows with gaps")
    values = [
        _by_image(np.asarray(embedding[start : start + 100 * N_CROPS], dtype=np.float32)).mean(axis=1)
        for start in range(0, len(embedding), 100 * N_CROPS)
    ]
    first = embedding[::N_CROPS]
    return replace(first, values=np.concatenate(values), rows=first.rows // N_CROPS)


def _by_image(values: np.ndarray) -> np.ndarray:
    if len(values) % N_CROPS:
        raise InputError(f"expected {N_CROPS} crops an image, got {len(values)} rows")
    return values.reshape(-1, N_CROPS, *values.shape[1:])


def _most_frequent(values: np.ndarray) -> object:
    classes, counts = np.unique(values, return_counts=True)
    return classes[counts.argmax()]
