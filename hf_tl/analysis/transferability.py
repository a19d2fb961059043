"""Scores that tell from stored features, without training, how well a network or a layer will serve a task.

Each is a number that grows with the expected accuracy; only kNN and ridge are accuracies. They rank networks; none was
ever shown to choose between ways of training one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from scipy.linalg import cho_factor, cho_solve, eigh

from hf_tl.errors import InputError
from hf_tl.names import closest
from hf_tl.plugins import find_plugin, plugin_names


NEIGHBOURS = 10
PENALTIES = tuple(10.0 ** np.arange(-4, 5))  # of the ridge probe, times the mean squared L2 norm
FOLDS = 5


class Score(Protocol):
    """What a score is: also of another package, kind "score" of `hf_tl.plugins`."""

    def __call__(self, features: np.ndarray, labels: np.ndarray) -> float:
        """A number that is larger the better the features serve.

        Args:
            features: (n_samples, n_features) float64.
            labels: (n_samples,) int, classes from 0.
        """


def score_knn(features: np.ndarray, labels: np.ndarray) -> float:
    """Leave-one-out accuracy of the nearest neighbours by cosine, each voting with exp(similarity / 0.07).

    As in Wu et al., "Unsupervised feature learning via non-parametric instance discrimination", CVPR 2018, sec. 3.4,
    with 10 neighbours.

    Args:
        features: (n_samples, n_features).
        labels: (n_samples,) int, classes from 0.
    """
    rows = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    k, n_classes, right = min(NEIGHBOURS, len(rows) - 1), int(labels.max()) + 1, 0
    for start in range(0, len(rows), 1024):
        part = rows[start : start + 1024] @ rows.T
        part[np.arange(len(part)), np.arange(start, start + len(part))] = -np.inf
        nearest = np.argpartition(-part, k - 1, axis=1)[:, :k]
        weights = np.exp((np.take_along_axis(part, nearest, axis=1) - 1) / 0.07)
        votes = np.zeros((len(part), n_classes))
        np.add.at(votes, (np.arange(len(part))[:, None], labels[nearest]), weights)
        right += int((votes.argmax(axis=1) == labels[start : start + 1024]).sum())
    return right / len(rows)


def score_ridge(features: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy of ridge regression onto one column a class, 5 folds, with the best of nine penalties.

    All penalties of a fold come from one eigendecomposition; the choice among nine flatters the
    figure a little, equally for all networks.

    Args:
        features: (n_samples, n_features).
        labels: (n_samples,) int, classes from 0.
    """
    from hf_tl.probes.grid_search import stratified_folds, usable_folds

    n_folds = usable_folds(labels, n_splits=FOLDS)
    if n_folds == 0:
        raise InputError(f"{len(labels)} samples, about one a class, cannot be split into folds")
    fold = stratified_folds(labels, n_splits=n_folds)
    targets = np.eye(int(labels.max()) + 1)[labels]
    right = np.zeros(len(PENALTIES))
    for k in range(n_folds):
        out = fold == k
        mean, wanted = features[~out].mean(axis=0), targets[~out]
        inside, others, base = features[~out] - mean, features[out] - mean, wanted.mean(axis=0)
        n, d = inside.shape
        if n <= d:
            values, vectors = eigh(inside @ inside.T)
            turned, across = vectors.T @ (wanted - base), others @ (inside.T @ vectors)
        else:
            values, vectors = eigh(inside.T @ inside)
            turned, across = vectors.T @ (inside.T @ (wanted - base)), others @ vectors
        values = np.maximum(values, 0.0)[:, None]
        for i, penalty in enumerate(PENALTIES):
            decided = across @ (turned / (values + max(penalty * values.sum() / n, 1e-12))) + base
            right[i] += (decided.argmax(axis=1) == labels[out]).sum()
    return float(right.max() / len(labels))


def score_logme(features: np.ndarray, labels: np.ndarray) -> float:
    """Log of the maximum evidence a sample (LogME; You et al., ICML 2021, eq. 2 and algorithm 1), mean over classes.

    The evidence of y = F w + noise with w ~ N(0, 1/alpha), noise ~ N(0, 1/beta), maximised over alpha and beta for the
    column of each class.

    Args:
        features: (n_samples, n_features).
        labels: (n_samples,) int, classes from 0.
    """
    n, d = features.shape
    values, vectors = eigh(features @ features.T if n <= d else features.T @ features)
    values = np.maximum(values, 0.0)
    columns = np.eye(int(labels.max()) + 1)[labels]
    if n <= d:
        projected = np.square(vectors.T @ columns)
    else:
        projected = np.square(vectors.T @ (features.T @ columns)) / np.maximum(values, 1e-12)[:, None]
        projected[values <= values.max() * 1e-12] = 0.0
    rest = np.maximum(np.square(columns).sum(axis=0) - projected.sum(axis=0), 0.0)
    found = [_evidence(values, projected[:, c], float(rest[c]), n, d) for c in range(columns.shape[1])]
    return float(np.mean(found))


