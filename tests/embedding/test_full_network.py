"""The full-network embedding as its users call it."""

import numpy as np
import pytest
import timm
import torch
from datasets import Dataset
from lanes import lanes
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from torch import nn

from hf_tl import FullNetworkEmbedding, InputError, Network, Samples, load_network


def small_network():
    torch.manual_seed(0)
    return Network(timm.create_model("test_resnet", num_classes=3).eval(), torch.stack, name="test_resnet")


def images(n, seed=0):
    return list(torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed)))


def embedding(network=None, **options):
    return FullNetworkEmbedding(network or small_network(), progress=False, batch_size=4, **options)


def test_training_statistics_are_applied_unchanged_to_the_test_rows():
    fne = embedding()
    train = fne.fit_transform(images(12))
    mean, std = fne.statistics_.mean.copy(), fne.statistics_.std().copy()
    together = fne.transform(images(9, seed=1))
    one_by_one = np.concatenate([np.asarray(fne.transform([image])) for image in images(9, seed=1)])
    assert train.values.dtype == together.values.dtype == np.int8
    assert (
        together.values != one_by_one
    ).mean() < 1e-3  # rounding of another batch size; test statistics would give 0s
    assert np.array_equal(mean, fne.statistics_.mean)
    assert np.array_equal(std, fne.statistics_.std())


def test_fit_then_transform_is_fit_transform():
    rows = images(10)
    both = embedding().fit_transform(rows)
    apart = embedding().fit(rows).transform(rows)
    assert np.array_equal(both.values, apart.values)
    assert both.layers == apart.layers


RECIPES = ("paper", "standardize", "l2", "raw")


@pytest.mark.parametrize("recipe", lanes(RECIPES, fast=lambda recipe: recipe in ("paper", "l2")))
def test_one_pass_serves_every_recipe_and_layer_subset(recipe):
    network, rows = small_network(), images(10)
    raw = embedding(network, recipe="raw", taps=["auto", "last"]).activations(rows)
    for taps, top in (("auto", 1.0), ("auto", 0.25), ("last", 1.0), (["layer2.*"], 1.0)):
        stored = FullNetworkEmbedding(recipe=recipe, taps=taps, top=top).fit_transform(raw)
        direct = embedding(network, recipe=recipe, taps=taps, top=top).fit_transform(rows)
        assert np.array_equal(stored.values, direct.values)
        assert [layer.name for layer in stored.layers] == [layer.name for layer in direct.layers]


def test_single_layer_last_layer_and_top_fraction():
    network, rows = small_network(), images(6)
    whole = embedding(network).fit(rows)
    last = embedding(network, taps="last", recipe="raw").activations(rows)
    with torch.inference_mode():
        assert np.allclose(last.values, network.model.forward_head(
            network.model.forward_features(torch.stack(rows)), pre_logits=True), atol=1e-5)  # fmt: skip
    top = embedding(network, top=0.25).fit(rows)
    assert top.layer_names_ == whole.layer_names_[-(len(whole.layer_names_) // 4) :]
    assert embedding(network, taps=["conv1.0"]).fit(rows).layer_names_ == ["conv1.0"]


def test_the_presets_differ_on_which_side_of_the_activation_they_read():
    network, rows = small_network(), images(8)
    after = embedding(network, recipe="raw").activations(rows)
    with pytest.raises(InputError, match="reads layers before their activation, but these were read after it"):
        FullNetworkEmbedding(recipe="fne-package").fit(after)
    before = embedding(network, recipe="fne-package").activations(rows)
    assert before.activation == "before"
    assert (before.values < 0).mean() > (after.values < 0).mean()


def test_batch_norm_and_training_flags_are_untouched():
    network = small_network()
    network.model.train()
    before = network.model.bn1.running_mean.clone()
    embedding(network).fit_transform(images(8))
    assert network.model.training
    assert torch.equal(before, network.model.bn1.running_mean)


def test_labels_and_class_names_travel_with_a_dataset():
    from datasets import ClassLabel, Features
    from datasets import Image as ImageFeature

    pictures = [Image.new("RGB", (32, 32), (40 * i, 0, 0)) for i in range(6)]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a", "b"])})
    data = Dataset.from_dict({"image": pictures, "label": [0, 1] * 3}, features=features)
    network = small_network()
    network = Network(network.model, lambda rows: torch.stack([_tensor(row) for row in rows]), modality="image")
    made = embedding(network).fit_transform(data)
    assert made.labels.tolist() == [0, 1] * 3
    assert made.class_names == ("a", "b")


def _tensor(image):
    return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32)).permute(2, 0, 1) / 255


