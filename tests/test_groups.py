"""No group on both sides: folds, searches, probes, curves, calibration, rankings, test sets held out, few-shot draws.

The samples are noise, each there twice: whoever learns from one copy and is evaluated on the other beats chance.
"""

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hf_tl import (
    Classifier,
    FullNetworkEmbedding,
    LinearSVM,
    Network,
    Samples,
    layer_probes,
    learning_curve,
    load_task,
    make_head,
    rank_networks,
)
from hf_tl.data import Task
from hf_tl.embedding.embedding import Embedding, LayerColumns
from hf_tl.errors import InputError
from hf_tl.probes.grid_search import stratified_folds
from hf_tl.probes.heads import fit_head
from hf_tl.strategies.draws import draw, usable_samples


LABELS = np.repeat([0, 1, 2], 20)
GROUPS = np.arange(60) // 2  # each sample has a copy


def copied(seed=0):
    """Noise without any class, each sample twice: whoever has seen the copy knows the class."""
    values = np.repeat(np.random.default_rng(seed).normal(size=(30, 40)), 2, axis=0).astype(np.float32)
    return Embedding(values, (LayerColumns("a", 0, 40, 0.0),), np.arange(60), LABELS)


def test_folds_keep_groups_together():
    fold = stratified_folds(LABELS, groups=GROUPS)
    assert len({(group, k) for group, k in zip(GROUPS, fold, strict=True)}) == 30
    assert np.array_equal(stratified_folds(LABELS, groups=np.arange(60)), stratified_folds(LABELS))


def test_the_search_for_C_is_not_deceived_by_copies():
    embedding = copied()
    deceived = LinearSVM(C="auto").fit(embedding.values, LABELS).search_.accuracy.mean(axis=1).max()
    honest = LinearSVM(C="auto").fit(embedding.values, LABELS, groups=GROUPS).search_.accuracy.mean(axis=1).max()
    assert deceived > 0.7
    assert honest < 0.6


def test_layer_probes_are_not_deceived_by_copies():
    assert layer_probes(copied(), progress=False).whole.score > 0.7
    assert layer_probes(copied(), groups=GROUPS, progress=False).whole.score < 0.6


def test_a_draw_has_no_copies_of_itself_or_of_what_is_held_out():
    options = {"shots": (2, 4), "n_splits": 3, "progress": False}
    seen = []

    def watch(samples, others):
        together = np.concatenate([samples, np.unique(others, axis=0)])
        seen.append(len(np.unique(together, axis=0)) == len(together))
        return samples, others

    learning_curve(copied(), groups=GROUPS, prepare=watch, **options)
    assert all(seen)
    seen.clear()
    learning_curve(copied(), prepare=watch, **options)
    assert not all(seen)


@pytest.mark.parametrize("name", ["logreg", "ridge"])
def test_heads_that_search_hold_copies_out_together(name):
    values = copied().values
    head = fit_head(make_head(name, values.shape), values, LABELS, groups=GROUPS)
    assert all(not set(GROUPS[inside]) & set(GROUPS[out]) for inside, out in head[-1].cv)
    assert np.array_equal(np.sort(np.concatenate([out for _, out in head[-1].cv])), np.arange(60))
    assert head[-1].best_score_ < 0.6


def test_a_classifier_is_as_unsure_as_it_will_be():
    samples = Samples([{"x": torch.from_numpy(row)} for row in copied().values], "x", LABELS, tuple("abc"), "train")
    others = Samples([{"x": torch.from_numpy(row)} for row in copied(1).values], "x", LABELS, tuple("abc"), "test")
    network = Network(nn.Sequential(nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 3)), torch.stack)
    reader = FullNetworkEmbedding(network, recipe="standardize", taps=["0"])
    deceived, honest = (Classifier.fit(reader, Task(samples, others), groups=g) for g in (None, GROUPS))
    assert deceived.record.scores["cross entropy"] > 1.2 * honest.record.scores["cross entropy"]
    assert honest.record.scores["cross entropy"] == pytest.approx(np.log(3), abs=0.1)


