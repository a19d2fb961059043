"""A probe: a head on the features of some layers, and what it is worth on test samples."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hf_tl.embedding.embedding import Embedding
from hf_tl.embedding.full_network import FullNetworkEmbedding
from hf_tl.embedding.recipe import RECIPES, Recipe, find_recipe
from hf_tl.embedding.taps import TapSelection
from hf_tl.labels import find_problem
from hf_tl.probes.evaluation import Evaluation, paired_labels
from hf_tl.probes.grid_search import Cost
from hf_tl.probes.heads import Head, HeadMaker, default_head, fit_head, make_head
from hf_tl.probes.learning_curve import LearningCurve, learning_curve
from hf_tl.probes.svm import LinearSVM
from hf_tl.table import as_html, format_table


@dataclass(frozen=True)
class FeatureSet:
    """Features that a probe stands on.

    Attributes:
        name: what tables call them.
        recipe: the name of their recipe.
        embedding: makes them of raw activations; not fitted.
    """

    name: str
    recipe: str
    embedding: FullNetworkEmbedding

    @property
    def raw_recipe(self) -> Recipe:
        """Of the activations that they are made of."""
        return replace(RECIPES["raw"], activation=find_recipe(self.embedding.recipe).activation)


@dataclass(frozen=True)
class Probe:
    """A fitted head and its evaluation.

    Attributes:
        features: what it stands on; their embedding is fitted.
        head: the fitted head.
        n_layers: how many layers it reads.
        shape: (n_samples, n_features) that it was fitted on.
        evaluation: of the test samples.
        seconds: that scaling and fitting took.
        notes: which C was chosen, and what the head warned of, in sentences.
    """

    features: FeatureSet
    head: Head
    n_layers: int
    shape: tuple[int, int]
    evaluation: Evaluation
    seconds: float
    notes: tuple[str, ...] = ()

    def _repr_html_(self) -> str:
        return as_html("\n\n".join([compare_probes([self]), self.evaluation.table(), *self.notes]))


def compared_features(
    *, recipe: str = "paper", taps: TapSelection = "auto", top: float = 1.0
) -> tuple[FeatureSet, FeatureSet]:
    """The features of all or of chosen layers, and for comparison those of the last one, each sample at L2 norm 1.

    Args:
        recipe: of the former, by name.
        taps: which layers, see `FullNetworkEmbedding`.
        top: the share of them that is kept, from the task side.
    """
    whole = "full network" if taps in ("auto", ["auto"]) and top == 1 else "chosen layers"
    last = replace(RECIPES["l2"], activation=find_recipe(recipe).activation)
    return (
        FeatureSet(whole, recipe, FullNetworkEmbedding(recipe=recipe, taps=taps, top=top)),
        FeatureSet("last layer", "l2", FullNetworkEmbedding(recipe=last, taps=["last"])),
    )


def fit_probe(
    train: Embedding,
    test: Embedding,
    features: FeatureSet,
    *,
    head: str | HeadMaker | None = None,
    C: Cost = 1.0,
    groups: np.ndarray | None = None,
) -> Probe:
    """Scales raw activations with the training samples' statistics, fits a head on them, and evaluates it.

    Args:
        train: raw activations with labels: classes, several classes a sample, or numbers.
        test: those of other samples, with labels.
        features: what is made of the activations.
        head: see `make_head`; None for "svm", or for numbers "ridge".
        C: see `make_head`.
        groups: (n_train,) samples of one number, such as copies, are held out together in a search for C.

    Raises:
        InputError: no labels, test samples labelled in another way, or a head that cannot learn these labels.
    """
    taught, tested, untaught = paired_labels(train, test)
    problem = find_problem(taught.labels)
    start = time.perf_counter()
    fitted = features.embedding
    learnt, evaluated = fitted.fit_transform(train), fitted.transform(test)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        made = make_head(head or default_head(problem), learnt.shape, C=C, problem=problem)
        fit_head(made, learnt.values, taught.labels, groups=groups)
    predicted = np.asarray(made.predict(evaluated.values))
    said = [str(made.search_)] if isinstance(made, LinearSVM) and made.search_ is not None else []
    notes = [f"{features.name}: {note}" for note in (*said, *(warning.message for warning in caught))]
    return Probe(
        features=features,
        head=made,
        n_layers=len(learnt.layers),
        shape=learnt.shape,
        evaluation=Evaluation(tested.labels, predicted, taught.names),
        seconds=time.perf_counter() - start,
        notes=(*untaught, *notes),
    )


def compare_probes(probes: Sequence[Probe]) -> str:
    """A table with one row a probe."""
    metrics = [name for name in probes[0].evaluation.scores if not name.startswith(("share of", "MAE of"))]
    rows = [
        [
            probe.features.name,
            probe.features.recipe,
            probe.n_layers,
            probe.shape[1],
            probe.shape[0],
            len(probe.evaluation.truth),
            *(probe.evaluation.scores[name] for name in metrics),
            f"{probe.seconds:.1f} s",
        ]
        for probe in probes
    ]
    header = ["features of", "recipe", "layers", "features", "train samples", "test samples"]
    return format_table([*header, *(f"test {name}" for name in metrics), "fit"], rows)


def compare_curves(
    train: Embedding,
    test: Embedding,
    features: Sequence[FeatureSet],
    *,
    head: str | HeadMaker | None = None,
    C: Cost = "auto",
    groups: np.ndarray | None = None,
) -> LearningCurve:
    """The learning curves of several features side by side, each scaled with the few samples of a draw alone.

    Args:
        train: raw activations with labels.
        test: those of other samples.
        features: what is compared, one or more.
        head: see `make_head`; None for "svm", or for numbers "ridge".
        C: see `make_head`.
        groups: (n_train,) of samples of one number, such as copies, a draw has one at most.
    """
    curves = []
    for choice in features:
        raw, evaluated = choice.embedding.activations(train), choice.embedding.activations(test)

        def prepare(
            samples: np.ndarray,
            others: np.ndarray,
            fne: FullNetworkEmbedding = choice.embedding,
            raw: Embedding = raw,
        ) -> tuple[np.ndarray, np.ndarray]:
            few, many = (
                replace(raw, values=part, indices=np.arange(len(part)), labels=None) for part in (samples, others)
            )
            return np.asarray(fne.fit_transform(few)), np.asarray(fne.transform(many))

        made = learning_curve(raw, evaluated, head=head, C=C, prepare=prepare, method=choice.name, groups=groups)
        curves.append(made)
    together = curves[0]
    for curve in curves[1:]:
        together = together.beside(curve)
    return together
