"""On a cluster of two Ray nodes: the same statistics and features as in one process, whoever is killed on the way."""

import sys
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from nodes import drawn, embedding
from ray_nodes import Deadly, losing_a_node

from hf_tl import Embedding, FullNetworkEmbedding, InputError, RayEmbedding, load_network
from hf_tl.cluster import block_reader
from hf_tl.cluster.block_reader import BlockReader, ReadingPlan
from hf_tl.embedding.batches import Execution


pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(240)]
N = 300


@pytest.fixture(scope="module")
def alone():
    """What one process gives."""
    fne = embedding()
    return fne, fne.fit_transform(drawn(N))


def assert_same(got: Embedding, wanted: Embedding):
    assert (np.asarray(got) != np.asarray(wanted)).mean() <= 1e-6
    np.testing.assert_array_equal(got.indices, wanted.indices)
    assert got.layers == wanted.layers
    assert (got.network, got.activation, got.dtype) == (wanted.network, wanted.activation, wanted.dtype)
    if wanted.labels is None:
        assert got.labels is None
    else:
        assert got.labels.tolist() == wanted.labels.tolist()


def images(n=24):
    """PNG files as `datasets` holds them, the last ones first."""
    from datasets import Dataset, Features, Image, Value
    from PIL import Image as PIL

    generator = np.random.default_rng(0)
    pixels = [PIL.fromarray(generator.integers(0, 256, (40, 30 + i, 3), dtype=np.uint8)) for i in range(n)]
    rows = {"image": pixels, "label": ["xyz"[i % 3] for i in range(n)], "index": list(range(n))}
    kinds = Features({"image": Image(), "label": Value("string"), "index": Value("int64")})
    return Dataset.from_dict(rows, features=kinds)


