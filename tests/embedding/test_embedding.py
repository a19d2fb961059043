"""The embedding of a set of rows: columns by layer, and its files."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hf_tl import Embedding, InputError
from hf_tl.embedding.embedding import LayerColumns


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


@pytest.mark.parametrize("dtype", [np.float32, np.int8])
@pytest.mark.parametrize("labels", [None, np.array([0, 1, 1]), np.array(["good", "bad", "good"])])
def test_what_is_saved_is_loaded(tmp_path, labels, dtype):
    made = embedding(labels, dtype)
    loaded = Embedding.load(made.save(tmp_path / "new" / "folder"))
    assert loaded.values.dtype == dtype
    assert np.array_equal(loaded.values, made.values)
    assert np.array_equal(loaded.rows, made.rows)
    assert (loaded.labels is None) if labels is None else np.array_equal(loaded.labels, labels)
    assert (loaded.layers, loaded.class_names, loaded.activation, loaded.network) == (
        made.layers,
        made.class_names,
        made.activation,
        made.network,
    )


def damage(about, tensors, what):
    if what == "format":
        about["format"] = "something else 7"
    elif what == "columns":
        about["layers"][1]["start"] = 0
    elif what == "key":
        del about["layers"]
    elif what == "rows":
        tensors["rows"] = tensors["rows"][:2]
    elif what == "codes":
        tensors["labels"] = np.array([0, 1, -1])
    elif what == "activation":
        about["activation"] = "around"


@pytest.mark.parametrize("what", ["format", "columns", "key", "rows", "codes", "activation"])
def test_files_that_do_not_fit_together_are_refused(tmp_path, what):
    folder = embedding(np.array(["good", "bad", "good"])).save(tmp_path)
    about, tensors = json.loads((folder / "embedding.json").read_text()), load_file(folder / "embedding.safetensors")
    damage(about, tensors, what)
    (folder / "embedding.json").write_text(json.dumps(about))
    save_file(tensors, folder / "embedding.safetensors")
    with pytest.raises(InputError, match=r"is damaged: .*make it again"):
        Embedding.load(folder)


def test_missing_and_truncated_files_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no embedding: .*embedding.json is missing"):
        Embedding.load(tmp_path)
    folder = embedding().save(tmp_path)
    content = (folder / "embedding.safetensors").read_bytes()
    (folder / "embedding.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        Embedding.load(folder)
