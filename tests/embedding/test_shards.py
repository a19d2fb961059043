"""Parquet shards: what was written is read, by hf_tl and by every other tool, wherever the rows stand."""

import json
from dataclasses import replace

import fsspec
import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.spec import AbstractBufferedFile
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_tl import Embedding, InputError
from hf_tl.embedding.embedding import LayerColumns
from hf_tl.embedding.shards import OPEN_FILES, ROWS_PER_GROUP
from hf_tl.embedding.stored_array import Codec


def embedding(n=50, widths=(5, 8, 3), kind="2bit", seed=0, labels="int"):
    generator = np.random.default_rng(seed)
    stops = np.cumsum(widths).tolist()
    layers = tuple(
        LayerColumns(f"layer{i}.conv", stop - width, stop, (i + 1) / len(widths), "conv", f"{i}/{len(widths)}")
        for i, (width, stop) in enumerate(zip(widths, stops, strict=True))
    )
    values = {
        "2bit": generator.integers(-1, 2, (n, stops[-1])).astype(np.int8),
        "int8": generator.integers(-128, 128, (n, stops[-1])).astype(np.int8),
        "float32": generator.standard_normal((n, stops[-1])).astype(np.float32),
    }[kind]
    marks = {
        "int": generator.integers(0, 3, n),
        "str": np.array(["a", "bb", "c"])[generator.integers(0, 3, n)],
        "several": generator.integers(0, 2, (n, 3)),
        "number": generator.standard_normal(n),
    }
    names = ("x", "y", "z") if labels in ("int", "several") else None
    return Embedding(values, layers, np.arange(n) * 2, marks.get(labels), names, network="tiny")


def assert_equal(got, wanted):
    np.testing.assert_array_equal(np.asarray(got), np.asarray(wanted))
    np.testing.assert_array_equal(got.indices, wanted.indices)
    assert got.layers == wanted.layers
    assert (got.class_names, got.activation, got.network) == (wanted.class_names, wanted.activation, wanted.network)
    if wanted.labels is None:
        assert got.labels is None
    else:
        assert got.labels.tolist() == wanted.labels.tolist()


