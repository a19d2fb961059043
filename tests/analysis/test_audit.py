"""An audit says what is wrong, in sentences, and nothing where nothing is."""

import numpy as np
import pytest
from PIL import Image
from test_twins import photo

from hf_tl import Samples, audit
from hf_tl.cli.main import main
from hf_tl.data import Task
from hf_tl.errors import InputError


pytest.importorskip("imagehash")


@pytest.fixture(scope="module")
def photos():
    return [photo(seed) for seed in range(24)]


def task(train, test, *, names=("rose", "tulip"), labels=None, test_labels=None):
    labels = np.arange(len(train)) % 2 if labels is None else np.asarray(labels)
    test_labels = np.arange(len(test)) % 2 if test_labels is None else np.asarray(test_labels)
    return Task(
        Samples([{"image": one} for one in train], "image", labels, names, "train"),
        Samples([{"image": one} for one in test], "image", test_labels, names, "test"),
    )


def test_a_sound_task(photos):
    found = audit(task(photos[:12], photos[12:]), modality="image")
    assert "no copies within or across the splits" in str(found)
    assert "all samples can be read" in str(found)
    assert "12 training and 12 test samples, 2 classes, 6 training samples a class" in str(found)
    assert len(found.findings) == 4
    with pytest.raises(InputError, match="there is none to show"):
        found.draw_pairs("pairs.png")


def test_leaks_copies_and_contradicting_labels(photos, tmp_path):
    found = audit(
        task([*photos[:12], photos[0], photos[1]], [photos[2], photos[13]], test_labels=[1, 0]), modality="image"
    )
    text = str(found)
    assert "LEAK: 1 of 2 test samples (50.0%) have a copy among the train samples" in text
    assert "2 pairs of copies within the 14 train samples: 2 of these say nothing new" in text
    rows = found.write_pairs(tmp_path / "pairs.csv").read_text().splitlines()
    assert rows[:2] == [
        "first split,first row,second split,second row,kind,similarity",
        "train,2,test,0,identical,1.0000",
    ]
    assert len(rows) == 4
    assert "1 pair of copies with different labels, of which one has to be wrong: train 2 and test 0" in text
    assert found.leaked.tolist() == [True, False]
    with Image.open(found.draw_pairs(tmp_path / "pairs.png")) as sheet:
        assert sheet.width > 400


def test_labels(photos):
    names = ("rose", "Rose ", "tulips", "tulip", "dandelion", "dandelon", "class 1", "class 2")
    found = audit(
        task(photos[:6], photos[6:8], names=names, labels=[0, 1, 2, 3, 4, 5], test_labels=[0, 1]), modality="image"
    )
    text = str(found)
    assert "2 classes have no training sample: 'class 1', 'class 2'" in text
    assert (
        "names of classes that may be one: 'rose' and 'Rose ', 'tulips' and 'tulip', 'dandelion' and 'dandelon'"
        in text
    )
    assert "4 classes are taught and never tested" in text


def test_unreadable_samples(photos):
    found = audit(task([*photos[:3], {"bytes": b"no", "path": "bad.png"}], photos[4:6]), modality="image")
    assert "1 train sample cannot be read: bad.png" in str(found)
    assert "2 test samples without a copy in training" in str(found)
    assert "no difference between two classifiers can be clear, however large" in str(found)
    assert np.isnan(found.smallest_difference)


@pytest.mark.parametrize("n", [30, 200])
def test_the_smallest_difference_is_the_least_that_an_interval_shows(photos, n):
    from hf_tl.analysis.audit import _smallest_difference
    from hf_tl.intervals import paired_gain

    least, _ = _smallest_difference(task(photos[:2], photos[2:4]), n)
    k = round(least * n)
    for gained, clear in ((k, True), (k - 1, False)):
        assert (paired_gain(np.arange(n) < gained, np.zeros(n, dtype=bool))[1] > 0) == clear


def test_the_command(tmp_path, photos, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split, chosen in (("train", photos[:8]), ("test", [photos[0], *photos[9:12]])):
        for i, image in enumerate(chosen):
            folder = tmp_path / "photos" / split / ("rose", "tulip")[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{i}.png")
    assert main(["audit", "photos"]) == 0
    said = capsys.readouterr().out
    assert "LEAK: 1 of 4 test samples" in said
    assert (tmp_path / "runs/audit/twins.png").is_file()
    assert (tmp_path / "runs/audit/twins.csv").is_file()
    assert main(["audit", "nowhere/at/all"]) == 2
    assert main(["audit", "photos", "--modality", "text"]) == 2
    assert "no column of the data holds one" in capsys.readouterr().err
