"""Several rows of one image, such as ten crops of it, -> one decision."""

from __future__ import annotations

import numpy as np

from hf_tl.errors import InputError


def mean_scores(scores: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean decision values of each image.

    Args:
        scores: (rows, classes), or (rows,) for two classes.
        images: (rows,) which image a row shows a crop of; any order, any number of crops an image.

    Returns:
        The images, ascending, and their scores: (images,), (images, classes) or (images,).

    Raises:
        InputError: lengths that differ.
    """
    scores = np.asarray(scores, dtype=np.float64)
    names, codes = _codes(scores, images)
    sums = np.zeros((len(names), *scores.shape[1:]))
    np.add.at(sums, codes, scores)
    counts = np.bincount(codes)
    return names, sums / counts.reshape(-1, *[1] * (scores.ndim - 1))


def majority(predictions: np.ndarray, images: np.ndarray, *, scores: np.ndarray, classes: np.ndarray) -> tuple:
    """The class that most crops of each image vote for; of several, the one with the highest mean score.

    Args:
        predictions: (rows,) the class of each crop.
        images: (rows,) which image a row shows.
        scores: (rows, classes) decision values, or (rows,) for two classes.
        classes: (classes,) what the columns of `scores` stand for, such as `LinearSVM.classes_`.

    Returns:
        The images, ascending, and their classes: (images,), (images,).

    Raises:
        InputError: lengths that differ, or a prediction that is none of the classes.
    """
    predictions, classes = np.asarray(predictions), np.asarray(classes)
    unknown = np.setdiff1d(predictions, classes)
    if len(unknown):
        raise InputError(
            f"prediction {unknown.tolist()[0]!r} is none of the {len(classes)} classes {classes[:5].tolist()} ..."
        )
    names, means = mean_scores(scores, images)
    if means.ndim == 1:
        means = np.stack([-means, means], axis=1)
    _, codes = _codes(predictions, images)
    order = np.argsort(classes)
    columns = order[np.searchsorted(classes, predictions, sorter=order)]
    votes = np.zeros((len(names), len(classes)))
    np.add.at(votes, (codes, columns), 1)
    tied = np.where(votes == votes.max(axis=1, keepdims=True), means, -np.inf)
    return names, classes[tied.argmax(axis=1)]


def _codes(rows: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    images = np.asarray(images)
    if len(rows) != len(images):
        raise InputError(f"expected the image of each of {len(rows)} rows, got {len(images)}")
    return np.unique(images, return_inverse=True)
