"""Which column of a table holds the inputs of a network: by its type, by the files that it names, by its own name."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hf_tl.errors import InputError


if TYPE_CHECKING:
    from datasets import Dataset

TEXT_NAMES = ("text", "sentence", "content", "review", "document", "question")
PAIRS = (  # of the sentence pairs of GLUE and its like
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("question", "sentence"),
)
PLURALS = {"image": "images", "text": "texts", "audio": "recordings", "array": "arrays"}


def find_input_column(dataset: Dataset, *, modality: str, labels: Sequence[str] = ()) -> str | tuple[str, str]:
    """The column that a network reads, or the two that are read as pairs.

    Args:
        dataset: with any columns.
        modality: "image", "text", "audio" or "array".
        labels: names of columns that are labels.

    Raises:
        InputError: no column holds inputs, or several do.
    """
    from datasets import Array2D, Array3D, Audio, Image

    kinds = {
        "audio": lambda feature: isinstance(feature, Audio),
        "image": lambda feature: isinstance(feature, (Image, Array2D, Array3D)),
        "text": _is_text,
        "array": lambda feature: True,
    }
    others = {name: feature for name, feature in dataset.features.items() if name not in labels}
    found = [name for name, feature in others.items() if kinds[modality](feature)]
    if not found and modality in ("image", "audio"):  # by path, or as arrays
        found = [name for name, feature in others.items() if _holds_inputs(dataset, name, feature)]
    if not found:
        raise InputError(
            f"the network reads {PLURALS[modality]}, but no column of the data holds one: "
            f"{ {name: type(feature).__name__ for name, feature in dataset.features.items()} }; "
            f"name the column with input_column=... (--input)"
        )
    for pair in PAIRS if modality == "text" else ():
        if set(pair) <= set(found):
            return pair
    preferred = [name for name in TEXT_NAMES if name in found]
    if len(found) > 1 and not preferred:
        raise InputError(
            f"several columns hold {PLURALS[modality]}: {found}; name one with input_column=... (--input)"
            + (", or two that are read as pairs" if modality == "text" else "")
        )
    return (preferred or found)[0]


def _is_text(feature: object) -> bool:
    from datasets import Value

    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


def _holds_inputs(dataset: Dataset, column: str, feature: object) -> bool:
    """Whether a column holds paths of files that are there, or recordings with their rates."""
    if isinstance(feature, Mapping):
        return {"array", "sampling_rate"} <= set(feature)
    if not _is_text(feature):
        return False
    first = next((value for value in dataset.select_columns(column)[:64][column] if value is not None), None)
    return isinstance(first, str) and os.path.isfile(first)