def score_hscore(features: np.ndarray, labels: np.ndarray) -> float:
    """The regularised H-score, tr(cov(F)^-1 cov(E[F|y])) (Bao et al., ICIP 2019; Ibrahim et al., ECML 2022).

    The covariance is shrunk as Ledoit and Wolf do, without which the score of few samples is noise; the covariance of
    the class means is weighted by 1 - shrinkage.

    Args:
        features: (n_samples, n_features).
        labels: (n_samples,) int, classes from 0.
    """
    from sklearn.covariance import ledoit_wolf_shrinkage

    centred = features - features.mean(axis=0)
    n, d = centred.shape
    shrinkage = float(ledoit_wolf_shrinkage(centred, assume_centered=True))
    members = np.eye(int(labels.max()) + 1)[labels]
    counts = members.sum(axis=0)
    means = (members.T @ centred / np.maximum(counts, 1)[:, None]) * np.sqrt(counts / n)[:, None]
    trace = float(np.square(centred).sum() / n / d)
    if shrinkage * trace <= 0:
        return float(np.trace(np.linalg.pinv(centred.T @ centred / n) @ means.T @ means))
    ridge = shrinkage * trace
    if n < d:  # (a I + F'F/m)^-1 by the samples' side (Woodbury)
        scale = (1 - shrinkage) / n
        small = cho_factor(np.eye(n) + scale / ridge * (centred @ centred.T))
        mixed = centred @ means.T
        solved = (means.T - scale / ridge * centred.T @ cho_solve(small, mixed)) / ridge
    else:
        solved = cho_solve(cho_factor((1 - shrinkage) / n * centred.T @ centred + ridge * np.eye(d)), means.T)
    return float((1 - shrinkage) * np.sum(means * solved.T))


SCORES: Mapping[str, Score] = {
    "knn": score_knn,
    "ridge": score_ridge,
    "logme": score_logme,
    "hscore": score_hscore,
}


def find_score(name: str) -> Score:
    """The score of that name, ours or another package's.

    Raises:
        InputError: nobody has one.
    """
    if name in SCORES:
        return SCORES[name]
    found = find_plugin("score", name)
    if found is None:
        known = [*SCORES, *plugin_names("score")]
        raise InputError(f"score {name!r} is none of {', '.join(known)}; {closest(name, known)}")
    return found


def _evidence(values: np.ndarray, projected: np.ndarray, rest: float, n: int, d: int) -> float:
    """The maximum of the log evidence a sample, by the fixed point of MacKay that algorithm 1 iterates.

    Args:
        values: eigenvalues of F F', or of F' F.
        projected: squares of the target along their directions.
        rest: the square of the target outside of all.
        n: samples.
        d: features.
    """
    alpha = beta = 1.0
    lost = float(projected.sum()) + rest
    for _ in range(100):
        ratio = alpha / beta
        gamma = float(np.sum(values / (values + ratio)))
        squares = float(np.sum(values * projected / np.square(values + ratio)))
        lost = float(np.sum(projected * np.square(ratio / (values + ratio)))) + rest
        new_alpha, new_beta = gamma / max(squares, 1e-300), max(n - gamma, 1e-12) / max(lost, 1e-300)
        done = abs(new_alpha / new_beta / ratio - 1) < 1e-6
        alpha, beta = new_alpha, new_beta
        if done or not np.isfinite(alpha / beta):
            break
    ratio = alpha / beta
    squares = float(np.sum(values * projected / np.square(values + ratio)))
    lost = float(np.sum(projected * np.square(ratio / (values + ratio)))) + rest
    unseen = max(d - len(values), 0)  # directions without any sample: their determinant is alpha
    logdet = float(np.sum(np.log(alpha + beta * values))) + unseen * np.log(alpha)
    evidence = d * np.log(alpha) + n * np.log(beta) - beta * lost - alpha * squares - logdet - n * np.log(2 * np.pi)
    return 0.5 * float(evidence) / n