def test_a_ranking_is_not_deceived_by_copies():
    for groups, least, most in ((None, 0.7, 1.0), (GROUPS, 0.0, 0.6)):
        found = rank_networks({"one": copied()}, groups=groups, scores=("knn", "ridge"), n_draws=2, progress=False)
        assert all(least < values[0] <= most for values in found.values.values())


def words(samples, *, modality):
    """Texts of one first word belong together."""
    return np.unique([samples[i].split()[0] for i in range(len(samples))], return_inverse=True)[1]


@pytest.mark.parametrize("copies", [1, 2, 5])
def test_a_test_set_that_is_held_out_has_no_copies_in_training(tmp_path, copies):
    rows = [{"text": f"{word}{k} in {c}", "label": k % 3} for k, word in enumerate(["w"] * 30) for c in range(copies)]
    Dataset.from_list(rows).to_csv(tmp_path / "texts.csv")
    name = str(tmp_path / "texts.csv")
    plain, task = load_task(name, modality="text"), load_task(name, modality="text", groups=words)
    sides = [{part[i].split()[0] for i in range(len(part))} for part in (task.train, task.test)]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == 6
    assert len(task.train) + len(task.test) == len(rows)
    assert set(task.test.labels) == {0, 1, 2}
    if copies == 1:  # nothing changes
        assert [task.test[i] for i in range(6)] == [plain.test[i] for i in range(6)]
    else:
        assert "copies and the like together" in task.notes[-1]


def test_no_test_set_can_be_held_out_of_copies_alone(tmp_path):
    Dataset.from_list([{"text": f"{'ab'[k % 2]} {k}", "label": k % 2} for k in range(8)]).to_csv(tmp_path / "t.csv")
    with pytest.raises(InputError, match="8 samples, those of a class copies of one another"):
        load_task(str(tmp_path / "t.csv"), modality="text", groups=words)


def test_what_finds_copies_may_be_missing(tmp_path):
    def missing(samples, *, modality):
        raise InputError("pip install it")

    Dataset.from_list([{"text": f"text {k}", "label": k % 2} for k in range(10)]).to_csv(tmp_path / "texts.csv")
    task = load_task(str(tmp_path / "texts.csv"), modality="text", groups=missing)
    assert "copies among the samples were not looked for: pip install it" in task.notes


@given(numbers=st.lists(st.integers(0, 12), min_size=24, max_size=40), seed=st.integers(0, 5))
def test_a_run_of_compare_has_a_group_on_one_side(numbers, seed):
    groups, n_train = np.array(numbers), len(numbers) * 2 // 3
    labels = groups % 3
    pool, _ = usable_samples(labels, n_train=n_train, groups=groups)
    if not len(pool):
        return
    drawn = draw(labels, pool, shots=3, seed=seed)
    sides = [groups[drawn.train], groups[drawn.validation], groups[n_train:]]
    assert sum(len(np.unique(side)) for side in sides) == len(np.unique(np.concatenate(sides)))
    assert len(np.unique(sides[0])) == len(sides[0])


def test_a_class_of_one_photo_leaves_nothing_to_calibrate_on():
    few = np.array([0] * 30 + [1] * 30)
    samples = Samples([{"x": torch.from_numpy(row)} for row in copied().values], "x", few, tuple("ab"), "train")
    network = Network(nn.Sequential(nn.Linear(40, 8), nn.ReLU(), nn.Linear(8, 2)), torch.stack)
    reader = FullNetworkEmbedding(network, recipe="standardize", taps=["0"])
    found = Classifier.fit(reader, Task(samples, samples), groups=few)
    assert "not calibrated" in found.calibration.how


def test_groups_of_other_samples():
    with pytest.raises(InputError, match=r"one number a sample, \(60,\), got shape \(3,\)"):
        stratified_folds(LABELS, groups=np.arange(3))
