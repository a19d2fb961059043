"""Which of several networks will serve a task best, from their features alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from hf_tl.analysis.transferability import SCORES, find_score
from hf_tl.embedding.embedding import Embedding
from hf_tl.errors import InputError
from hf_tl.probes.grid_search import check_groups
from hf_tl.table import format_table


DRAWS = 20


@dataclass(frozen=True)
class Ranking:
    """Networks ordered by each score.

    Attributes:
        networks: names, as they were given.
        values: score -> (n_networks,) on all samples.
        draws: score -> (n_networks, n_draws) on random halves of the samples, the same for every network.
    """

    networks: tuple[str, ...]
    values: dict[str, np.ndarray]
    draws: dict[str, np.ndarray]

    def ranks(self, score: str) -> np.ndarray:
        """(n_networks,) 1 for the highest value; the mean of those that share it."""
        return _ranks(self.values[score])

    def rank_interval(self, score: str) -> np.ndarray:
        """(n_networks, 2) the lowest and highest rank in 95 % of the draws."""
        ranks = np.apply_along_axis(_ranks, 0, self.draws[score])
        return np.quantile(ranks, [0.025, 0.975], axis=1, method="closest_observation").T

    def interval(self, score: str) -> np.ndarray:
        """(n_networks, 2) 95 % interval of each value: its spread over halves, which is that of a bootstrap."""
        half = 1.96 * self.draws[score].std(axis=1, ddof=1)
        return np.stack([self.values[score] - half, self.values[score] + half], axis=1)

    @property
    def n_draws(self) -> int:
        """Number of halves."""
        return next(iter(self.draws.values())).shape[1]

    @property
    def order(self) -> list[str]:
        """The networks by their mean rank over all scores, the best first."""
        mean = np.mean([self.ranks(score) for score in self.values], axis=0)
        return [self.networks[i] for i in np.argsort(mean, kind="stable")]

    def table(self) -> str:
        """One row a network, the best first: mean rank, and each score with its interval and its rank's."""
        mean = dict(
            zip(self.networks, np.mean([self.ranks(score) for score in self.values], axis=0).tolist(), strict=True)
        )
        rows = []
        for name in self.order:
            i, row = self.networks.index(name), [name, f"{mean[name]:.1f}"]
            for score in self.values:
                (low, high), (best, worst) = self.interval(score)[i], self.rank_interval(score)[i]
                row += [f"{self.values[score][i]:.3f} ± {(high - low) / 2:.3f}", f"{best:g} .. {worst:g}"]
            rows.append(row)
        return format_table(
            ["network", "mean rank", *(word for score in self.values for word in (score, "rank"))], rows
        )

    def __str__(self) -> str:
        first = self.order[0]
        i = self.networks.index(first)
        sure = [score for score in self.values if self.rank_interval(score)[i][1] == 1]
        if len(self.networks) == 1:
            return f"{first} is the only network; give others to rank it among"
        if len(sure) == len(self.values):
            return f"{first} comes first by every score, in 95 % of the draws"
        doubt = [score for score in self.values if score not in sure]
        return f"{first} has the best mean rank, but its first place is not sure by {', '.join(doubt)}"


def rank_networks(
    embeddings: Mapping[str, Embedding],
    *,
    scores: Sequence[str] = tuple(SCORES),
    n_draws: int = DRAWS,
    random_state: int = 0,
    groups: np.ndarray | None = None,
    progress: bool = True,
) -> Ranking:
    """Ranks networks by what their features tell of a task.

    Intervals are from halves of each class, drawn without repeats: their spread is that of a bootstrap, whose repeated
    samples would be one another's nearest neighbours.

    Args:
        embeddings: network -> features of the same labelled samples.
        scores: names, of `SCORES` or of plug-ins.
        n_draws: halves.
        random_state: decides them.
        groups: (n_samples,) of samples of one number, such as copies (`twin_groups`), the first is used: a copy is the
            nearest neighbour of all, whatever the network.
        progress: whether a progress bar is drawn.

    Raises:
        InputError: no labels, different samples, an unknown score, or a score that is no number.
    """
    if not embeddings:
        raise InputError("there is no network to rank; give one embedding at least, better several")
    found = {name: find_score(name) for name in scores}
    first = next(iter(embeddings.values()))
    for name, embedding in embeddings.items():
        if embedding.labels is None:
            raise InputError(f"the samples of {name!r} have no labels, which every score compares the features with")
        if not np.array_equal(embedding.labels, np.asarray(first.labels)):
            raise InputError(f"{name!r} was read on other samples than {next(iter(embeddings))!r}; read the same ones")
    kept = np.arange(len(first))
    if check_groups(groups, len(first)) is not None:
        kept = np.sort(np.unique(np.asarray(groups), return_index=True)[1])
    _, labels = np.unique(np.asarray(first.labels)[kept], return_inverse=True)
    if first.labels is not None and (first.labels.ndim > 1 or first.labels.dtype.kind == "f" or labels.max() < 1):
        raise InputError("scores compare features with one class a sample, of two classes or more")
    halves = [_half(labels, np.random.default_rng((random_state, k))) for k in range(n_draws)]
    values = {score: np.zeros(len(embeddings)) for score in found}
    draws = {score: np.zeros((len(embeddings), n_draws)) for score in found}
    with tqdm(total=len(embeddings) * len(found), desc="scores", unit="score", disable=not progress) as bar:
        for i, (name, embedding) in enumerate(embeddings.items()):
            features = np.asarray(embedding.values[kept], dtype=np.float64)
            for score, function in found.items():
                values[score][i] = _number(function(features, labels), score, name)
                for k, half in enumerate(halves):
                    part = np.unique(labels[half], return_inverse=True)[1]
                    draws[score][i, k] = _number(function(features[half], part), score, name)
                bar.update()
    return Ranking(tuple(embeddings), values, draws)


def _half(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Half of each class, and of a class of one sample all."""
    order = generator.permutation(len(labels))
    kept = [mine[: -(-len(mine) // 2)] for value in np.unique(labels) if len(mine := order[labels[order] == value])]
    return np.sort(np.concatenate(kept))


def _number(value: float, score: str, network: str) -> float:
    if not np.isfinite(value):
        raise InputError(f"score {score!r} of {network!r} is {value}, no number; are all features finite?")
    return float(value)


def _ranks(values: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata

    return rankdata(-values)
