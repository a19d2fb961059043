"""Layer probes: each set of layers is evaluated as LinearSVM on its columns is."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from hf_tl import InputError, LinearSVM
from hf_tl.probes.grid_search import stratified_folds, usable_folds
from hf_tl.probes.layer_probes import layer_probes


@dataclass
class Span:
    name: str
    start: int
    stop: int
    depth: float


@dataclass
class Features:
    values: np.ndarray
    layers: tuple
    labels: np.ndarray | None
    class_names: tuple[str, ...] | None = None


WIDTHS, SIGNAL = (4, 30, 60, 200), (0.0, 0.3, 0.6, 0.2)


def features(rows=90, seed=0, signal=SIGNAL, last=False):
    generator = np.random.default_rng(seed)
    y = np.arange(rows) % 3
    parts, spans, at = [], [], 0
    for i, (width, strength) in enumerate(zip(WIDTHS, signal, strict=True)):
        centres = np.random.default_rng(i).normal(0, strength, (3, width))
        parts.append(np.sign(centres[y] + generator.normal(size=(rows, width))).astype(np.int8))
        spans.append(Span(f"layer{i}", at, at + width, i / 3))
        at += width
    if last:
        parts.append(parts[-1])
        spans.append(Span("last", at, at + WIDTHS[-1], 1.0))
    return Features(np.concatenate(parts, axis=1), tuple(spans), y)


def right(train, test, columns):
    x, z = train.values[:, columns], test.values[:, columns]
    squared = (x.astype(float) ** 2).sum(axis=1).mean() + 1
    return LinearSVM(10.0 / squared).fit(x, train.labels).predict(z) == test.labels


def test_each_set_of_layers_is_evaluated_as_a_svm_on_its_columns():
    train, test = features(), features(60, seed=1)
    probes = layer_probes(train, test, progress=False)
    stops = np.cumsum(WIDTHS)
    for i, stop in enumerate(stops):
        assert (probes.single[i].outcomes == right(train, test, slice(stop - WIDTHS[i], stop))).all()
        assert (probes.first_to[i].outcomes == right(train, test, slice(0, stop))).all()
        assert (probes.to_last[i].outcomes == right(train, test, slice(stop - WIDTHS[i], None))).all()
    assert probes.whole.n_features == sum(WIDTHS)
    assert (probes.whole.outcomes == probes.to_last[0].outcomes).all()
    assert probes.best_layer.name == "layer2"
    assert probes.depths == (0, 1 / 3, 2 / 3, 1)
    assert probes.chance == pytest.approx(1 / 3)


def test_without_test_samples_each_one_is_evaluated_by_a_fit_without_its_fold():
    train = features()
    probes = layer_probes(train, progress=False)
    fold = stratified_folds(train.labels)
    columns = slice(4, 34)
    x = train.values[:, columns].astype(float)
    C = 10.0 / ((x**2).sum(axis=1).mean() + 1)
    for k in range(5):
        svm = LinearSVM(C).fit(x[fold != k], train.labels[fold != k])
        assert (probes.single[1].outcomes[fold == k] == (svm.predict(x[fold == k]) == train.labels[fold == k])).all()
    assert "each by a fit without its fold of 5" in str(probes)


def test_a_second_copy_of_the_last_layer_is_left_out():
    assert [probed.name for probed in layer_probes(features(last=True), progress=False).single][-1] == "layer3"


def test_sentences_table_and_plot(tmp_path):
    train, test = features(), features(60, seed=1)
    noise = features(signal=(0, 0, 0, 0)), features(60, seed=1, signal=(0, 0, 0, 0))
    probes = layer_probes(train, test, untrained=noise, progress=False)
    assert "best single layer: layer2, " in str(probes)
    assert "the best is chosen on the same samples" in str(probes)
    assert "the same network with random weights: all layers 0." in str(probes)
    lines = probes.table().splitlines()
    assert len(lines) == 2 + 4
    assert "random weights" in lines[0]
    assert probes.untrained.whole.score < probes.whole.score - 0.2
    probes.plot(tmp_path / "layers.png", title="title")
    assert (tmp_path / "layers.png").stat().st_size > 10_000


def test_wrong_input_is_refused():
    train = features()
    with pytest.raises(InputError, match="the training embedding has no labels"):
        layer_probes(Features(train.values, train.layers, None))
    with pytest.raises(InputError, match="different layers: 4 and 5"):
        layer_probes(train, features(last=True))
    with pytest.raises(InputError, match="relative_C must be above 0"):
        layer_probes(train, relative_C=0)
    with pytest.raises(InputError, match="give test samples"):
        layer_probes(Features(train.values[:3], train.layers, train.labels[:3]))


def test_an_interval_of_the_best_of_many_layers_holds_where_none_knows_anything():
    covered = 0
    spans = tuple(Span(f"layer{i}", 4 * i, 4 * i + 4, i / 49) for i in range(50))
    for seed in range(8):
        generator = np.random.default_rng(seed)
        train, test = (Features(generator.normal(size=(n, 200)), spans, np.arange(n) % 2) for n in (40, 200))
        probes = layer_probes(train, test, progress=False)
        low, high = probes.best_layer.interval
        covered += low <= 0.5 <= high
        assert low < max(probes.single, key=lambda probed: probed.score).interval[0]
    assert covered >= 7


def test_folds_are_as_many_as_the_median_class_allows():
    labels = np.repeat([0, 1, 2], [1, 4, 9])
    assert usable_folds(labels) == 4
    assert usable_folds(np.repeat([0, 1, 2], [1, 9, 9])) == 5
    assert usable_folds(np.arange(5)) == 0


def test_classes_in_another_order_are_numbered_alike():
    train, test = features(), features(seed=1)
    named = replace(train, class_names=("a", "b", "c"))
    turned = replace(test, labels=(test.labels + 1) % 3, class_names=("c", "a", "b"))
    assert layer_probes(named, turned).whole.score == layer_probes(train, test).whole.score
