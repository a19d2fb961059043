"""A small task and strategies that cost nothing, for the tests of what stands on strategies."""

from dataclasses import dataclass

import numpy as np

from hf_tl.data import Samples, Task
from hf_tl.strategies.strategy import Fitted


CLASSES = ("cat", "dog", "owl")


def photos(n, *, seed, name):
    """(n of each class) noise around one colour a class."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(CLASSES)), n)
    colours = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200]])
    pixels = rng.integers(0, 120, (len(labels), 24, 24, 3)) + colours[labels, None, None]
    rows = [{"image": image.clip(0, 255).astype(np.uint8)} for image in pixels]
    return Samples(rows, "image", labels, CLASSES, name=name)


def task(*, n_train=8, n_test=6):
    return Task(photos(n_train, seed=0, name="train"), photos(n_test, seed=1, name="test"))


@dataclass(frozen=True)
class Guess:
    """Right with a probability that grows with the samples; reads no network."""

    name: str = "guess"
    skill: float = 0.5
    growth: float = 0.0

    def fit(self, transfer, train, validation, *, effort, seed):
        share = self.skill + self.growth * np.log(1 + len(train))

        def predict(indices):
            right = np.random.default_rng((seed, len(train), 7)).random(len(transfer.labels)) < share
            truth = transfer.labels
            return np.where(right, truth, (truth + 1) % len(transfer.classes))[indices]

        found = float((predict(validation) == transfer.labels[validation]).mean()) if len(validation) else float("nan")
        return Fitted(predict, "no setting", found, 1, len(train))

    def code(self, transfer, setting):
        return "print('guess')\n"