@settings(max_examples=15)
@given(
    st.integers(1, 40),
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.sampled_from(["2bit", "int8", "float32"]),
    st.sampled_from(["int", "str", "several", "number", None]),
    st.integers(1, 17),
)
def test_what_is_written_is_read(tmp_path_factory, n, widths, kind, labels, rows_per_file):
    wanted = embedding(n, tuple(widths), kind, labels=labels)
    folder = tmp_path_factory.mktemp("shards") / "here"
    wanted.to_parquet(folder, rows_per_file=rows_per_file)
    got = Embedding.load(folder)
    assert_equal(got, wanted)
    assert len(list(folder.glob("*.parquet"))) == -(-n // rows_per_file)
    assert_equal(got[n // 2 :], wanted[n // 2 :])
    assert_equal(got.select(f"layer{len(widths) - 1}.*"), wanted.select(f"layer{len(widths) - 1}.*"))
    generator = np.random.default_rng(n)
    rows, start = generator.integers(0, n, 7), generator.integers(0, sum(widths))
    np.testing.assert_array_equal(got.values[rows, start:], wanted.values[rows, start:])


@pytest.mark.parametrize("codec", ["2bit", "int8", "float16", "float32"])
def test_each_codec_holds_ternary_values(tmp_path, codec):
    wanted = embedding()
    got = Embedding.load(wanted.to_parquet(tmp_path / codec, codec=codec))
    np.testing.assert_array_equal(np.asarray(got), wanted.values)
    assert got.dtype == (np.int8 if codec in ("2bit", "int8") else np.float32)


def test_float16_rounds_raw_values_to_eleven_bits(tmp_path):
    wanted = embedding(kind="float32")
    got = np.asarray(Embedding.load(wanted.to_parquet(tmp_path / "half", codec="float16")))
    np.testing.assert_array_equal(got, wanted.values.astype(np.float16).astype(np.float32))


def test_two_bits_refuse_what_they_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match="two bits hold -1, 0 and 1"):
        embedding(kind="int8").to_parquet(tmp_path / "a", codec="2bit")
    assert not list((tmp_path / "a").glob("*.parquet"))


def test_to_a_store_and_back(tmp_path):
    wanted = embedding()
    stored = Embedding.load(wanted.save(tmp_path / "store"))
    assert_equal(Embedding.load(stored.to_parquet(tmp_path / "shards")), wanted)
    again = Embedding.load(Embedding.load(tmp_path / "shards").save(tmp_path / "again"))
    assert_equal(again, wanted)
    for name in ("features.bin", "features.crc", "index.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "store" / name).read_bytes()


def test_shards_in_any_order_give_the_samples_in_theirs(tmp_path):
    wanted = embedding()
    for name, part in [("z", wanted[:10]), ("a", wanted[10:35]), ("m", wanted[35:])]:
        part.to_parquet(tmp_path / name).joinpath("00000.parquet").rename(tmp_path / f"{name}.parquet")
    assert_equal(Embedding.load(tmp_path), wanted)


def test_a_url(tmp_path):
    import fsspec

    wanted = embedding()
    wanted.to_parquet(tmp_path / "shards")
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "shards"), "/bucket/shards", recursive=True)
    assert_equal(Embedding.load("memory://bucket/shards"), wanted)


@pytest.mark.slow
def test_pandas_duckdb_and_datasets_read_them(tmp_path):
    import datasets

    wanted = embedding()
    folder = wanted.to_parquet(tmp_path / "shards", rows_per_file=20)
    frame = pd.read_parquet(folder)
    data = datasets.load_dataset("parquet", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    for labels, packed in [(frame["label"], frame["layer0.conv"]), (data["label"], data["layer0.conv"])]:
        assert list(labels) == wanted.labels.tolist()
        stored = np.frombuffer(b"".join(packed), np.uint8).reshape(len(wanted), -1)
        np.testing.assert_array_equal(Codec("2bit", 5).decode(stored, 0, 5), wanted.values[:, :5])
    duckdb = pytest.importorskip("duckdb")
    assert duckdb.sql(f"select count(*), sum(label) from '{folder}/*.parquet'").fetchall() == [
        (50, wanted.labels.sum())
    ]


def test_only_the_columns_that_are_asked_for_are_read(tmp_path, monkeypatch):
    folder = embedding().to_parquet(tmp_path / "shards")
    loaded, asked = Embedding.load(folder), []
    real = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, i, columns: asked.append(columns) or real(self, i, columns)
    )
    np.asarray(loaded.select("layer1.*"))
    assert asked == [["layer1.conv"]]


def test_a_sample_in_two_shards_is_refused(tmp_path):
    wanted = embedding()
    wanted.to_parquet(tmp_path / "here")
    wanted[:3].to_parquet(tmp_path / "more").joinpath("00000.parquet").rename(tmp_path / "here" / "more.parquet")
    with pytest.raises(InputError, match=r"sample 0 is in the shards of .* twice"):
        Embedding.load(tmp_path / "here")


def test_shards_of_two_embeddings_are_refused(tmp_path):
    embedding().to_parquet(tmp_path / "here")
    other = replace(embedding(), network="another")
    other.to_parquet(tmp_path / "other").joinpath("00000.parquet").rename(tmp_path / "here" / "1.parquet")
    with pytest.raises(InputError, match=r"1\.parquet is of another embedding than .*00000\.parquet"):
        Embedding.load(tmp_path / "here")


def test_parquet_of_somebody_else_is_refused(tmp_path):
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet is no shard of an embedding"):
        Embedding.load(tmp_path)


def test_writing_over_shards_is_refused(tmp_path):
    embedding().to_parquet(tmp_path / "here")
    with pytest.raises(InputError, match="holds Parquet files already"):
        embedding(seed=1).to_parquet(tmp_path / "here")


@pytest.mark.parametrize("change", ["cut", "columns", "stop", "format", "codec"])
def test_damage_is_noticed(tmp_path, change):
    path = embedding().to_parquet(tmp_path / "here") / "00000.parquet"
    table = pq.read_table(path)
    about = json.loads(table.schema.metadata[b"hf_tl"])
    if change == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    elif change == "columns":
        pq.write_table(table.drop_columns(["layer1.conv"]), path)
    else:
        if change == "stop":
            about["layers"][0]["stop"] = 10**12
        else:
            about[change] = "float64"
        metadata = {b"hf_tl": json.dumps(about).encode()}
        pq.write_table(table.replace_schema_metadata(metadata), path)
    with pytest.raises(InputError, match=r"00000\.parquet is no shard of an embedding, or damaged"):
        Embedding.load(tmp_path / "here")


def test_every_flipped_byte_of_the_values_is_noticed_or_harmless(tmp_path):
    """Parquet's pages carry checksums, which the writer adds and the reader compares."""
    wanted = embedding(n=300)
    path = wanted.to_parquet(tmp_path / "here") / "00000.parquet"
    whole, generator = path.read_bytes(), np.random.default_rng(0)
    for place in generator.integers(0, len(whole), 60):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << generator.integers(0, 8)
        path.write_bytes(flipped)
        try:
            got = Embedding.load(tmp_path / "here")
            values = np.asarray(got)
        except InputError:
            continue
        np.testing.assert_array_equal(values, wanted.values)
        assert got.labels.tolist() == wanted.labels.tolist()


def test_a_layer_of_a_reserved_name_is_refused(tmp_path):
    made = embedding()
    named = replace(made, layers=(replace(made.layers[0], name="index"), *made.layers[1:]))
    with pytest.raises(InputError, match="a layer is called 'index' or 'label'"):
        named.to_parquet(tmp_path / "here")


def test_a_sample_of_12416_ternary_features_takes_3_2_kilobytes(tmp_path):
    wanted = embedding(n=512, widths=(64, 256, 512, 1024, 2048, 4096, 4416))
    path = wanted.to_parquet(tmp_path / "here") / "00000.parquet"
    assert wanted.shape[1] == 12416
    assert path.stat().st_size / 512 < 3200
    assert pa.types.is_fixed_size_binary(pq.read_schema(path).field("layer0.conv").type)


def test_many_files_are_read_and_few_are_open(tmp_path):
    wanted = embedding()
    folder = wanted.to_parquet(tmp_path / "shards", rows_per_file=1)
    process = psutil.Process()
    before = process.num_fds()
    got = Embedding.load(folder)
    assert process.num_fds() <= before
    assert_equal(got, wanted)
    assert process.num_fds() <= before + OPEN_FILES
    np.testing.assert_array_equal(np.asarray(got[::-1]), wanted.values[::-1])


class Far(fsspec.AbstractFileSystem):
    """Local files as a bucket gives them: each read is a request for a range of bytes."""

    protocol, requests = "far", []

    def ls(self, path, detail=True, **kwargs):
        return fsspec.filesystem("file").ls(path, detail=detail)

    def info(self, path, **kwargs):
        return fsspec.filesystem("file").info(path)

    def _open(self, path, mode="rb", **kwargs):
        class File(AbstractBufferedFile):
            def _fetch_range(self, start, end):
                Far.requests.append(end - start)
                with open(path, "rb") as file:
                    file.seek(start)
                    return file.read(end - start)

        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        return File(self, path, mode, **kwargs)


def test_of_a_bucket_no_more_is_fetched_than_is_read(tmp_path, monkeypatch):
    fsspec.register_implementation("far", Far, clobber=True)
    monkeypatch.setattr(Far, "requests", [])
    wanted = embedding(n=3000, widths=(3000, 200, 3000))
    folder = wanted.to_parquet(tmp_path / "shards")
    size = (folder / "00000.parquet").stat().st_size
    got = Embedding.load(f"far://{folder}")
    assert sum(Far.requests) < size / 10  # the footer, indices and labels
    assert len(Far.requests) <= 1 + 2 * -(-len(wanted) // ROWS_PER_GROUP)  # of a group both columns at once, or each
    Far.requests.clear()
    np.testing.assert_array_equal(np.asarray(got.select("layer1.*")), wanted.values[:, 3000:3200])
    assert sum(Far.requests) < size / 10
