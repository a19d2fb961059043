"""A pass over blocks of a dataset: samples known by their indices in it, the network copied once."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from one_pass import embedding, rows, small_model

from hf_tl import InputError, Samples
from hf_tl.embedding import passes
from hf_tl.embedding.batches import Execution, Processes


@pytest.fixture(scope="module")
def fne():
    return embedding(small_model()).fit(rows(8))


def blocks(fne, *parts, **options):
    """The chunks of several blocks of samples, each a mapping of indices to rows."""
    execution = Execution(**{"batch_size": 4, "progress": False, **options})
    planned = passes.Pass(fne.network, rows(1), activation="after", execution=execution, processes=Processes())
    planned.taps = fne.taps_
    for part in parts:
        planned.samples = Samples(part, "input", name="flowers")
        for chunk in planned.chunks(list(part)):
            yield SimpleNamespace(indices=chunk.indices, values=chunk.values.copy(), skipped=chunk.skipped)


def drawn(*indices):
    return {index: {"input": rows(1)[index]} for index in indices}


def test_blocks_give_what_a_pass_over_all_gives(fne):
    whole = embedding(small_model(), recipe="raw").activations(rows(12))
    found = list(blocks(fne, drawn(7, 3, 11, 2, 9), drawn(0)))
    assert [chunk.indices.tolist() for chunk in found] == [[7, 3, 11, 2], [9], [0]]
    for chunk in found:
        np.testing.assert_allclose(chunk.values, whole.values[chunk.indices], rtol=1e-5, atol=1e-6)


def test_a_bad_sample_is_named_or_skipped_by_its_index_in_the_dataset(fne):
    part = drawn(70, 30, 50) | {30: {"input": torch.full((3, 12, 12), torch.nan)}}
    with pytest.raises(InputError, match="sample 30 of flowers gives NaN or infinite"):
        list(blocks(fne, part))
    (chunk,) = blocks(fne, part, on_bad_samples="skip")
    assert (chunk.indices.tolist(), chunk.skipped.tolist()) == ([70, 50], [30])


def test_the_network_is_copied_once_for_all_blocks(fne, monkeypatch):
    copied = []
    monkeypatch.setattr(copy, "deepcopy", lambda model, *rest: copied.append(model) or small_model())
    list(blocks(fne, drawn(1, 2), drawn(3), drawn(4), channels_last=True))
    assert len(copied) == 1
