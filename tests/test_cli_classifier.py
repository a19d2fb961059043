"""hf-tl fit and hf-tl predict: from photos in folders, sentences in a csv file and recordings to predictions."""

import csv
import json

import numpy as np
import pandas as pd
import pytest
from lanes import lanes
from odd_photos import odd_photos
from scipy.io import wavfile
from tiny import save_wav2vec2

from hf_tl import Classifier
from hf_tl.cli.main import main
from hf_tl.embedding.batches import Execution


def read_rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def probabilities(row):
    numbers = ["", "_2", "_3"]
    return {row[f"class{i}"]: float(row[f"probability{i}"]) for i in numbers if f"class{i}" in row}


def test_photos_from_folders_to_predictions(timm_folder, image_folder, tmp_path, capsys):
    command = ["fit", str(timm_folder), str(image_folder), "--image-size", "48", "--out", str(tmp_path / "pets")]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "; 2 classes: cat, dog" in printed
    assert "probabilities: temperature" in printed
    photos = odd_photos(tmp_path / "new", image_folder / "test" / "dog" / "0.png")
    out = tmp_path / "predictions.csv"
    assert main(["predict", str(tmp_path / "pets"), str(photos), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "left out: broken.jpg: ValueError:" in printed
    assert "not image files: notes.txt, 1 in all" in printed
    rows = {row["file"]: row for row in read_rows(out)}
    assert set(rows) == {
        "plain.png",
        "turned.png",
        "grey.png",
        "grey16.png",
        "float.tiff",
        "palette.png",
        "deep/rgba.png",
        "deep/er/cmyk.tiff",
    }
    for same, other in (
        ("plain.png", "turned.png"),
        ("plain.png", "deep/rgba.png"),
        ("grey.png", "grey16.png"),
        ("grey.png", "float.tiff"),
    ):
        assert probabilities(rows[same]) == probabilities(rows[other])
    classifier = Classifier.from_pretrained(tmp_path / "pets", execution=Execution(progress=False))
    expected = dict(zip(classifier.class_names, classifier.predict_proba([str(photos / "plain.png")])[0], strict=True))
    assert probabilities(rows["plain.png"]) == pytest.approx(expected, abs=1e-6)
    assert rows["plain.png"]["class"] == max(expected, key=expected.get)


def test_sentences_of_a_csv_file(text_folder, reviews, tmp_path, capsys):
    assert main(["fit", str(text_folder), str(reviews), "--out", str(tmp_path / "reviews")]) == 0
    assert json.loads((tmp_path / "reviews" / "classifier.json").read_text())["record"]["columns"] == ["text"]
    new = tmp_path / "new.csv"
    new.write_text("id,comment,text\n1,one,the film was very good\n2,two,\n3,three,a dull film\n")
    out = tmp_path / "predictions.csv"
    assert main(["predict", str(tmp_path / "reviews"), str(new), "--out", str(out), "--top", "2"]) == 0
    assert "left out: 1: ValueError: column 'text' is empty" in capsys.readouterr().out
    rows = read_rows(out)
    assert [row["row"] for row in rows] == ["0", "2"]
    classifier = Classifier.from_pretrained(tmp_path / "reviews", execution=Execution(progress=False))
    assert [row["class"] for row in rows] == classifier.predict(["the film was very good", "a dull film"]).tolist()


FILMS = {
    "numbers": (["--label", "stars"], {"stars": lambda i: i % 5 / 2}),
    "several classes": (["--label", "good", "short"], {"good": lambda i: i % 2, "short": lambda i: i % 3 // 2}),
    "pairs": (["--input", "text", "title"], {"label": lambda i: "yes" if i % 2 else "no"}),
}


@pytest.mark.parametrize("kind", lanes(FILMS, fast=lambda kind: kind == "pairs"))
def test_numbers_several_classes_and_pairs(kind, text_folder, tmp_path, capsys):
    words, columns = FILMS[kind]
    texts = {"text": [f"the film was {'very ' * (i % 5)}good" for i in range(40)]}
    titles = {"title": ["a dull film" if i % 2 else "fine" for i in range(40)]}
    data = pd.DataFrame(texts | titles | {name: [of(i) for i in range(40)] for name, of in columns.items()})
    data.to_csv(tmp_path / "films.csv", index=False)
    words = words if kind == "pairs" else [*words, "--input", "text"]
    saved, out = str(tmp_path / "saved"), tmp_path / "predictions.csv"
    assert main(["fit", str(text_folder), str(tmp_path / "films.csv"), "--out", saved, *words]) == 0
    printed = capsys.readouterr().out
    assert {"numbers": "R2", "several classes": "F1", "pairs": "accuracy"}[kind] in printed
    data[["title", "text"]].to_csv(tmp_path / "new.csv", index=False)  # in another order, without labels
    assert main(["predict", saved, str(tmp_path / "new.csv"), "--out", str(out)]) == 0
    assert "40 predictions" in capsys.readouterr().out
    rows, classifier = read_rows(out), Classifier.from_pretrained(saved, execution=Execution(progress=False))
    raw = list(zip(data["text"], data["title"], strict=True)) if kind == "pairs" else data["text"].tolist()
    said = classifier.predict(raw)
    if kind == "numbers":
        assert [float(row["value"]) for row in rows] == pytest.approx(said.tolist(), rel=1e-4)
    elif kind == "several classes":
        assert [tuple(row["classes"].split("; ")) if row["classes"] else () for row in rows] == said.tolist()
        assert float(rows[0]["probability"]) >= float(rows[0]["probability_2"])
    else:
        assert [row["class"] for row in rows] == said.tolist()
        assert classifier.record.columns == ("text", "title")
        assert classifier.record.scores["accuracy"] == 1  # which the first of the two alone does not tell


def test_recordings_in_folders(tmp_path, capsys):
    model, generator = save_wav2vec2(tmp_path / "model"), np.random.default_rng(0)
    for split, n in (("train", 6), ("test", 2)):
        for name, pitch in (("high", 1500), ("low", 200)):
            folder = tmp_path / "tones" / split / name
            folder.mkdir(parents=True)
            for i in range(n):
                time = np.arange(3200 + 400 * i) / 16000
                tone = np.sin(2 * np.pi * pitch * time) + generator.normal(0, 0.05, len(time))
                wavfile.write(folder / f"{i}.wav", 16000, (tone * 12000).astype(np.int16))
    assert main(["fit", str(model), str(tmp_path / "tones"), "--out", str(tmp_path / "saved")]) == 0
    out = tmp_path / "predictions.csv"
    (tmp_path / "tones" / "test" / "broken.wav").write_bytes(b"no sound")
    assert main(["predict", str(tmp_path / "saved"), str(tmp_path / "tones" / "test"), "--out", str(out)]) == 0
    assert "left out: broken.wav" in capsys.readouterr().out
    rows = read_rows(out)
    assert [row["file"] for row in rows] == ["high/0.wav", "high/1.wav", "low/0.wav", "low/1.wav"]
    assert {row["class"] for row in rows} <= {"high", "low"}


def test_a_run_that_was_stopped_goes_on(timm_folder, image_folder, tmp_path, monkeypatch, capsys):
    from hf_tl.classifier import predictions

    assert (
        main(["fit", str(timm_folder), str(image_folder), "--image-size", "48", "--out", str(tmp_path / "pets")]) == 0
    )
    command = ["predict", str(tmp_path / "pets"), str(image_folder / "test"), "--batch-size", "2"]
    assert main([*command, "--out", str(tmp_path / "whole.csv")]) == 0
    done, row = [], predictions._row

    def stop_in_the_second_batch(prediction, n_cells):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(prediction.name)
        return row(prediction, n_cells=n_cells)

    monkeypatch.setattr(predictions, "_row", stop_in_the_second_batch)
    out = tmp_path / "parts.csv"
    assert main([*command, "--out", str(out)]) == 130
    assert not out.exists()
    monkeypatch.setattr(predictions, "_row", row)
    capsys.readouterr()
    part = tmp_path / "parts.csv.part"
    part.write_text(part.read_text() + "dog/0.p")  # half a line
    assert main([*command, "--out", str(out)]) == 0
    assert "2 inputs were done by an earlier run" in capsys.readouterr().out
    assert out.read_text() == (tmp_path / "whole.csv").read_text()
    assert not part.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["https://example.org/a.jpg", "--out", "p.csv"], "is an address, and only files are opened"),
        (["nowhere", "--out", "p.csv"], "'nowhere' is neither a file nor a folder here"),
        (["{photos}", "--out", "p.txt"], "predictions are written to a .csv file"),
        (["{photos}", "--out", "p.csv", "--top", "0"], "top must be at least 1"),
        (["{empty}", "--out", "p.csv"], "holds no images"),
    ],
)
def test_what_cannot_be_predicted_ends_in_a_sentence(words, said, request, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    saved, photos = request.getfixturevalue("saved_pets")
    (tmp_path / "empty").mkdir()
    words = [word.format(photos=photos, empty=tmp_path / "empty") for word in words]
    assert main(["predict", str(saved), *words]) == 2
    assert said in capsys.readouterr().err


@pytest.fixture(scope="module")
def saved_pets(timm_folder, tmp_path_factory):
    from conftest import write_images

    folder = tmp_path_factory.mktemp("pets")
    write_images(folder / "photos", rows=5)
    assert (
        main(["fit", str(timm_folder), str(folder / "photos"), "--image-size", "32", "--out", str(folder / "c")]) == 0
    )
    return folder / "c", folder / "photos"
