"""Crops of one image -> one decision."""

import numpy as np
import pytest

from hf_tl import InputError
from hf_tl.probes.voting import majority, mean_scores


def test_scores_are_averaged_by_image_in_any_order():
    images = np.array([7, 3, 7, 3, 3])
    scores = np.array([[1.0, 0], [0, 3], [3, 0], [0, 6], [0, 0]])
    names, means = mean_scores(scores, images)
    assert names.tolist() == [3, 7]
    assert means.tolist() == [[0, 3], [2, 0]]
    assert mean_scores(scores[:, 1], images)[1].tolist() == [3, 0]


def test_the_majority_wins_and_a_tie_goes_to_the_higher_mean_score():
    classes = np.array(["b", "a", "c"])
    scores = np.array([[9.0, 0, 0], [0, 1, 0], [0, 1, 0], [3, 0, 0], [0, 2, 0]])
    predictions = np.array(["b", "a", "a", "b", "a"])
    names, voted = majority(predictions, np.array([0, 0, 0, 1, 1]), scores=scores, classes=classes)
    assert names.tolist() == [0, 1]
    assert voted.tolist() == ["a", "b"]  # two of three; one of two, with the higher score


def test_two_classes_have_one_score():
    scores = np.array([2.0, -1.0])
    _, voted = majority(np.array([1, 0]), np.array([0, 0]), scores=scores, classes=np.array([0, 1]))
    assert voted.tolist() == [1]


def test_ten_crops_beat_one_where_crops_are_noisy():
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 4, 200)
    scores = np.eye(4)[np.repeat(truth, 10)] + generator.normal(size=(2000, 4))
    predictions, images = scores.argmax(axis=1), np.repeat(np.arange(200), 10)
    _, voted = majority(predictions, images, scores=scores, classes=np.arange(4))
    assert (voted == truth).mean() > (predictions == truth[images]).mean() + 0.2


def test_wrong_input_is_refused():
    with pytest.raises(InputError, match="expected the image of each of 3 rows, got 2"):
        mean_scores(np.zeros((3, 2)), np.array([0, 1]))
    with pytest.raises(InputError, match="prediction 5 is none of the 2 classes"):
        majority(np.array([0, 5]), np.array([0, 0]), scores=np.zeros((2, 2)), classes=np.array([0, 1]))
