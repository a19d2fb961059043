"""The network is read and stays as it is; a linear classifier learns from what it says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hf_tl.embedding.embedding import Embedding
from hf_tl.embedding.full_network import FullNetworkEmbedding
from hf_tl.embedding.recipe import RECIPES, Recipe
from hf_tl.probes.heads import Head, make_head
from hf_tl.strategies.strategy import Effort, Fitted
from hf_tl.strategies.transfer import Transfer


RELATIVE_C = {  # over the mean squared norm of a sample, in the order of trials
    "svm": (10.0, 100.0, 1.0, 1000.0, 0.1),
    "logreg": (1e3, 1e4, 1e2, 1e5, 10.0),
}


@dataclass(frozen=True)
class FeatureExtraction:
    """A linear classifier on features of the frozen network.

    C is chosen on the validation samples; the classifier is then fitted on all, which costs nothing.

    Attributes:
        name: of the strategy.
        taps: which layers are read.
        recipe: how they are scaled, with statistics of the training samples.
        head: the classifier, see `make_head`.
    """

    name: str
    taps: str
    recipe: Recipe
    head: str = "svm"

    def fit(
        self, transfer: Transfer, train: np.ndarray, validation: np.ndarray, *, effort: Effort, seed: int
    ) -> Fitted:
        """See `Strategy.fit`."""
        raw, labels = transfer.raw, transfer.labels
        settings = RELATIVE_C.get(self.head, RELATIVE_C["logreg"])[: effort.trials]
        chosen = settings[0]
        best = float("nan")
        if len(validation):
            reader, features = self._read(raw, train)
            others = reader.transform(raw[validation]).values
            scores = [
                float((self._head(c, features, labels[train]).predict(others) == labels[validation]).mean())
                for c in settings
            ]
            chosen, best = settings[int(np.argmax(scores))], max(scores)
        everything = np.sort(np.concatenate([train, validation]))
        reader, features = self._read(raw, everything)
        head = self._head(chosen, features, labels[everything])
        return Fitted(
            lambda indices: np.asarray(head.predict(reader.transform(raw[indices]).values)),
            setting=f"C {chosen:g} over the mean squared norm",
            validation=best,
            trials=len(settings) if len(validation) else 1,
            samples_seen=len(everything),
        )

    def code(self, transfer: Transfer, setting: str) -> str:
        """See `Strategy.code`."""
        size = "" if transfer.image_size is None else f", image_size={transfer.image_size}"
        recipe = next(name for name, one in RECIPES.items() if one == self.recipe)
        return f"""\
from hf_tl import FullNetworkEmbedding, find_modality, load_task, make_head, twin_groups

name = {transfer.model!r}
task = load_task({transfer.source!r}, modality=find_modality(name), groups=twin_groups)
fne = FullNetworkEmbedding.from_pretrained(name{size}, recipe={recipe!r}, taps={self.taps!r})
train = fne.fit_transform(task.train)
head = make_head({self.head!r}, train.shape, C="auto").fit(train.values, train.labels)
print(head.score(fne.transform(task.test).values, task.test.labels))
"""

    def _read(self, raw: Embedding, indices: np.ndarray) -> tuple[FullNetworkEmbedding, np.ndarray]:
        reader = FullNetworkEmbedding(recipe=self.recipe, taps=self.taps)
        return reader, np.asarray(reader.fit_transform(raw[indices]).values)

    def _head(self, relative_C: float, features: np.ndarray, labels: np.ndarray) -> Head:
        squares = float(np.square(features, dtype=np.float64).sum(axis=1).mean())
        return make_head(self.head, features.shape, C=relative_C / max(squares, 1e-12)).fit(features, labels)


def last_layer() -> FeatureExtraction:
    """A linear SVM on what the network's own classifier reads, each sample at L2 norm 1."""
    return FeatureExtraction("last layer", "last", RECIPES["l2"])


def full_network() -> FeatureExtraction:
    """A linear SVM on the full-network embedding (Garcia-Gasulla et al., ICBK 2018)."""
    return FeatureExtraction("full network", "auto", RECIPES["paper"])


def linear_probe() -> FeatureExtraction:
    """Logistic regression on the standardised last layer: the linear probe of the literature."""
    return FeatureExtraction("linear probe", "last", RECIPES["standardize"], head="logreg")
