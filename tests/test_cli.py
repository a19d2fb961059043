"""The command line: its examples run, and bad input ends in one sentence and exit code 2."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import write_images

import hf_tl
from hf_tl.cli.main import COMMANDS, main


def table_rows(output):
    """Rows of the printed table as lists of cells, without header and rule."""
    lines = output.splitlines()
    rule = next(i for i, line in enumerate(lines) if re.fullmatch(r"[- ]+", line) and "-" in line)
    rows = []
    for line in lines[rule + 1 :]:
        if not line.strip() or line.startswith(("note:", "intervals at ")):
            break
        rows.append(re.split(r"\s{2,}", line.strip()))
    return rows


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_printed(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    if command:
        assert COMMANDS[command].EXAMPLES in printed


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert (stop.value.code, capsys.readouterr().out) == (0, f"hf-tl {hf_tl.__version__}\n")


@pytest.mark.slow
def test_the_examples_of_help_run_as_printed(tmp_path, timm_folder, text_folder, monkeypatch, capsys):
    """In a folder where the names of the examples are small models and data of the right kind."""
    for name in ("timm/mobilenetv2_100.ra_in1k", "path/to/model"):
        shutil.copytree(timm_folder, tmp_path / name)
    shutil.copytree(text_folder, tmp_path / "path/to/text-model")
    for name in ("beans", "path/to/images"):
        write_images(tmp_path / name)
        write_images(tmp_path / name, rows=3, split="test")
    words = ("a", "the", "film", "was", "very", "not", "good", "bad", "fine", "dull")  # no two texts are copies
    texts = [" ".join(np.random.default_rng(i).permutation(words)) for i in range(20)]
    frame = pd.DataFrame({"text": texts, "stars": [5, 1] * 10})
    frame.to_csv(tmp_path / "path/to/texts.csv", index=False)
    monkeypatch.chdir(tmp_path)
    ran = 0
    for command in ("layers", "embed", "probe"):
        for line in COMMANDS[command].EXAMPLES.splitlines():
            assert main(shlex.split(line)[1:]) == 0, line
            assert table_rows(capsys.readouterr().out)
            ran += 1
    assert ran == 10
    assert (tmp_path / "layers.png").stat().st_size > 10_000


def test_probe_of_a_stored_embedding_equals_probe_of_the_images(timm_folder, image_folder, tmp_path, capsys):
    assert main(["probe", str(timm_folder), str(image_folder)]) == 0
    direct = table_rows(capsys.readouterr().out)
    assert main(["embed", str(timm_folder), str(image_folder), "--out", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    assert main(["probe", str(tmp_path / "out")]) == 0
    stored = table_rows(capsys.readouterr().out)
    assert [row[:-1] for row in direct] == [row[:-1] for row in stored]
    assert [row[0] for row in direct] == ["full network", "last layer"]
    assert direct[0][-2] == "1.000"  # one colour a class


def test_chosen_layers_and_recipe(timm_folder, image_folder, capsys):
    arguments = ["probe", str(timm_folder), str(image_folder), "--taps", "layer4.*", "--recipe", "fne-package"]
    assert main([*arguments, "--top", "0.5"]) == 0
    first, second = table_rows(capsys.readouterr().out)
    assert first[:3] == ["chosen layers", "fne-package", "1"]
    assert second[:3] == ["last layer", "l2", "1"]


def test_layers_shows_what_is_read_and_what_is_left_out(text_folder, capsys):
    assert main(["layers", str(text_folder), "--level", "leaf"]) == 0
    rows = {row[1]: row for row in table_rows(capsys.readouterr().out)}
    assert rows["encoder.layer.0.intermediate.dense"][-2:] == ["32", "after gelu"]
    assert rows["pooler.dense"][-1] == "left out: its weights are not in the checkpoint"


def corrupt(image_folder):
    (image_folder / "train" / "dog" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n but not a picture")


def test_skipped_rows_are_reported(timm_folder, image_folder, tmp_path, capsys):
    corrupt(image_folder)
    out = str(tmp_path / "out")
    assert main(["embed", str(timm_folder), str(image_folder), "--on-bad-samples", "skip", "--out", out]) == 0
    assert "note: left out 1 of 12 train samples: 7" in capsys.readouterr().out
    from hf_tl import Embedding

    train = Embedding.load(f"{out}/train")
    assert train.indices.tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11]
    assert train.labels.tolist() == [0] * 6 + [1] * 5


def no_label_column(tmp_path, model, data):
    pd.DataFrame({"text": ["a film", "the film"]}).to_csv(tmp_path / "data.csv", index=False)
    return ["probe", model("text"), str(tmp_path / "data.csv")]


def empty_split(tmp_path, model, data):
    frame = pd.DataFrame({"text": ["a film", "the film"] * 4, "label": [0, 1] * 4})
    (tmp_path / "texts").mkdir()
    frame.to_parquet(tmp_path / "texts" / "train.parquet")
    frame.iloc[:0].to_parquet(tmp_path / "texts" / "test.parquet")
    return ["probe", model("text"), str(tmp_path / "texts")]


def one_class(tmp_path, model, data):
    pd.DataFrame({"text": ["a film", "the film"], "label": ["good"] * 2}).to_csv(tmp_path / "data.csv", index=False)
    return ["probe", model("text"), str(tmp_path / "data.csv")]


def one_class_folder(tmp_path, model, data):
    write_images(tmp_path / "one", classes=("cat",))
    return ["probe", model("timm"), str(tmp_path / "one")]


def corrupt_image(tmp_path, model, data):
    corrupt(data)
    return ["probe", model("timm"), str(data)]


def no_such_layer(tmp_path, model, data):
    return ["probe", model("timm"), str(data), "--taps", "stage4.*"]


def nan_weights(tmp_path, model, data):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "nan"
    shutil.copytree(model("timm"), folder)
    weights = load_file(folder / "model.safetensors")
    weights["layer2.0.conv1.weight"][0, 0] = float("nan")
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors")
    return ["embed", str(folder), str(data), "--out", str(tmp_path / "out")]


def no_such_model(tmp_path, model, data):
    return ["probe", "nobody/nothing", str(data)]


def no_such_data(tmp_path, model, data):
    return ["probe", model("timm"), "nobody/nothing"]


def not_an_embedding(tmp_path, model, data):
    return ["probe", str(tmp_path)]


def only_test_rows(tmp_path, model, data):
    """Test features alone: nothing to fit the statistics on."""
    main(["embed", model("timm"), str(data), "--out", str(tmp_path / "out")])
    shutil.rmtree(tmp_path / "out" / "train")
    return ["probe", str(tmp_path / "out")]


def bad_recipe(tmp_path, model, data):
    return ["embed", model("timm"), str(data), "--out", str(tmp_path / "out"), "--recipe", "papre"]


def bad_device(tmp_path, model, data):
    return ["probe", model("timm"), str(data), "--device", "cuda:9"]


def bad_share(tmp_path, model, data):
    return ["probe", model("timm"), str(data), "--top", "0"]


def bad_selection(tmp_path, model, data):
    return ["layers", model("timm"), "--select", "stem, blocks.99"]


def bad_picture(tmp_path, model, data):
    return ["layers", model("timm"), "--plot", str(tmp_path / "ladder.txt")]


def file_as_folder(tmp_path, model, data):
    (tmp_path / "taken").write_text("")
    return ["embed", model("timm"), str(data), "--out", str(tmp_path / "taken")]


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        (no_label_column, r"no column that is recognised as the label among \['text'\]; name it .*--label"),
        (empty_split, r"is empty \(0 samples\); there is nothing to train or test on"),
        (one_class, "have one class only, 'good'; expected two or more"),
        (
            one_class_folder,
            r"as the label among \['image'\]; .* each class of images in a sub-folder of its own, two or more",
        ),
        (corrupt_image, "1 of 12 train samples cannot be read: .*: UnidentifiedImageError: .*--on-bad-samples skip"),
        (no_such_layer, r"'stage4.\*' matches none of the \d+ layers; the closest are 'layer"),
        (
            nan_weights,
            "sample 0 of train gives NaN or infinite activations, first in layer 'layer2.0.conv1'; expected finite",
        ),
        (no_such_model, "'nobody/nothing' is not a folder.* HF_HUB_OFFLINE=1; check the spelling, or download it"),
        (no_such_data, "'nobody/nothing' is neither a folder or file in"),
        (not_an_embedding, "holds no embedding; give a folder that `hf-tl embed` wrote, or a model and a dataset"),
        (only_test_rows, "holds no embedding; give a folder that `hf-tl embed` wrote"),
        (bad_recipe, "there is no recipe 'papre' among .*closest are 'paper'"),
        (bad_device, "device 'cuda:9' cannot be used here"),
        (bad_share, "--top must be above 0 and at most 1, got 0.0"),
        (bad_selection, r"this names no layer: 'blocks.99'; the closest are 'layer"),
        (bad_picture, r"a picture should be a .png, .svg or .pdf file, got '.*ladder.txt'"),
        (file_as_folder, "taken' cannot be made a folder: File exists"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_bad_input_ends_in_one_sentence(case, sentence, tmp_path, image_folder, timm_folder, text_folder, capsys):
    arguments = case(tmp_path, lambda kind: str({"timm": timm_folder, "text": text_folder}[kind]), image_folder)
    capsys.readouterr()
    assert main(arguments) == 2
    printed = capsys.readouterr()
    said = [line for line in printed.err.splitlines() if line.startswith("hf-tl ")]
    assert len(said) == 1
    assert re.search(sentence, said[0])
    assert "Traceback" not in printed.err
    assert not printed.out


@pytest.mark.slow
def test_in_a_process_of_its_own_nothing_else_is_printed(timm_folder, image_folder, processes):
    command = ["-m", "hf_tl.cli", "probe", str(timm_folder), str(image_folder)]
    done = subprocess.run([sys.executable, *command, "--taps", "stage4.*"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    sentence, pattern, carets = done.stderr.splitlines()
    assert sentence.startswith("hf-tl probe: layer pattern 'stage4.*' matches none")
    assert (pattern, carets) == ("  stage4.*", "  ^^^^^^^^")
    corrupt(image_folder)
    (done,) = processes.run(*command)
    assert done.code == 2
    assert "1 of 12 train samples cannot be read" in done.err
    assert "Traceback" not in done.err


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_ends_the_program_without_a_word(timm_folder, tmp_path, processes):
    script = tmp_path / "nobody_reads.py"
    script.write_text(
        "import os, sys; from hf_tl.cli.main import main; end, pipe = os.pipe(); os.dup2(pipe, 1); os.close(pipe);"
        "os.close(end); sys.exit(main(sys.argv[1:]))"
    )
    (done,) = processes.run(script, "layers", timm_folder)
    assert (done.code, done.err) == (141, "")


def test_an_unknown_command_exits_with_2(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["embde"])
    assert stop.value.code == 2


def test_half_made_results_are_not_left_behind(tmp_path, timm_folder, image_folder):
    arguments = nan_weights(tmp_path, lambda kind: str(timm_folder), image_folder)
    assert main(arguments) == 2
    assert not list((tmp_path / "out").rglob("*.safetensors"))


@pytest.mark.slow
def test_quickstart_advises_and_its_script_runs(tmp_path, monkeypatch, capsys):
    """With a hardly trained network, and no time but for what is made in any case."""
    from hf_tl import quickstart

    monkeypatch.setattr(quickstart, "COPIES", 1)
    monkeypatch.setattr(quickstart, "EPOCHS", 1)
    monkeypatch.setattr(COMMANDS["quickstart"], "BUDGET", 1.0)
    monkeypatch.chdir(tmp_path)
    assert main(["quickstart", "--seed", "3"]) == 0
    printed = capsys.readouterr().out
    for words in ("last layer", "from scratch", "what would change it", "report.html", "hf-tl fit MODEL DATA"):
        assert words in printed
    out = tmp_path / "runs" / "quickstart"
    assert "<svg" in (out / "report.html").read_text()
    assert list(out.glob("report-*.png"))
    script = json.loads((out / "report.json").read_text())["code"]
    assert script in printed
    exec(compile(script, "script", "exec"), {})
    assert (tmp_path / "classifier" / "classifier.json").is_file()
    assert main(["quickstart", "--seed", "-1"]) == 2
