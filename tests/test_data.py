"""A name -> a task: formats, columns, splits, and what is wrong with them."""

import json

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from conftest import write_images
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from hf_tl import InputError, load_task
from hf_tl.data import as_samples


def text_task(path, **options):
    return load_task(str(path), modality="text", **options)


def frame(n=10, classes=("bad", "good")):
    return pd.DataFrame(
        {"text": [f"film {i}" for i in range(n)], "label": [classes[i % len(classes)] for i in range(n)]}
    )


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])
def test_files_of_every_format(tmp_path, suffix):
    path = tmp_path / f"data{suffix}"
    writers = {
        ".csv": lambda: frame().to_csv(path, index=False),
        ".tsv": lambda: frame().to_csv(path, index=False, sep="\t"),
        ".json": lambda: path.write_text(json.dumps(frame().to_dict("records"))),
        ".jsonl": lambda: frame().to_json(path, orient="records", lines=True),
        ".parquet": lambda: frame().to_parquet(path),
    }
    writers[suffix]()
    task = text_task(path)
    assert (len(task.train), len(task.test)) == (8, 2)
    assert sorted(set(task.train.labels)) == ["bad", "good"]
    assert task.notes == ("no labelled test split: 2 of 10 training samples are held out",)
    assert task.train[0].startswith("film ")


def test_held_out_samples_are_a_fifth_of_each_class_the_same_each_time(tmp_path):
    frame(50, classes=("a", "b", "b", "b", "b")).to_csv(tmp_path / "data.csv", index=False)
    first, second = text_task(tmp_path / "data.csv"), text_task(tmp_path / "data.csv")
    assert np.unique(first.test.labels, return_counts=True)[1].tolist() == [2, 8]
    assert [first.test[i] for i in range(10)] == [second.test[i] for i in range(10)]
    assert not {first.test[i] for i in range(10)} & {first.train[i] for i in range(40)}
    for rows in (first.train, first.test):  # labels stay with their samples
        assert all(label == "abbbb"[int(rows[i].split()[1]) % 5] for i, label in enumerate(rows.labels))


def test_imagefolder(image_folder):
    task = load_task(str(image_folder), modality="image")
    assert (len(task.train), len(task.test), task.notes) == (12, 6, ())
    assert task.train.class_names == ("cat", "dog")
    assert task.train[0].size == (40, 40)


