"""The samples on which two strategies differ: what one gets right and the other wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from hf_tl.inputs import read_image
from hf_tl.models import find_modality
from hf_tl.strategies.ledger import Run
from hf_tl.strategies.transfer import Transfer


MOST = 12  # of each kind
LONGEST = 160  # characters of a text


@dataclass(frozen=True)
class Mistake:
    """A sample that one strategy gets right and another wrong.

    Attributes:
        index: of the sample among those of the task.
        truth: name of its class.
        right: the strategy that gets it right.
        wrong: the one that does not.
        said: the class that it says instead.
        image: the sample, where it is an image.
        text: the sample, where it is a text.
    """

    index: int
    truth: str
    right: str
    wrong: str
    said: str
    image: Image.Image | None = None
    text: str = ""

    @property
    def caption(self) -> str:
        """In a line."""
        return f"{self.truth}, not {self.said}"


def find_mistakes(
    transfer: Transfer, first: Run, second: Run, *, evaluated: Sequence[int] | np.ndarray, most: int = MOST
) -> tuple[Mistake, ...]:
    """Where exactly one of two runs is right, at most so many each way; of recordings no content is shown.

    Args:
        transfer: whose samples they are.
        first: one run.
        second: another, on the same samples.
        evaluated: (n,) indices of the samples.
        most: of each kind.
    """
    truth = transfer.labels[np.asarray(evaluated)]
    found = []
    for winner, loser in ((first, second), (second, first)):
        differ = np.flatnonzero(winner.right(truth) & ~loser.right(truth))
        for i in differ[:most]:
            index = int(evaluated[i])
            sample = transfer.samples[index]
            image = read_image(sample) if find_modality(transfer.model) == "image" else None
            text = sample[:LONGEST] if isinstance(sample, str) else ""
            said = transfer.classes[loser.predicted[i]]
            names = (transfer.classes[truth[i]], winner.strategy, loser.strategy, said)
            found.append(Mistake(index, *names, image, text))
    return tuple(found)