class Broken(Samples):
    """Rows of which some cannot be read."""

    def __getitem__(self, index):
        if index in (0, 4, 5):
            raise OSError("image file is truncated")
        return super().__getitem__(index)


def broken_rows(n=10):
    return Broken([{"input": image} for image in images(n)], "input", labels=np.arange(n) % 3, name="train")


def test_a_bad_row_is_named():
    with pytest.raises(
        InputError, match=r"sample 0 of train cannot be read: OSError: image file is truncated; .*skip"
    ):
        embedding().fit(broken_rows())


def test_skipped_rows_keep_labels_aligned():
    network = small_network()
    made = embedding(network, on_bad_samples="skip").fit_transform(broken_rows())
    good = [1, 2, 3, 6, 7, 8, 9]
    assert made.indices.tolist() == good
    assert made.labels.tolist() == [row % 3 for row in good]
    whole = embedding(network, recipe="raw").activations(images(10))
    kept = embedding(network, recipe="raw", on_bad_samples="skip").activations(broken_rows())
    assert np.allclose(kept.values, whole.values[good], atol=1e-5)


def test_a_row_that_the_processor_refuses_is_named_or_skipped():
    rows = [*images(5), torch.zeros(3, 32, 32)[:, :0], *images(2)]

    def prepare(batch):
        if any(image.numel() == 0 for image in batch):
            raise ValueError("empty image")
        return torch.stack(batch)

    network = Network(small_network().model, prepare)
    with pytest.raises(InputError, match="sample 5 of samples cannot be read: ValueError: empty image"):
        embedding(network).fit(rows)
    assert embedding(network, on_bad_samples="skip").fit_transform(rows).indices.tolist() == [0, 1, 2, 3, 4, 6, 7]


def test_rows_that_fit_no_common_batch_are_told_apart_from_bad_rows():
    rows = [torch.randn(3, 32, 32), torch.randn(3, 32, 32), torch.randn(3, 40, 40), torch.randn(3, 32, 32)]
    with pytest.raises(
        InputError, match=r"samples 0 to 3 of samples cannot be put into one batch: RuntimeError: .*one shape"
    ):
        embedding().fit(rows)
    assert len(embedding().set_params(batch_size=1).fit_transform(rows)) == 4


def test_samples_that_are_prepared_as_one_are_refused():
    network = Network(small_network().model, lambda images: torch.stack(images).mean(dim=0, keepdim=True))
    with pytest.raises(
        InputError, match=r"samples 0 to 1 of samples cannot be put .* 2 samples were prepared as 1: \(1"
    ):
        embedding(network).fit(images(4))


def test_samples_of_which_none_can_be_used_say_why(text_folder):
    fne = FullNetworkEmbedding(load_network(str(text_folder)), progress=False, on_bad_samples="skip")
    with pytest.raises(InputError, match=r"none of the 2 samples of samples can be used, the first: .* reads texts"):
        fne.fit([("a film", 0.5), ("dull", 0.1)])
    with pytest.raises(InputError, match=r"samples 0 to 1 of samples cannot be put .* single texts and pairs"):
        fne.fit(["a film", ("dull", "not good")])


def test_a_network_that_cannot_run_says_on_what():
    with pytest.raises(InputError, match=r"test_resnet cannot run on its prepared inputs, \(2, 7\): RuntimeError: "):
        embedding().fit(list(torch.randn(4, 7)))


