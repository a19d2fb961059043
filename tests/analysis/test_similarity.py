"""Distances are zero without another domain, references survive a file, p-values are uniform under the null."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch import nn

from hf_tl import Network, compare_domains
from hf_tl.analysis.similarity import Reference, mmd_test, plot_domains, read_source_signs
from hf_tl.embedding.embedding import Embedding, LayerColumns
from hf_tl.errors import InputError


def embedding(n=120, d=5, shift=0.0, seed=0):
    values = np.random.default_rng(seed).normal(size=(n, d)) + shift
    return Embedding(values.astype(np.float32), (LayerColumns("last", 0, d, 1.0),), np.arange(n))


def test_p_values_are_uniform_under_the_null():
    rng = np.random.default_rng(0)
    found = [mmd_test(*rng.normal(size=(2, 20, 3)), n_permutations=99, random_state=k)[1] for k in range(150)]
    assert kstest(found, "uniform").pvalue > 0.01


def test_mmd_is_its_definition():
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(7, 3)), rng.normal(size=(9, 3)) + 1
    both = np.concatenate([X, Y])
    apart = np.square(both[:, None] - both).sum(-1)
    K = np.exp(-apart / np.median(apart[np.triu_indices(16, 1)]))
    xx, yy, xy = K[:7, :7], K[7:, 7:], K[:7, 7:]
    expected = (xx.sum() - 7) / 42 + (yy.sum() - 9) / 72 - 2 * xy.mean()
    assert mmd_test(X, Y)[0] == pytest.approx(expected)


def test_the_least_p_value_counts_the_samples_themselves():
    X, Y = np.random.default_rng(0).normal(size=(2, 20, 3))
    assert mmd_test(X, Y + 9, n_permutations=19)[1] == 1 / 20


def test_the_frechet_distance_of_what_is_twice_as_wide():
    one = embedding()
    wide = replace(one, values=2 * one.values)  # |m - 2 m|^2 + tr(S + 4 S - 2 * 2 S)
    expected = np.square(one.values.mean(axis=0)).sum() + np.trace(np.cov(one.values, rowvar=False))
    assert compare_domains(wide, one).frechet == pytest.approx(expected, rel=1e-4)


def test_the_same_domain_and_another():
    same = compare_domains(embedding(seed=1), embedding(seed=2))
    assert same.p_value > 0.05
    assert same.proxy_a_interval[0] <= 0.0 <= same.proxy_a_interval[1]
    assert "cannot be told apart" in str(same)
    other = compare_domains(embedding(seed=1), embedding(seed=2, shift=4.0))
    assert other.p_value < 0.01
    assert other.proxy_a > 1.8
    assert other.frechet == pytest.approx(5 * 16, rel=0.1)
    assert "differ" in str(other)


@pytest.mark.slow
def test_domains_are_drawn(tmp_path):
    source = embedding(seed=3)
    for kind in (source, Reference.of(source)):
        path = plot_domains(tmp_path / "domains.png", embedding(shift=2.0), kind, title="a set")
        assert path.stat().st_size > 1000


def test_a_reference_survives_its_file(tmp_path):
    source = embedding(seed=3)
    reference = Reference.load(Reference.of(source).save(tmp_path / "source.safetensors"))
    assert reference.layers == ("last",)
    assert reference.n_samples == 120
    direct, stored = compare_domains(embedding(), source), compare_domains(embedding(), reference)
    assert stored.proxy_a == direct.proxy_a
    assert stored.mmd == pytest.approx(direct.mmd, abs=1e-6)


@pytest.mark.parametrize("content", [b"", b"\x10" + b"\0" * 7 + b"{}              ", b"no safetensors at all"])
def test_foreign_files_are_refused(tmp_path, content):
    (tmp_path / "bad.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="is no reference of hf_tl"):
        Reference.load(tmp_path / "bad.safetensors")
    with pytest.raises(InputError, match="there is no reference"):
        Reference.load(tmp_path / "none.safetensors")


def test_mistakes():
    with pytest.raises(InputError, match="same layers of one network"):
        compare_domains(embedding(), embedding(d=4))
    other = replace(embedding(), network="models/other")
    with pytest.raises(InputError, match="read by one network, got 'network' and 'other'"):
        compare_domains(embedding(), Reference.of(other))
    with pytest.raises(InputError, match="10 samples of each side, got 6"):
        compare_domains(embedding(), embedding(n=6))


@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_running_statistics_tell_of_the_source(tmp_path, shift):
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(6).eval()
    network = Network(nn.Sequential(norm, nn.Linear(6, 4)), torch.stack)
    found = read_source_signs(network, list(torch.randn(400, 6) + shift))
    assert found.mean_shift["0"] == pytest.approx(shift, abs=0.1)
    assert found.norm_ratio["0"] == pytest.approx(np.sqrt(1 + shift**2), abs=0.1)
    assert found.entropy is None
    assert "standard deviations of the source" in str(found)
    assert not norm._forward_pre_hooks
    assert found.plot(tmp_path / "signs.png", title="a set").stat().st_size > 1000


def test_a_source_head_is_sure_or_not():
    import timm

    model = timm.create_model("mobilenetv2_035", num_classes=10).eval()
    found = read_source_signs(Network(model, torch.stack), list(torch.randn(4, 3, 32, 32)))
    assert 0 < found.entropy < 1
    nn.init.zeros_(model.classifier.weight)
    assert read_source_signs(Network(model, torch.stack), [torch.randn(3, 32, 32)]).entropy == pytest.approx(1)


def test_a_network_without_running_statistics_has_no_picture(tmp_path):
    found = read_source_signs(Network(nn.Linear(3, 2), torch.stack), [torch.zeros(3)])
    with pytest.raises(InputError, match="nothing to draw"):
        found.plot(tmp_path / "signs.png", title="a set")