def test_samples_that_all_machines_can_read(cluster, alone, tmp_path):
    fne, wanted = alone
    on_ray = RayEmbedding(embedding(), block_size=32, actors=1).fit(drawn(N))
    for name, value in fne.statistics_.state().items():
        if name in ("n", "shift"):
            np.testing.assert_array_equal(on_ray.embedding.statistics_.state()[name], value)
    np.testing.assert_allclose(on_ray.embedding.statistics_.mean, fne.statistics_.mean, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(on_ray.embedding.statistics_.std(), fne.statistics_.std(), rtol=1e-6, atol=1e-9)
    got = on_ray.to_parquet(on_ray.transform(drawn(N)), tmp_path / "shards", rows_per_file=100)
    assert_same(got, wanted)
    assert got.class_names == wanted.class_names
    assert 1 < len(list((tmp_path / "shards").glob("*.parquet"))) < 10
    assert_same(on_ray.embedding.transform(drawn(N)), wanted)  # and is an embedding like any other


def test_images_of_a_ray_dataset_in_another_order(cluster, timm_folder, tmp_path):
    import ray.data

    data = images()
    reversed_ = ray.data.from_huggingface(data.select(range(len(data) - 1, -1, -1)))
    fne = FullNetworkEmbedding(load_network(str(timm_folder)), progress=False)
    wanted = fne.fit_transform(data)
    on_ray = RayEmbedding(fne, block_size=7, actors=1)
    rows = on_ray.transform(reversed_)
    assert_same(on_ray.to_parquet(rows, f"file://{tmp_path}/ternary"), wanted)


def test_pairs_of_texts(cluster, text_folder, tmp_path):
    import ray.data

    rows = [
        {"index": 7 * i, "premise": "the film was " + "very " * i, "hypothesis": f"not {'a ' * i}good"}
        for i in range(6)
    ]
    fne = FullNetworkEmbedding(load_network(str(text_folder)), progress=False)
    wanted = np.asarray(fne.activations([(row["premise"], row["hypothesis"]) for row in rows]))
    on_ray = RayEmbedding(fne, block_size=4, actors=1)
    raw = on_ray.activations(ray.data.from_items(rows, override_num_blocks=1), codec="float16")
    got = on_ray.to_parquet(raw, tmp_path / "shards")
    np.testing.assert_allclose(np.asarray(got), wanted, rtol=2e-3, atol=1e-3)
    assert got.indices.tolist() == [0, 7, 14, 21, 28, 35]
    assert got.labels is None


def test_actors_and_a_node_are_killed_on_the_way(cluster, alone, tmp_path):
    fne, wanted = alone
    (tmp_path / "read").mkdir()
    fatal = (170,)
    samples = drawn(N, Deadly, fatal=fatal, folder=str(tmp_path / "read"))
    on_ray = RayEmbedding(fne, block_size=20, actors=2)
    with losing_a_node(cluster, lambda: len(list((tmp_path / "read").iterdir())) >= N // 4):
        got = on_ray.to_parquet(on_ray.transform(samples), tmp_path / "shards", rows_per_file=50)
    assert_same(got, wanted)
    assert len(got) == N
    times = {int(path.name): path.stat().st_size for path in (tmp_path / "read").iterdir()}
    assert all(times[index] > 1 for index in fatal)


def test_bad_samples_are_named_by_their_index_or_left_out(cluster, alone, tmp_path):
    import ray.data

    rows = [{"index": 100 + i, "image": drawn(N)[i].numpy(), "label": 0.5 * i} for i in range(40)]
    rows[30]["image"] = np.full((3, 12, 12), np.nan, np.float32)
    data = ray.data.from_items(rows, override_num_blocks=1)
    on_ray = RayEmbedding(alone[0], inputs="image", block_size=16, actors=1)
    with pytest.raises(InputError, match=r"^sample 130 of samples gives NaN or infinite activations") as error:
        on_ray.to_parquet(on_ray.transform(data), tmp_path / "a")
    assert "\n" not in str(error.value)
    skipping = embedding(on_bad_samples="skip").fit_with(alone[0].layers_, alone[0].statistics_)
    on_ray = RayEmbedding(skipping, inputs="image", block_size=16, actors=1)
    got = on_ray.to_parquet(on_ray.transform(data), tmp_path / "b")
    assert got.indices.tolist() == [100 + i for i in range(40) if i != 30]
    assert got.labels.tolist() == [0.5 * i for i in range(40) if i != 30]
    with pytest.raises(InputError, match=r"/b' holds Parquet files already; choose another folder"):
        on_ray.to_parquet(on_ray.transform(data), tmp_path / "b")


def test_what_cannot_be_read_is_refused_before_anything_is(cluster, alone, tmp_path):
    import ray.data

    row = {"image": np.zeros((3, 12, 12), np.float32), "label": 1, "number": 3, "name": "x"}
    data = ray.data.from_items([row] * 4)
    on_ray = RayEmbedding(alone[0], inputs="image")
    with pytest.raises(InputError, match=r"no column of .* is called 'index': shards say of each row which sample"):
        on_ray.transform(data)
    with pytest.raises(InputError, match="column 'name' should number the samples, got str"):
        RayEmbedding(alone[0], inputs="image", index="name").transform(data)
    with pytest.raises(InputError, match=r"there is no column 'imag' among .*'image'"):
        RayEmbedding(alone[0], inputs="imag").fit(data)
    with pytest.raises(InputError, match=r"which of the columns .* is read cannot be told"):
        RayEmbedding(alone[0]).fit(data)
    with pytest.raises(InputError, match=r"the dataset has no samples"):
        on_ray.fit(data.limit(0))
    with pytest.raises(InputError, match="need two samples or more, got 1"):
        RayEmbedding(embedding(), actors=1).fit(drawn(1))
    other = embedding().fit(drawn(2))
    other.network = replace(other.network, model=torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(432, 8)))
    with pytest.raises(InputError, match=r"the network has no module '\d', which the fit read; use the network of"):
        RayEmbedding(other).transform(drawn(3))
    with pytest.raises(InputError, match="'nosuch://a/b' cannot be written: ValueError: Protocol not known: nosuch"):
        on_ray.to_parquet(data, "nosuch://a/b")
    with pytest.raises(InputError, match="rows_per_file should be at least 1, got 0"):
        on_ray.to_parquet(data, tmp_path / "c", rows_per_file=0)
    with pytest.raises(InputError, match="rows should be what transform or activations gave, got Drawn"):
        on_ray.to_parquet(drawn(3), tmp_path / "c")
    with pytest.raises(InputError, match=r"embedding should be a FullNetworkEmbedding, .* got str"):
        RayEmbedding("timm/resnet50.a1_in1k")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 0}, "block_size should be at least 1, got 0"),
        ({"num_gpus": 1}, "device='cpu' with num_gpus=1: actors on GPUs take both"),
    ],
)
def test_options(options, message):
    with pytest.raises(InputError, match=message):
        RayEmbedding(embedding(), **options)


def test_codecs():
    fne = embedding(recipe="standardize").fit(drawn(8))
    with pytest.raises(InputError, match="codec '2bit' holds -1, 0 and 1, which recipe 'standardize' does not give"):
        RayEmbedding(fne).transform(drawn(8), codec="2bit")
    with pytest.raises(InputError, match="raw activations are kept as 'float32' or 'float16', got 'int8'"):
        RayEmbedding(fne).activations(drawn(8), codec="int8")
    with pytest.raises(InputError, match="torch_compile=True would compile anew"):
        RayEmbedding(embedding(torch_compile=True))
    assert RayEmbedding(embedding(device="cuda")).num_gpus == 1


def test_a_sample_without_a_number_is_named(monkeypatch):
    monkeypatch.setattr(block_reader, "receive", lambda reading: reading)
    fne = embedding().fit(drawn(8))
    execution = Execution(**{field.name: vars(fne)[field.name] for field in fields(Execution)})
    reading = ReadingPlan(fne.network, fne.taps_, "after", execution, ("image",), "index")
    block = {"image": np.zeros((3, 3, 12, 12), np.float32), "index": np.array([7.0, np.nan, 9.0])}
    with pytest.raises(InputError, match="column 'index' of samples should number every sample, got nan behind 7"):
        next(BlockReader(reading).chunks(block))


def test_without_ray_a_sentence_says_how_to_install_it(monkeypatch):
    for name in ("ray", "ray.data"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r"this runs on Ray: pip install 'hf-tl\[ray\]'"):
        RayEmbedding(embedding()).fit([torch.zeros(3, 12, 12)] * 2)
