"""Rows on disk: written by index, checked, continued."""

import copy
import json
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_tl import Embedding, InputError
from hf_tl.embedding.embedding import LayerColumns
from hf_tl.embedding.fingerprint import fingerprint_json
from hf_tl.embedding.store import Store, writing
from hf_tl.embedding.stored_array import Codec


def manifest(n_rows=10, width=5, **fingerprints):
    layers = [{"name": "a", "start": 0, "stop": width, "depth": 0.0, "kind": "other", "place": "a"}]
    return {
        "n_samples": n_rows,
        "layers": layers,
        "activation": "after",
        "fingerprints": {"weights": "w", **fingerprints},
    }


@pytest.mark.parametrize("width", [1, 3, 4, 5, 12_416])
def test_two_bits_hold_three_values(width):
    values = np.random.default_rng(0).integers(-1, 2, (7, width)).astype(np.int8)
    codec = Codec("2bit", width)
    stored = codec.encode(values)
    assert stored.nbytes == 7 * codec.n_bytes == 7 * -(-width // 4)
    for start, stop in ((0, width), (width // 3, width), (width // 2, width // 2 + 1)):
        assert np.array_equal(codec.decode(stored, start, stop), values[:, start:stop])


def test_a_row_of_12416_features_takes_3_kilobytes():
    assert Codec("2bit", 12_416).n_bytes == 3104
    assert Codec("int8", 12_416).n_bytes == 12_416
    assert Codec("float32", 12_416).n_bytes == 49_664


def test_what_two_bits_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="two bits hold -1, 0 and 1, got values from 0 to 2"):
        Codec("2bit", 2).encode(np.array([[0, 2]]))
    with pytest.raises(InputError, match="codec should be 'float32', 'int8' or '2bit', got 'int4'"):
        Codec("int4", 3)


def test_rows_stand_at_their_index_in_any_order(tmp_path):
    values = np.random.default_rng(0).normal(size=(10, 5)).astype(np.float32)
    store = Store.create(tmp_path / "new", manifest())
    for rows in ([7, 8], [0, 1, 2, 5], [9], [3, 4, 6], [4]):
        store.write_rows(np.array(rows), values[rows])
    assert store.verify().all()
    assert np.array_equal(store.raw(store.positions)[:], values)
    for order in ([2, 4, 3, 5], [1, 1, 3], [9, 0]):
        assert np.array_equal(store.raw(np.array(order))[:], values[order])


def test_skipped_rows_are_done_but_not_there(tmp_path):
    store = Store.create(tmp_path, manifest())
    store.write_rows(np.array([0, 2]), np.ones((2, 5)))
    store.skip_rows(np.array([1]))
    assert store.verify().tolist() == [True] * 3 + [False] * 7
    assert store.positions.tolist() == [0, 2]


def test_a_damaged_row_is_found(tmp_path):
    store = Store.create(tmp_path, manifest())
    store.write_rows(np.arange(10), np.random.default_rng(0).normal(size=(10, 5)))
    with open(tmp_path / "raw.f32", "r+b") as file:
        file.seek(4 * 5 * 3 + 2)
        file.write(b"\x55")
    assert np.flatnonzero(~store.verify()).tolist() == [3]
    assert store.positions.tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9]


def test_a_mismatch_names_the_differing_keys_and_changes_nothing(tmp_path):
    store = Store.create(tmp_path, manifest(taps="t", dataset="d"))
    store.write_rows(np.array([0]), np.ones((1, 5)))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match="that was made of other dataset, taps; nothing was changed: choose another"):
        Store.create(tmp_path, manifest(taps="u", dataset="e"))
    with pytest.raises(InputError, match="made of other samples"):
        Store.create(tmp_path, manifest(n_rows=11, taps="t", dataset="d"))
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert Store.create(tmp_path, manifest(taps="t", dataset="d")).positions.tolist() == [0]


def test_a_disk_without_room_is_found_before_the_first_batch(tmp_path):
    with pytest.raises(InputError, match=r"raw.f32 .* needs .* MiB, and .* MiB are free .*--taps"):
        Store.create(tmp_path, manifest(n_rows=10**9, width=10**6))