def test_rows_with_nan_activations_leave_no_gap():
    rows, good = images(10), [0, 2, 3, 6, 7, 8]
    network = small_network()
    whole = embedding(network).activations(rows)
    broken = [row if i in good else row * float("nan") for i, row in enumerate(rows)]
    made = embedding(network, on_bad_samples="skip").activations(broken)
    assert made.indices.tolist() == good
    assert made.shape == (6, whole.shape[1])
    assert np.allclose(made.values, whole.values[good], atol=1e-5)


def test_nan_activations_are_named_before_statistics_are_touched():
    rows = images(10)
    rows[6] = rows[6] * float("nan")
    fne = embedding().fit(images(10, seed=1))
    before = fne.statistics_
    with pytest.raises(InputError, match=r"sample 6 of samples gives NaN or infinite .* in layer 'conv1.0'"):
        fne.fit(rows)
    assert fne.statistics_ is before
    assert before.n == 10
    assert 6 not in embedding(on_bad_samples="skip").fit_transform(rows).indices


def test_test_features_before_fit():
    with pytest.raises(NotFittedError, match="call fit or fit_transform on the training samples first"):
        embedding().transform(images(2))


@pytest.mark.parametrize(
    ("options", "rows", "message"),
    [
        ({}, [], "samples has no samples"),
        ({}, 1, "training statistics need two samples or more, got 1"),
        ({"taps": ["layer9.*"]}, 4, r"'layer9.\*' matches none of the \d+ layers; the closest are 'layer"),
        ({"batch_size": 0}, 4, "batch_size must be at least 1, got 0"),
        ({"on_bad_samples": "ignore"}, 4, "should be 'raise' or 'skip', got 'ignore'"),
        ({"device": "cuda:77"}, 4, "device 'cuda:77' cannot be used here"),
        ({"recipe": "papers"}, 4, "no recipe 'papers'"),
    ],
)
def test_wrong_arguments_end_in_a_sentence(options, rows, message):
    fne = FullNetworkEmbedding(small_network(), **{"progress": False, **options})
    with pytest.raises(InputError, match=message):
        fne.fit(images(rows) if isinstance(rows, int) else rows)


def test_rows_of_other_layers_are_refused():
    raw = embedding(recipe="raw").activations(images(4))
    fitted = FullNetworkEmbedding().fit(raw)
    with pytest.raises(InputError, match="use the same network and layers for both"):
        fitted.transform(raw.select(["layer1.*"]))
    with pytest.raises(InputError, match="expected raw activations, got int8"):
        fitted.transform(fitted.transform(raw))
    with pytest.raises(InputError, match="without a network only raw embeddings can be used"):
        fitted.transform(images(2))


def test_it_is_an_sklearn_estimator_whose_clone_shares_the_network():
    fne = embedding(top=0.5).fit(images(4))
    copy = clone(fne)
    assert copy.network is fne.network
    assert copy.get_params() == fne.get_params()
    assert not copy.__sklearn_is_fitted__()
    assert copy.set_params(top=1.0).top == 1.0


def test_text_padding_does_not_change_a_row(text_folder):
    network = load_network(str(text_folder))
    texts = ["the film was very very very very good", "dull", "a bad film"]
    fne = FullNetworkEmbedding(network, recipe="raw", taps=["auto", "last"], progress=False)
    together, alone = fne.activations(texts), [fne.activations([text]) for text in texts]
    assert np.allclose(together.values, np.concatenate([one.values for one in alone]), atol=1e-5)


def test_a_network_that_returns_a_plain_vector_has_it_as_its_last_layer():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    rows = list(torch.randn(5, 3))
    last = FullNetworkEmbedding(Network(model, torch.stack), taps="last", recipe="raw", progress=False).activations(
        rows
    )
    assert np.allclose(last.values, model(torch.stack(rows)).detach().numpy())