def test_validation_stands_in_for_a_test_split_without_labels(tmp_path):
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["n", "y"])}
    )
    for split, labels in (("train", [0, 1, 0, 1]), ("validation", [1, 0]), ("test", [-1, -1])):
        rows = {"sentence": [f"{split} {i}" for i in range(len(labels))], "label": labels}
        (tmp_path / "data").mkdir(exist_ok=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data" / f"{split}-0.parquet")
    task = text_task(tmp_path)
    assert [task.test[i] for i in range(2)] == ["validation 0", "validation 1"]
    assert task.notes == ("split 'test' has no labels and is not used", "tested on split 'validation'")


def test_columns_can_be_named(tmp_path):
    data = frame().rename(columns={"text": "title", "label": "stars"})
    data["body"] = "text"
    data.to_csv(tmp_path / "data.csv", index=False)
    task = text_task(tmp_path / "data.csv", label="stars", input_column="title")
    assert task.train[0].startswith("film")


def test_integer_and_boolean_labels(tmp_path):
    data = frame()
    data["label"] = [i % 2 == 0 for i in range(10)]
    data.to_parquet(tmp_path / "data.parquet")
    assert set(text_task(tmp_path / "data.parquet").train.labels.tolist()) == {False, True}


def without_label(tmp_path):
    frame().drop(columns="label").to_csv(tmp_path / "data.csv", index=False)


def misnamed(tmp_path):
    frame().rename(columns={"label": "lable"}).to_csv(tmp_path / "data.csv", index=False)


def two_candidates(tmp_path):
    data = frame().rename(columns={"text": "first"})
    data["second"] = "more"
    data.to_csv(tmp_path / "data.csv", index=False)


def no_rows(tmp_path):
    (tmp_path / "data.csv").write_text("text,label\n")


def one_class(tmp_path):
    frame(classes=("good",)).to_csv(tmp_path / "data.csv", index=False)


def regression(tmp_path):
    data = frame()
    data["label"] = np.arange(10) / 3
    data.to_csv(tmp_path / "data.csv", index=False)


def gaps(tmp_path):
    data = frame()
    data.loc[3, "label"] = None
    data.to_csv(tmp_path / "data.csv", index=False)


def one_row_a_class(tmp_path):
    frame(2).to_csv(tmp_path / "data.csv", index=False)


def broken_file(tmp_path):
    (tmp_path / "data.csv").write_bytes(b"text,label\n\xff\xfe\x00,1\n")


def nothing(tmp_path):
    pass


@pytest.mark.parametrize(
    ("write", "options", "message"),
    [
        (without_label, {}, r"no column that is recognised as the label among \['text'\]; name it with label="),
        (misnamed, {"label": "label"}, r"no column 'label' among \['text', 'lable'\]; the closest are 'lable'"),
        (two_candidates, {}, r"several columns hold texts: \['first', 'second'\]; name one with input_column="),
        (two_candidates, {"input_column": "frist"}, "no column 'frist' .* closest are 'first'"),
        (no_rows, {}, r"is empty \(0 samples\)"),
        (one_class, {}, "samples of .* have one class only, 'good'; expected two or more"),
        (regression, {"problem": "classification"}, "should hold one class per sample, got the number 0.0"),
        (gaps, {}, "1 of 10 samples have no value in label column 'label', first sample 3"),
        (one_row_a_class, {}, "none can be held out: 2 samples, one per class"),
        (broken_file, {}, "datasets could not load .*data.csv': "),
        (nothing, {}, "data file .* does not exist"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(tmp_path, write, options, message):
    write(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        text_task(tmp_path / "data.csv", **options)
    assert "\n" not in str(caught.value)


def test_an_empty_split_is_named(tmp_path):
    frame().to_parquet(tmp_path / "train.parquet")
    frame().iloc[:0].to_parquet(tmp_path / "test.parquet")
    with pytest.raises(InputError, match=r"split .*of .* is empty \(0 samples\)"):
        text_task(tmp_path)


def test_a_network_of_another_modality_is_told_what_the_columns_are(image_folder):
    with pytest.raises(InputError, match=r"the network reads texts, but no column .*'image': 'Image'"):
        load_task(str(image_folder), modality="text")


def test_a_dataset_that_is_nowhere(tmp_path):
    with pytest.raises(InputError, match=r"data folder .* does not exist"):
        load_task(str(tmp_path / "nowhere"), modality="image")
    with pytest.raises(
        InputError, match=r"'nobody/nothing' is neither a folder or file in .* nor a dataset that the Hub gives: .*Hub"
    ):
        load_task("nobody/nothing", modality="image")


def test_a_corrupt_image_raises_only_when_it_is_read(tmp_path):
    write_images(tmp_path)
    (tmp_path / "train" / "cat" / "2.png").write_bytes(b"not a picture")
    task = load_task(str(tmp_path), modality="image")
    bad = 0
    for rows in (task.train, task.test):
        for i in range(len(rows)):
            try:
                rows[i]
            except Exception:
                bad += 1
    assert bad == 1


def labelled(folder, split, classes, names):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    columns = {"text": list(classes), "label": [names.index(name) for name in classes]}
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.mark.parametrize("split", [True, False])
def test_a_dataset_that_save_to_disk_wrote(tmp_path, split):
    train = labelled(tmp_path, "train", ["a", "b"] * 5, ["a", "b", "c"])
    test = labelled(tmp_path, "test", ["b", "c"], ["c", "b", "a"])
    (datasets.DatasetDict(train=train, test=test) if split else train).save_to_disk(tmp_path / "saved")
    task = text_task(tmp_path / "saved")
    assert len(task.train) == (10 if split else 8)
    if split:
        assert task.test.labels.tolist() == [1, 2]  # numbered as in training
        assert task.notes == ("1 of 2 test samples are of class 'c', of which there is no training sample",)


def test_two_columns_are_read_as_pairs(tmp_path):
    frame = pd.DataFrame({"premise": list("abcd"), "hypothesis": list("efgh"), "label": [0, 1, 0, 1]})
    frame.to_csv(tmp_path / "pairs.csv", index=False)
    task = text_task(tmp_path / "pairs.csv", input_column=("premise", "hypothesis"))
    assert {task.train[0], task.train[1], task.test[0], task.test[1]} == {*zip("abcd", "efgh", strict=True)}


ZERO_OR_ONE = torch.arange(2)


class Pairs(TorchDataset):
    """Inputs with the numbers of their classes, as torchvision's datasets give them."""

    def __init__(self, inputs, classes=ZERO_OR_ONE):
        self.inputs, self.classes = inputs, classes

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        return self.inputs[index], self.classes[index % 2]


def test_containers_of_samples():
    table = {"text": ["a", "b"], "label": [0, 1]}
    for data in (
        pd.DataFrame(table),
        datasets.Dataset.from_dict(table),
        pd.Series(table["text"]),
        np.array(["a", "b"]),
    ):
        samples = as_samples(data, modality="text")
        assert [samples[0], samples[1]] == ["a", "b"]
    stream = datasets.Dataset.from_dict(table).to_iterable_dataset()
    splits = datasets.DatasetDict(train=datasets.Dataset.from_dict(table))
    for data, sentence in (
        ("a", "got one str; put it into a list"),
        (np.array("a"), "got one ndarray; put it into a list"),
        (Pairs(["a b", "c d", "e f", "g h"], ["pos", "neg"]), "come again and again, as classes do: neg, pos"),
        (table, r"got dict of .*give Dataset.from_dict\(columns\)"),
        (splits, r"give one split, data\['train'\]"),
        (stream, "a streamed dataset has no length"),
        (datasets.IterableDatasetDict(train=stream), r"give one split, data\['train'\]"),
        ({"a", "b"}, "got a set, which has no order; give a list"),
        (DataLoader(["a", "b"]), "got a DataLoader, which gives batches"),
        ([("a b", "pos"), ("c d", "neg"), ("e f", "pos")], "come again and again, as classes do: neg, pos"),
        ([{"text": "a"}, {"text": 1}], "the 2 mappings are no rows of one table"),
    ):
        with pytest.raises(InputError, match=sentence):
            as_samples(data, modality="text")


class Rows(TorchDataset):
    """A dataset of torch, which does not end an iteration."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return {"text": "ab"[index % 2], "label": index % 2}


@pytest.mark.parametrize(
    "data",
    [
        [{"text": "a", "label": 0}, {"text": "b", "label": 1}],
        Rows(),
        pa.table({"text": ["a", "b"], "label": [0, 1]}),
        datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}).with_format("torch"),
    ],
    ids=["rows", "torch", "pyarrow", "format"],
)
def test_rows_of_a_table_are_samples_with_labels(data):
    samples = as_samples(data, modality="text")
    assert [samples[0], samples[1]] == ["a", "b"]
    assert samples.labels.tolist() == [0, 1]


def test_texts_in_arrow_without_a_table():
    samples = as_samples(pa.chunked_array([["a"], ["b"]]), modality="text")
    assert [samples[0], samples[1]] == ["a", "b"]


def test_a_transform_sees_whole_rows_and_may_not_drop_the_column():
    table = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
    both = table.with_transform(lambda rows: {"text": [f"{t}{n}" for t, n in zip(*rows.values(), strict=True)]})
    samples = as_samples(both, modality="text")
    assert [samples[0], samples[1]] == ["a0", "b1"]
    assert samples.labels.tolist() == [0, 1]
    other = as_samples(table.with_transform(lambda rows: {"ids": rows["label"]}), modality="text")
    with pytest.raises(ValueError, match=r"no column 'text', but \['ids'\]"):
        other[0]


def test_columns_of_images_and_of_paths(tmp_path):
    images = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for i, image in enumerate(images):
        image.save(tmp_path / f"{i}.png")
    by_path = as_samples(pd.DataFrame({"file": [str(tmp_path / "0.png"), None], "label": [0, 1]}), modality="image")
    assert by_path[0] == str(tmp_path / "0.png")
    with pytest.raises(ValueError, match="column 'file' is empty"):
        by_path[1]
    in_memory = as_samples(pd.DataFrame({"picture": images, "label": [0, 1]}), modality="image")
    np.testing.assert_array_equal(in_memory[1], images[1])
    sound = {"array": [0.0, 0.1], "sampling_rate": 8000}
    heard = as_samples(datasets.Dataset.from_list([{"sound": sound, "label": 0}] * 2), modality="audio")
    assert heard[0] == sound


@pytest.mark.parametrize(
    ("shape", "modality"),
    [
        ((8, 8, 3), "image"),
        ((3, 8, 8), "image"),
        ((800,), "audio"),
    ],
)
def test_one_array_is_no_list_of_samples(shape, modality):
    for array in (np.zeros(shape), torch.zeros(shape)):
        with pytest.raises(InputError, match="which may be a single one; put it into a list"):
            as_samples(array, modality=modality)
    assert len(as_samples(np.zeros((5, *shape)), modality=modality)) == 5


def test_rows_of_arrays_keep_their_arrays():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 9, 3), dtype=np.uint8)
    rows = [{"picture": image, "label": torch.tensor(i % 2)} for i, image in enumerate(pixels)]
    tensors = [row | {"picture": torch.from_numpy(row["picture"])} for row in rows]
    features = datasets.Features({"picture": datasets.Array3D((8, 9, 3), "uint8"), "label": datasets.Value("int64")})
    table = datasets.Dataset.from_dict({"picture": pixels, "label": [0, 1, 0]}, features=features)
    for data in (rows, tensors, table):
        samples = as_samples(data, modality="image")
        assert samples.labels.tolist() == [0, 1, 0]
        assert samples[1].dtype in (np.uint8, torch.uint8)
        np.testing.assert_array_equal(samples[1], pixels[1])
        np.testing.assert_array_equal(samples.select([2, 0])[0], pixels[2])
    both = [row | {"depth": row["picture"]} for row in rows]
    with pytest.raises(InputError, match=r"several columns hold arrays: \['picture', 'depth'\]; name one"):
        as_samples(both, modality="image")
    assert len(as_samples(both, modality="image", input_column="depth")) == 3
    sounds = [{"sound": np.zeros(80, np.float32), "label": "a"}] * 2
    assert as_samples(sounds, modality="audio")[1].shape == (80,)


@pytest.mark.parametrize("shape", [(2, 800), (800, 2)])
def test_a_stereo_recording_is_no_list_of_recordings(shape):
    with pytest.raises(InputError, match="which may be a single one; put it into a list"):
        as_samples(np.zeros(shape), modality="audio")


def test_inputs_with_numbers_of_classes_are_labelled_samples():
    images = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue", "green")]
    for inputs, modality in ((["a", "b", "c"], "text"), (images, "image")):
        for data in (Pairs(inputs), [(value, i % 2) for i, value in enumerate(inputs)]):
            samples = as_samples(data, modality=modality)
            assert [samples[i] for i in range(3)] == inputs
            assert samples.labels.tolist() == [0, 1, 0]


def test_a_file_of_another_kind(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(InputError, match=r"data file .*a.txt' is none of .csv, .*convert it"):
        text_task(tmp_path / "a.txt")


def test_a_broken_photo_is_not_what_a_network_of_sounds_is_told_of(tmp_path):
    write_images(tmp_path / "photos", rows=2)
    next((tmp_path / "photos").rglob("*.png")).write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    with pytest.raises(InputError, match="the network reads recordings, but no column of the data holds one"):
        load_task(str(tmp_path / "photos"), modality="audio")