def test_a_checksum_file_that_was_cut_short_does_not_shorten_a_store(tmp_path):
    store = Store.create(tmp_path, manifest())
    store.write_rows(np.arange(10), np.ones((10, 5)))
    os.truncate(tmp_path / "raw.crc", 4 * 6)
    with pytest.raises(InputError, match=r"raw.crc holds 6 checksums of 10 rows; repeat the command"):
        Store.open(tmp_path).positions  # noqa: B018
    again = Store.create(tmp_path, manifest())  # what is missing is read again
    assert np.flatnonzero(~again.verify()).tolist() == [6, 7, 8, 9]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"n_samples": 10', '"n_samples": 1e999'),
        ('"n_samples": 10', '"n_samples": 1000000000000'),
        ('"n_samples": 10', '"n_samples": "10"'),
        ('"stop": 5', '"stop": 1e999'),
        ('"start": 0', '"start": false'),
        ('"fingerprints": {', '"fingerprints": ["x"], "other": {'),
        ('"name": "a"', '"name": "b"'),
    ],
)
def test_a_manifest_that_was_changed_is_refused(tmp_path, old, new, monkeypatch):
    Store.create(tmp_path, manifest())
    text = (tmp_path / "embedding.json").read_text()
    assert old in text
    (tmp_path / "embedding.json").write_text(text.replace(old, new))
    with pytest.raises(InputError, match=r"is damaged: .*changed after it was written.*make it again with"):
        Store.open(tmp_path)
    if new.endswith(("1e999", '"10"', "false")) or "[" in new:  # whoever writes the digest too gets no further
        monkeypatch.setattr("hf_tl.embedding.store._digest", lambda manifest: manifest["digest"])
        with pytest.raises(InputError, match=r"is damaged: TypeError.*make it again with hf-tl embed"):
            Store.open(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, "null", "[]", "{}", "{"])
def test_a_manifest_that_is_none_ends_in_a_sentence(tmp_path, text):
    (tmp_path / "embedding.json").write_text(text)
    with pytest.raises(InputError, match=r"is damaged|cannot be read"):
        Store.open(tmp_path)


def test_a_folder_has_one_writer_at_a_time(tmp_path):
    refused = pytest.raises(InputError, match=r"another run is writing into .*; wait for it and repeat this one")
    with writing(tmp_path), refused, writing(tmp_path):
        pass
    with writing(tmp_path):
        pass


def test_no_call_that_windows_lacks_is_needed(tmp_path, monkeypatch):
    for name in ("pwrite", "pread", "posix_fallocate"):
        monkeypatch.delattr(os, name)
    store = Store.create(tmp_path, manifest())
    store.write_rows(np.arange(10), np.ones((10, 5)))
    assert store.verify().all()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


def places(value, path=()):
    """The ways to every value of a nested one, itself included."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from places(item, (*path, key))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    values = np.random.default_rng(0).integers(-1, 2, (4, 5)).astype(np.int8)
    layers = (LayerColumns("a", 0, 2, 0.0), LayerColumns("b", 2, 5, 1.0))
    made = Embedding(values, layers, np.arange(4), np.array(list("xyxy")), network="n")
    folder = made.save(tmp_path_factory.mktemp("saved"))
    return folder, made, json.loads((folder / "embedding.json").read_text())


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_whatever_a_manifest_says_it_loads_or_ends_in_a_sentence(saved, data):
    """Even one whose digest is right, as whoever wrote it would see to."""
    folder, made, told = saved
    told = copy.deepcopy(told)
    path = data.draw(st.sampled_from([path for path in places(told) if path and path != ("digest",)]))
    holder = told
    for key in path[:-1]:
        holder = holder[key]
    if data.draw(st.booleans()):
        holder[path[-1]] = data.draw(VALUES)
    else:
        del holder[path[-1]]
    told["digest"] = fingerprint_json({key: value for key, value in told.items() if key != "digest"})
    (folder / "embedding.json").write_text(json.dumps(told))
    try:
        loaded = Embedding.load(folder)
    except InputError:
        return
    assert np.array_equal(np.asarray(loaded), made.values)
