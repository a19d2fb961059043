"""Ten crops of an image, each a sample of its own, and the ways back to one answer an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from hf_tl.data import Samples
from hf_tl.errors import InputError


if TYPE_CHECKING:
    from PIL.Image import Image

N_CROPS = 10


@dataclass(frozen=True)
class TenCrops(Samples):
    """Images as samples of their crops: ten for each, one after the other, each with the image's label.

    Attributes:
        share: side of a crop as a share of the image's; 0.875 is 224 of 256 pixels, as in the paper.
    """

    share: float = 0.875

    @classmethod
    def of(cls, samples: Samples, *, share: float = 0.875) -> TenCrops:
        """The crops of some images.

        Raises:
            InputError: a share outside (0, 1].
        """
        if not 0 < share <= 1:
            raise InputError(f"share must be above 0 and at most 1, the side of a crop, got {share}")
        labels = None if samples.labels is None else np.repeat(samples.labels, N_CROPS, axis=0)
        name = f"crops of {samples.name}"
        return cls(_Repeated(samples), samples.input_column, labels, samples.class_names, name, share)

    def __getitem__(self, index: int) -> Image:
        """One crop of one image."""
        return ten_crops(cast("Image", super().__getitem__(index)), share=self.share)[index % N_CROPS]

    def vote(self, predictions: np.ndarray) -> np.ndarray:
        """The most frequent class of each image's crops, (10 n,) -> (n,); of equally frequent ones the smallest.

        Raises:
            InputError: not one prediction a crop.
        """
        classes, codes = np.unique(self._by_image(predictions), return_inverse=True)
        counts = codes.reshape(-1, N_CROPS)[:, :, None] == np.arange(len(classes))
        return classes[counts.sum(axis=1).argmax(axis=1)]

    def mean(self, values: np.ndarray) -> np.ndarray:
        """The average over each image's crops, (10 n, k) -> (n, k): of scores, probabilities or features.

        Raises:
            InputError: not one row a crop.
        """
        return self._by_image(values).mean(axis=1)

    def _by_image(self, values: np.ndarray) -> np.ndarray:
        values = np.asarray(values)
        if len(values) != len(self):
            raise InputError(f"expected a row for each of the {len(self)} crops, got {len(values)}")
        return values.reshape(-1, N_CROPS, *values.shape[1:])


@dataclass(frozen=True)
class _Repeated(Sequence):
    """As many samples as there are crops."""

    samples: Samples

    def __len__(self) -> int:
        return len(self.samples) * N_CROPS

    def __getitem__(self, index: int) -> Mapping:  # type: ignore[override]  # nobody asks for a slice
        return {self.samples.input_column: self.samples[index // N_CROPS]}


def ten_crops(image: Image, *, share: float = 0.875) -> list[Image]:
    """The four corners and the centre of an image, then their mirror images (Krizhevsky et al., NIPS 2012)."""
    from PIL import ImageOps

    width, height = round(image.width * share), round(image.height * share)
    right, bottom = image.width - width, image.height - height
    corners = [(0, 0), (right, 0), (0, bottom), (right, bottom), (right // 2, bottom // 2)]
    crops = [image.crop((x, y, x + width, y + height)) for x, y in corners]
    return [*crops, *(ImageOps.mirror(crop) for crop in crops)]
