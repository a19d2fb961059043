"""The embedding of a set of rows: columns by layer, and its files."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from lanes import lanes
from safetensors.numpy import load_file, save_file
from torch import nn

from hf_tl import Embedding, FullNetworkEmbedding, InputError, Network, Samples
from hf_tl.embedding.embedding import LayerColumns
from hf_tl.embedding.stored_array import StoredArray


def embedding(labels=None, dtype=np.float32):
    values = np.arange(12).reshape(3, 4).astype(dtype)
    layers = (LayerColumns("a", 0, 1, 0.0), LayerColumns("b", 1, 3, 1.0), LayerColumns("last", 3, 4, 1.0))
    return Embedding(values, layers, np.array([0, 2, 5]), labels, ("x", "y"), "before", "some/network")


def test_it_is_an_array():
    made = embedding()
    assert np.array_equal(np.asarray(made), made.values)
    assert (len(made), made.shape, made.widths) == (3, (3, 4), [1, 2, 1])


def test_select_moves_the_columns():
    chosen = embedding().select(["last", "b"])
    assert chosen.values.tolist() == [[1, 2, 3], [5, 6, 7], [9, 10, 11]]
    assert [(layer.name, layer.start, layer.stop) for layer in chosen.layers] == [("b", 0, 2), ("last", 2, 3)]
    assert embedding().select("auto", top=0.5).values.tolist() == [[1, 2], [5, 6], [9, 10]]


def test_what_is_made_of_a_loaded_embedding_keeps_the_name_of_its_network(tmp_path):
    network = Network(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.stack, name="some/network")
    reader = FullNetworkEmbedding(network, taps=["auto", "last"], progress=False)
    reader.activations(list(torch.randn(6, 4)), out=tmp_path / "raw")
    raw = Embedding.load(tmp_path / "raw")
    fne = FullNetworkEmbedding(recipe="standardize").fit(raw)
    for name, made in (("read", raw), ("scaled", fne.transform(raw)), ("chosen", raw.select("last")[:4])):
        made.save(tmp_path / name)
        fne.transform(raw, out=tmp_path / "kept")
        assert made.network == Embedding.load(tmp_path / name).network == "some/network"
    assert Embedding.load(tmp_path / "kept").network == "some/network"


@pytest.mark.parametrize("dtype", [np.float32, np.int8])
@pytest.mark.parametrize("labels", [None, np.array([0, 1, 1]), np.array(["good", "bad", "good"])])
def test_what_is_saved_is_loaded(tmp_path, labels, dtype):
    made = embedding(labels, dtype)
    loaded = Embedding.load(made.save(tmp_path / "new" / "folder"))
    assert loaded.values.dtype == dtype
    assert np.array_equal(loaded.values, made.values)
    assert np.array_equal(loaded.indices, made.indices)
    assert (loaded.labels is None) if labels is None else np.array_equal(loaded.labels, labels)
    assert (loaded.layers, loaded.class_names, loaded.activation, loaded.network) == (
        made.layers,
        made.class_names,
        made.activation,
        made.network,
    )


@pytest.mark.parametrize(
    "dtype", [bool, *(np.dtype(code).type for code in "bBhHiIqQ"), np.float16, np.float32, np.float64]
)
def test_values_of_any_type_come_back_or_are_refused(tmp_path, dtype):
    kind = np.dtype(dtype).kind
    limits = None if kind == "b" else np.finfo(dtype) if kind == "f" else np.iinfo(dtype)
    bounds = [1] if limits is None else [limits.max, limits.min] if kind in "iu" else [limits.max.item()]
    most = np.finfo(np.float32).max.item() if kind == "f" else 2**24
    for i, largest in enumerate([1, -1, 127, 128, 255, -128, -129, 40_000, 2**24, 2**24 + 1, *bounds]):
        if not min(*bounds, 0) <= largest <= max(bounds):
            continue
        values = np.array([[largest, 1], [0, 1]], dtype)
        made = Embedding(values, (LayerColumns("a", 0, 2, 0.0),), np.arange(2))
        if abs(int(values[0, 0])) > most:
            with pytest.raises(InputError, match="features are stored as float32, which holds"):
                made.save(tmp_path / str(i))
            continue
        loaded = Embedding.load(made.save(tmp_path / str(i)))
        assert loaded.values[:].tolist() == (values.astype(np.float32) if kind == "f" else values).tolist()


def test_values_that_are_no_numbers_are_refused(tmp_path):
    with pytest.raises(InputError, match="features should be numbers, float or int, got complex64"):
        embedding(dtype=np.complex64).save(tmp_path)


def damage(about, index, what):
    if what == "format":
        about["format"] = "something else 7"
    elif what == "columns":
        about["layers"][1]["start"] = 0
    elif what == "key":
        del about["layers"]
    elif what == "rows":
        index["indices"] = index["indices"][:2]
    elif what == "codes":
        index["labels"] = np.array([0, 1, -1])
    elif what == "activation":
        about["activation"] = "around"
    elif what == "codec":
        about["features"] = {"codec": "pickle"}
    elif what == "list":
        about.clear()


@pytest.mark.parametrize("what", ["format", "columns", "key", "rows", "codes", "activation", "codec", "list"])
def test_files_that_do_not_fit_together_are_refused(tmp_path, what):
    folder = embedding(np.array(["good", "bad", "good"])).save(tmp_path)
    about, index = json.loads((folder / "embedding.json").read_text()), load_file(folder / "index.safetensors")
    index = {name: value.copy() for name, value in index.items()}
    damage(about, index, what)
    (folder / "embedding.json").write_text(json.dumps(about))
    save_file(index, folder / "index.safetensors")
    with pytest.raises(InputError, match=r"is damaged: .*make it again"):
        Embedding.load(folder)


def test_missing_and_truncated_files_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no embedding: .*embedding.json is missing"):
        Embedding.load(tmp_path)
    folder = embedding().save(tmp_path)
    content = (folder / "raw.f32").read_bytes()
    (folder / "raw.f32").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"raw\.f32 does not have the size of 3 rows"):
        Embedding.load(folder)
    (folder / "index.safetensors").write_bytes(b"12345")
    with pytest.raises(InputError, match="cannot be read"):
        Embedding.load(folder)
    (folder / "index.safetensors").unlink()
    with pytest.raises(InputError, match="is not finished: 0 of 3 samples are missing; repeat the command"):
        Embedding.load(folder)


def test_rows_and_columns_stay_in_the_file_until_they_are_asked_for(tmp_path):
    made = embedding(np.array([4, 5, 6]))
    loaded = Embedding.load(made.save(tmp_path))
    assert isinstance(loaded.values, StoredArray)
    for rows in (slice(1, 3), slice(None, None, -1), np.array([2, 0]), np.array([True, False, True]), [1]):
        assert isinstance(loaded[rows].values, StoredArray)
        assert np.array_equal(loaded[rows], made.values[rows])
        assert loaded[rows].labels.tolist() == made.labels[rows].tolist()
        assert np.array_equal(loaded.select(["a", "last"])[rows], made.values[rows][:, [0, 3]])
    assert np.array_equal(loaded.values[1], made.values[1])
    assert np.array_equal(loaded.values[:, 1:3], made.values[:, 1:3])
    assert np.array_equal(loaded.values[0:2, [3, 0]], made.values[0:2, [3, 0]])
    with pytest.raises(InputError, match=r"one sample is embedding\[i : i \+ 1\]"):
        loaded[1]


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [(np.array([0, 1, 1]), ("x", "y"), [0, 1, 1]), (np.array(["a", "b", "a"]), None, ["a", "b", "a"])],
)
def test_a_dataset_has_rows_values_and_labels(tmp_path, labels, names, expected, stored):
    made = replace(embedding(labels), class_names=names)
    data = made.to_dataset(tmp_path / "rows.arrow" if stored else None)
    assert data["index"][:] == [0, 2, 5]
    assert data["label"][:] == expected
    assert np.array_equal(data.with_format("numpy")["embedding"][:], made.values)
    assert data.features["embedding"].length == 4
    if names is not None:
        assert data.features["label"].names == ["x", "y"]


def test_saving_again_changes_nothing_and_other_values_are_refused(tmp_path):
    folder = embedding().save(tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    embedding().save(folder)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InputError, match="made of other values; nothing was changed"):
        replace(embedding(), values=embedding().values + 1).save(folder)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("keep_raw", lanes([False, True], fast=lambda keep_raw: keep_raw))
def test_any_byte_that_is_flipped_cut_or_swapped_is_noticed(tmp_path, keep_raw):
    network = Network(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), torch.stack)
    samples = Samples([{"x": row} for row in torch.randn(12, 4)], "x", labels=np.arange(12) % 3)
    fne = FullNetworkEmbedding(network, taps="linear", progress=False)
    whole = tmp_path / "whole"
    expected = fne.fit_transform(samples, out=whole, keep_raw=keep_raw)
    raw = Embedding.load(whole, values="raw") if keep_raw else None
    generator, spoilt = np.random.default_rng(0), tmp_path / "spoilt"
    names = sorted(path.name for path in whole.iterdir() if path.stat().st_size)
    noticed = 0
    shutil.copytree(whole, spoilt)
    for _ in range(500):
        path = spoilt / names[generator.integers(len(names))]
        content = bytearray(path.read_bytes())
        at, other = generator.integers(len(content), size=2)
        change = generator.integers(3)
        if change == 0:
            content[at] ^= 1 << generator.integers(8)
        elif change == 1:
            del content[at:]
        else:
            content[at], content[other] = content[other], content[at]
        path.write_bytes(bytes(content))
        try:
            for kind, right in (("features", expected), ("raw", raw)):
                if right is not None:
                    found = Embedding.load(spoilt, values=kind)
                    assert np.array_equal(np.asarray(found), right)  # array_equal takes an error for a no
                    assert found.labels.tolist() == expected.labels.tolist()
                    assert found.layers == expected.layers
        except InputError:
            noticed += 1
        path.write_bytes((whole / path.name).read_bytes())
    assert noticed > 330  # the rest changed nothing: equal bytes, white space, checksums of rows that are not there
