"""Rankings that know how sure they are."""

import numpy as np
import pytest
from test_transferability import classes

from hf_tl import rank_networks
from hf_tl.embedding.embedding import Embedding, LayerColumns
from hf_tl.errors import InputError


def embedding(values, labels):
    layers = (LayerColumns("last", 0, values.shape[1], 1.0),)
    return Embedding(values.astype(np.float32), layers, np.arange(len(values)), labels)


def test_a_ranking_knows_how_sure_it_is():
    made = {
        name: embedding(*classes(n=90, shift=shift, seed=seed))
        for name, shift, seed in (("noise", 0.0, 1), ("good", 3.0, 1), ("alike", 3.0, 1))
    }
    ranking = rank_networks(made, progress=False)
    assert ranking.order[-1] == "noise"
    assert (ranking.rank_interval("knn")[0] == 3).all()
    assert ranking.ranks("knn").tolist() == [3.0, 1.5, 1.5]
    assert "its first place is not sure" in str(ranking)
    two = rank_networks({name: made[name] for name in ("noise", "good")}, progress=False)
    assert "good comes first by every score" in str(two)
    assert two.table().splitlines()[2].startswith("good")
    one = rank_networks({"good": made["good"]}, scores=("knn",), progress=False)
    assert str(one) == "good is the only network; give others to rank it among"


def test_copies_are_left_out():
    F, labels = classes(n=60, shift=0.0)
    groups = np.arange(60)
    doubled = embedding(np.concatenate([F, F]), np.concatenate([labels, labels]))
    options = {"scores": ("knn", "logme"), "progress": False}
    found = rank_networks({"a": doubled}, groups=np.concatenate([groups, groups]), **options)
    assert found.values == rank_networks({"a": embedding(F, labels)}, **options).values


def test_mistakes():
    F, labels = classes()
    with pytest.raises(InputError, match="no network to rank"):
        rank_networks({})
    with pytest.raises(InputError, match="have no labels"):
        rank_networks({"a": embedding(F, None)})
    with pytest.raises(InputError, match="read on other samples"):
        rank_networks({"a": embedding(F, labels), "b": embedding(F[1:], labels[1:])}, progress=False)
    with pytest.raises(InputError, match="one class a sample"):
        rank_networks({"a": embedding(F, np.zeros(len(F)))}, progress=False)
    with pytest.raises(InputError, match="groups should be one number a sample"):
        rank_networks({"a": embedding(F, labels)}, groups=np.zeros(3), progress=False)