def test_transform_and_every_batch_of_map_use_the_taps_of_the_fit(monkeypatch):
    fne = embedding().fit(images(8))
    taps, expected = fne.taps_, np.asarray(fne.transform(images(5, seed=1)))
    monkeypatch.setattr("hf_tl.embedding.full_network.find_taps", None)  # nothing is planned any more
    assert np.array_equal(fne.transform(images(5, seed=1)), expected)
    assert np.array_equal(fne(images(5, seed=1))["embedding"], expected)
    assert fne.taps_ is taps
    with pytest.raises(TypeError):
        fne.fit(images(8))


def test_a_network_that_was_changed_after_the_fit_is_noticed():
    fne = embedding().fit(images(6))
    fne.network.model.layer2[0].act1 = nn.Identity()
    values = np.asarray(fne.transform(images(3)))  # other values of the same layers
    fresh = FullNetworkEmbedding(fne.network, progress=False, batch_size=4).fit_with(fne.layers_, fne.statistics_)
    assert np.array_equal(values, fresh.transform(images(3)))
    fne.network.model.layer2[0].conv2 = nn.Conv2d(24, 32, 3, padding=1)
    with pytest.raises(InputError, match=r"cannot run|expected the \d+ layers of training"):
        fne.transform(images(3))
    fne = embedding().fit(images(6))
    with pytest.raises(InputError, match=r"expected the \d+ layers of training, 'conv1.0' to .*, got 1, 'conv1.0' to"):
        fne.set_params(taps="conv1.0").transform(images(3))


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_a_precision_is_given_as_transformers_takes_it(dtype):
    fne = embedding(dtype=dtype, recipe="raw")
    assert fne.dtype_name == "bfloat16"
    assert len(fne.activations(images(4))) == 4


@pytest.mark.filterwarnings("ignore:Got pickle error:UserWarning")
def test_a_preparation_that_no_module_holds_cannot_be_sent_to_spawned_workers():
    with pytest.raises(InputError, match=r"cannot be sent to worker processes.*or use num_workers=0"):
        _spawned(Network(small_network().model, lambda batch: torch.stack(batch)))


@pytest.mark.slow
def test_spawned_workers_read_what_one_process_reads(text_folder):
    network = load_network(str(text_folder))
    texts = ["the film was good", "dull", "a bad film"]
    alone = FullNetworkEmbedding(network, recipe="raw", progress=False).activations(texts)
    assert np.array_equal(_spawned(network, texts), alone)


def _spawned(network, samples=None):
    """The activations, with a worker that is spawned, as on macOS and Windows."""
    import multiprocessing

    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        fne = FullNetworkEmbedding(network, recipe="raw", progress=False, num_workers=1)
        return fne.activations(images(4) if samples is None else samples)
    finally:
        multiprocessing.set_start_method(before, force=True)


def test_from_pretrained_takes_what_the_constructor_takes(timm_folder, tmp_path, image_folder):
    given = {"codec": "int8", "batch_size": 3, "device": "cpu", "on_bad_samples": "skip", "progress": False}
    given |= {"channels_last": True, "torch_compile": False, "num_workers": 0, "top": 0.5, "pool": "max"}
    given |= {"dtype": "bfloat16", "taps": "conv", "recipe": "standardize"}
    assert {"network", *given} == set(FullNetworkEmbedding().get_params())
    made = FullNetworkEmbedding.from_pretrained(str(timm_folder), **given)
    assert given.items() <= made.get_params().items()
    images = [str(path) for path in sorted(image_folder.rglob("*.png"))[:4]]
    folder = made.fit(images).save_pretrained(tmp_path / "fitted")
    again = FullNetworkEmbedding.from_pretrained(str(folder), batch_size=2, num_workers=0, progress=False)
    assert (again.dtype, again.batch_size, again.top) == ("bfloat16", 2, 0.5)
    assert again.transform(images).shape == made.transform(images).shape
    found, expected = (np.asarray(one.activations(images).values) for one in (again, made))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2**-6 * np.abs(expected).max())  # bfloat16 has 8 bits
