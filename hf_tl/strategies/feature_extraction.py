"""The network is read and stays as it is; a linear classifier learns from what it says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hf_tl.classifier import Classifier
from hf_tl.data import Task
from hf_tl.embedding.embedding import Embedding
from hf_tl.embedding.full_network import FullNetworkEmbedding
from hf_tl.embedding.recipe import RECIPES, Recipe
from hf_tl.models import load_network
from hf_tl.probes.heads import Head, make_head
from hf_tl.strategies.strategy import SAVE_AND_PREDICT, Effort, Fitted
from hf_tl.strategies.transfer import Transfer


RELATIVE_C = {  # over the mean squared norm of a sample, in the order of trials
    "svm": (10.0, 100.0, 1.0, 1000.0, 0.1),
    "logreg": (100.0, 1000.0, 10.0, 1e4, 1.0),
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
        settings = self._settings(effort)
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
        cost = self._cost(chosen, features)
        head = make_head(self.head, features.shape, C=cost).fit(features, labels[everything])
        return Fitted(
            lambda indices: np.asarray(head.predict(reader.transform(raw[indices]).values)),
            setting=f"C {chosen:g} over the mean squared norm",
            validation=best,
            trials=len(settings) if len(validation) else 1,
            samples_seen=len(everything),
            to_classifier=lambda: self._classifier(transfer, everything, cost),
        )

    def code(self, transfer: Transfer, setting: str) -> str:
        """See `Strategy.code`."""
        size = "" if transfer.image_size is None else f", image_size={transfer.image_size}"
        recipe = next(name for name, one in RECIPES.items() if one == self.recipe)
        return f"""\
from hf_tl import Classifier, FullNetworkEmbedding, find_modality, load_task, twin_groups

name = {transfer.model!r}
task = load_task({transfer.source!r}, modality=find_modality(name), groups=twin_groups)
embedding = FullNetworkEmbedding.from_pretrained(name{size}, recipe={recipe!r}, taps={self.taps!r})
groups = twin_groups(task.train, modality=find_modality(name))
classifier = Classifier.fit(embedding, task, head={self.head!r}, C="auto", groups=groups)
{SAVE_AND_PREDICT}"""

    def _classifier(self, transfer: Transfer, indices: np.ndarray, C: float) -> Classifier:
        embedding = FullNetworkEmbedding(
            load_network(transfer.model, image_size=transfer.image_size), recipe=self.recipe, taps=self.taps
        )
        task = Task(transfer.part(indices, name=transfer.task.train.name), transfer.task.test)
        return Classifier.fit(embedding, task, head=self.head, C=C)

    def _settings(self, effort: Effort) -> tuple[float, ...]:
        """As many as any other strategy tries; those of a search lie evenly over the same range."""
        known = RELATIVE_C.get(self.head, RELATIVE_C["logreg"])
        if effort.search == "grid":
            return known[: effort.trials]
        found = np.geomspace(min(known), max(known), effort.trials)
        nearest = np.abs(np.log(found / known[0])).argmin()  # in its place, the first one
        return known[0], *np.delete(found, nearest).tolist()

    def _read(self, raw: Embedding, indices: np.ndarray) -> tuple[FullNetworkEmbedding, np.ndarray]:
        reader = FullNetworkEmbedding(recipe=self.recipe, taps=self.taps)
        return reader, np.asarray(reader.fit_transform(raw[indices]).values)

    def _head(self, relative_C: float, features: np.ndarray, labels: np.ndarray) -> Head:
        return make_head(self.head, features.shape, C=self._cost(relative_C, features)).fit(features, labels)

    def _cost(self, relative_C: float, features: np.ndarray) -> float:
        if self.head != "svm":
            return relative_C  # `make_head` has these for samples of mean squared norm 1 already
        return relative_C / max(float(np.square(features, dtype=np.float64).sum(axis=1).mean()), 1e-12)


def last_layer() -> FeatureExtraction:
    """A linear SVM on what the network's own classifier reads, each sample at L2 norm 1."""
    return FeatureExtraction("last layer", "last", RECIPES["l2"])


def full_network() -> FeatureExtraction:
    """A linear SVM on the full-network embedding (Garcia-Gasulla et al., ICBK 2018)."""
    return FeatureExtraction("full network", "auto", RECIPES["paper"])


def linear_probe() -> FeatureExtraction:
    """Logistic regression on the standardised last layer: the linear probe of the literature."""
    return FeatureExtraction("linear probe", "last", RECIPES["standardize"], head="logreg")
