"""Transformers that know layers, and crops: against scikit-learn and numpy by hand."""

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from hf_tl import Embedding, InputError, Samples
from hf_tl.embedding import Discretizer, LayerNormalizer, LayerSelector, Standardizer, StreamedPCA
from hf_tl.embedding.crops import TenCrops, ten_crops
from hf_tl.embedding.embedding import LayerColumns


def embedding(n=600, seed=0):
    values = np.random.default_rng(seed).normal(2, 3, (n, 7)).astype(np.float32)
    layers = (LayerColumns("a", 0, 3, 0.0, "conv"), LayerColumns("b", 3, 7, 1.0, "block"))
    return Embedding(values, layers, np.arange(n), labels=np.arange(n) % 3)


STEPS = [LayerNormalizer(), Standardizer(), Discretizer("quantile"), LayerSelector(["b"]), StreamedPCA(7)]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: type(step).__name__)
def test_parts_teach_what_one_pass_teaches(step, tmp_path):
    whole = embedding()
    stored = Embedding.load(whole.save(tmp_path))
    once = clone(step).fit(whole)
    parts = clone(step).partial_fit(whole[:300]).partial_fit(whole[300:])
    expected = np.asarray(once.transform(whole))
    for other in (parts, clone(step).fit(stored)):
        got = np.asarray(other.transform(stored))
        if isinstance(step, StreamedPCA):  # a component has no sign
            got, expected = np.abs(got), np.abs(expected)
        np.testing.assert_allclose(got, expected, atol=2e-3)
        assert other.get_feature_names_out().tolist() == once.get_feature_names_out().tolist()
    made = once.transform(whole)
    assert isinstance(made, Embedding)
    assert made.shape[1] == len(once.get_feature_names_out()) == made.layers[-1].stop
    assert isinstance(once.transform(whole.values), np.ndarray)
    with pytest.raises(InputError, match="expected the 7 features of the fit, got 3"):
        once.transform(whole.select(["a"]))


def test_standardizer_is_scikit_learns():
    whole = embedding()
    expected = StandardScaler().fit_transform(whole.values.astype(np.float64))
    np.testing.assert_allclose(Standardizer().fit_transform(whole.values), expected, atol=1e-5)


def test_pca_is_scikit_learns():
    whole = embedding()
    expected = PCA(7).fit(whole.values.astype(np.float64))
    got = StreamedPCA(7).fit(whole)
    np.testing.assert_allclose(got.pca_.explained_variance_, expected.explained_variance_, rtol=1e-6)
    with pytest.raises(InputError, match="7 components need as many samples at once or more, got 5"):
        StreamedPCA(7).fit(whole[:5])


def test_layers_have_norm_1_each():
    scaled = LayerNormalizer().fit_transform(embedding()).values
    np.testing.assert_allclose(np.linalg.norm(scaled[:, :3], axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(scaled[:, 3:], axis=1), 1, rtol=1e-6)


def test_thresholds_of_the_paper_of_quantiles_and_ones_own():
    standard = Standardizer().fit_transform(embedding())
    assert Discretizer().fit(standard).thresholds_ == (-0.25, 0.15)
    assert Discretizer((-1, 1)).fit(standard).thresholds_ == (-1, 1)
    quantile = Discretizer("quantile").fit(standard)
    np.testing.assert_allclose(quantile.thresholds_, np.quantile(standard.values, [1 / 3, 2 / 3]), atol=4e-3)
    made = quantile.transform(standard)
    assert made.values.dtype == np.int8
    assert all(abs((made.values == value).mean() - 1 / 3) < 0.01 for value in (-1, 0, 1))
    for wrong, message in (("median", "'paper', 'quantile' or"), ((1, -1), "low <= high")):
        with pytest.raises(InputError, match=message):
            Discretizer(wrong).fit(standard).transform(standard)


def test_a_selector_keeps_layers_by_name_or_kind():
    whole = embedding()
    assert np.array_equal(LayerSelector(["b"]).fit_transform(whole), whole.values[:, 3:])
    assert LayerSelector("blocks").fit(whole).get_feature_names_out().tolist() == [f"b[{i}]" for i in range(4)]
    assert np.array_equal(LayerSelector("conv").fit_transform(whole), whole.values[:, :3])


def test_a_pipeline_of_all():
    whole = embedding(300)
    pipeline = make_pipeline(Standardizer(), Discretizer(), LayerSelector("auto", top=0.5), LinearSVC())
    assert clone(pipeline).fit(whole, whole.labels).predict(whole).shape == (300,)


def picture(seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 32, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_ten_crops_are_corners_and_centre_and_their_mirrors():
    image = picture()
    pixels, crops = np.asarray(image), [np.asarray(crop) for crop in ten_crops(image, share=0.5)]
    for crop, (y, x) in zip(crops, [(0, 0), (0, 16), (20, 0), (20, 16), (10, 8)], strict=False):
        assert np.array_equal(crop, pixels[y : y + 20, x : x + 16])
    for crop, mirrored in zip(crops[:5], crops[5:], strict=True):
        assert np.array_equal(crop[:, ::-1], mirrored)


def test_crops_are_samples_and_come_back_as_images():
    rows = Samples([{"image": picture(i)} for i in range(3)], "image", labels=np.array([2, 0, 1]))
    crops = TenCrops.of(rows)
    assert len(crops) == 30
    assert crops.labels.tolist() == [2] * 10 + [0] * 10 + [1] * 10
    assert np.array_equal(crops[17], ten_crops(picture(1))[7])
    values = np.arange(60.0).reshape(30, 2).astype(np.float32)
    assert np.allclose(crops.mean(values), values.reshape(3, 10, 2).mean(axis=1))
    predictions = np.array(["a"] * 4 + ["b"] * 6 + ["b"] * 5 + ["a"] * 5 + ["c"] * 10)
    assert crops.vote(predictions).tolist() == ["b", "a", "c"]
    for answer in (crops.vote, crops.mean):
        with pytest.raises(InputError, match="expected a row for each of the 30 crops, got 29"):
            answer(predictions[1:])
    with pytest.raises(InputError, match="at most 1, the side of a crop, got 2"):
        TenCrops.of(rows, share=2)
