"""How alike two sets of features of the same samples are: unbiased linear CKA, between layers and between networks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hf_tl import plots
from hf_tl.embedding.embedding import Embedding
from hf_tl.errors import InputError


FEWEST = 4


def cka(first: np.ndarray, second: np.ndarray) -> float:
    """Linear CKA with the unbiased HSIC: 1 for a rotation of the same features, about 0 for unrelated ones.

    Kornblith et al., "Similarity of neural network representations revisited", ICML 2019, with the estimator of Song
    et al., "Feature selection via dependence maximization", JMLR 2012, eq. 5. The usual, biased, one calls two sets of
    noise alike where samples are few: 0.75 at 256 samples of 768 features.

    Args:
        first: (n_samples, n_features), four samples or more.
        second: (n_samples, other_features), of the same samples.

    Raises:
        InputError: different samples, fewer than four, or features that do not vary.
    """
    if len(first) != len(second) or len(first) < FEWEST:
        raise InputError(
            f"CKA compares features of the same {FEWEST} samples or more, got {len(first)} and {len(second)}"
        )
    K, L = _Centred(np.asarray(first, dtype=np.float64)), _Centred(np.asarray(second, dtype=np.float64))
    return K.alike(L)


@dataclass(frozen=True)
class LayerSimilarity:
    """CKA between the layers of one embedding and those of another.

    Attributes:
        rows: layers of the first, from data to task.
        columns: layers of the second.
        values: (rows, columns) unbiased linear CKA.
        n_samples: of both.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: np.ndarray
    n_samples: int

    def plot(self, path: str | Path, *, title: str, names: tuple[str, str] = ("first", "second")) -> Path:
        """Draws a heat map into a PNG or SVG file.

        Args:
            path: of the file.
            title: above it.
            names: of the two embeddings.
        """
        caption = f"unbiased linear CKA of {self.n_samples} samples"
        with plots.picture(path, title=title, size=(7.4, 6.8), caption=caption) as (panel,):
            plots.scaled_image(panel, self.values, between=(0, 1))
            plots.layer_ticks(panel, rows=self.rows, columns=self.columns)
            plots.axes(panel, x=f"{names[1]}: layer, from data to task", y=f"{names[0]}: layer, from data to task")
        return Path(path)


def compare_layers(first: Embedding, second: Embedding | None = None) -> LayerSimilarity:
    """CKA of each layer with each.

    Args:
        first: features of some samples.
        second: of the same samples, of another network or of the same after training; None for the first itself.

    Raises:
        InputError: different samples.
    """
    second = first if second is None else second
    if not np.array_equal(first.indices, second.indices):
        raise InputError(f"both have to be of the same samples, got {len(first)} and {len(second)} with other indices")
    if len(first) < FEWEST:
        raise InputError(f"CKA takes {FEWEST} samples or more, got {len(first)}")
    columns = list(_centred_layers(second))
    values = np.array([[one.alike(other) for other in columns] for one in _centred_layers(first)])
    rows = tuple(layer.name for layer in first.layers)
    return LayerSimilarity(rows, tuple(layer.name for layer in second.layers), values, len(first))


def compare_each_layer(first: Embedding, second: Embedding) -> np.ndarray:
    """CKA of each layer with the layer of the same name, (n_layers,): before and after training.

    Args:
        first: features of some samples.
        second: of the same samples, with the same layers.

    Raises:
        InputError: different samples or layers.
    """
    names = [[layer.name for layer in one.layers] for one in (first, second)]
    if names[0] != names[1] or not np.array_equal(first.indices, second.indices):
        raise InputError("both have to be of the same samples and layers; read them with the same taps")
    pairs = zip(_centred_layers(first), _centred_layers(second), strict=True)
    return np.array([one.alike(other) for one, other in pairs])


class _Centred:
    """The Gram matrix without its diagonal, whose products with another give the unbiased HSIC."""

    def __init__(self, features: np.ndarray):
        centred = features - features.mean(axis=0)  # changes nothing but rounding
        self.gram = centred @ centred.T
        np.fill_diagonal(self.gram, 0.0)
        self.rows = self.gram.sum(axis=1)
        self.own = self._hsic(self)

    def alike(self, other: _Centred) -> float:
        if self.own <= 0 or other.own <= 0:
            return float("nan")
        return float(self._hsic(other) / np.sqrt(self.own * other.own))

    def _hsic(self, other: _Centred) -> float:
        n = len(self.rows)
        both = np.einsum("ij,ij->", self.gram, other.gram)
        means = self.rows.sum() * other.rows.sum() / (n - 1) / (n - 2)
        return float(both + means - 2 / (n - 2) * (self.rows @ other.rows)) / (n * (n - 3))


def _centred_layers(embedding: Embedding) -> Iterator[_Centred]:
    for layer in embedding.layers:
        yield _Centred(np.asarray(embedding.values[:, layer.start : layer.stop], dtype=np.float64))
