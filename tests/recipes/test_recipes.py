"""Every recipe runs, for every kind of network; two processes find what one finds."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_images
from lanes import lanes
from tiny import save_vit, save_wav2vec2, write_tones
from transformers import TrainerState, TrainingArguments

from hf_tl import Embedding, InputError, PolicyCallback, load_network
from hf_tl.arguments import parse_arguments


ROOT = Path(__file__).parent.parent.parent
RECIPES = ROOT / "recipes"
NAMES = ("embed_and_probe", "distributed_embedding", "finetune_policy", "finetune_lora")
KINDS = ("image", "timm", "text", "audio")
TRAINING = ["--use_cpu", "--learning_rate", "0.01", "--batch", "4", "--max_steps", "3", "--report_to", "none"]


@pytest.fixture(scope="session")
def worlds(tmp_path_factory, timm_folder, text_folder):
    """Kind -> the arguments that name a network and its data."""
    folder = tmp_path_factory.mktemp("recipes")
    write_images(folder / "images")
    write_images(folder / "images", rows=3, split="test")
    write_tones(folder / "tones")
    write_tones(folder / "tones", rows=3, split="test")
    lines = ["text,label"]
    for i in range(10):
        lines += [f"the film was {'very ' * (i % 3)}good,positive", f"a dull film {'not ' * (i % 4)}fine,negative"]
    (folder / "reviews.csv").write_text("\n".join(lines) + "\n")
    named = {
        "image": (save_vit(folder / "vit"), "images"),
        "timm": (timm_folder, "images"),
        "text": (text_folder, "reviews.csv"),
        "audio": (save_wav2vec2(folder / "wav2vec2"), "tones"),
    }
    return {kind: ["--model", str(m), "--dataset", str(folder / data)] for kind, (m, data) in named.items()}


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs a recipe as `python` would, but in this process."""

    def start(name, *words):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, words)])
        runpy.run_path(str(RECIPES / f"{name}.py"), run_name="__main__")

    return start


def results(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_fine_tuning_under_a_policy(kind, worlds, run, tmp_path):
    run("finetune_policy", *worlds[kind], *TRAINING, "--policy", "freeze: ..50%", "--output_dir", tmp_path)
    assert results(tmp_path)["processes"] == 1
    assert 0 <= results(tmp_path)["accuracy"] <= 1
    assert (tmp_path / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft 0.21 asks
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_saved_alone_and_loads_with_peft(kind, worlds, run, tmp_path):
    from peft import PeftModel

    run("finetune_lora", *worlds[kind], *TRAINING, "--r", "2", "--output_dir", tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    model = load_network(worlds[kind][1], classes=["a", "b"]).model
    loaded = PeftModel.from_pretrained(model, tmp_path)
    assert any("lora_A" in name for name, _ in loaded.named_parameters())


@pytest.mark.parametrize("kind", lanes(KINDS, fast=lambda kind: kind == "audio"))
def test_reading_and_evaluating(kind, worlds, run, tmp_path, capsys):
    layers = "true" if kind == "timm" else "false"
    run("embed_and_probe", *worlds[kind], "--out", tmp_path, "--layers", layers)
    assert results(tmp_path)["full network"] >= 0.75  # colours, words and pitches are told apart without training
    assert "last layer" in capsys.readouterr().out
    assert (tmp_path / "layers.png").exists() == (kind == "timm")


@pytest.mark.dist
@pytest.mark.slow
def test_two_processes_find_what_one_finds(worlds, run, tmp_path):
    def orders(folder):
        training = [*TRAINING, "--save_strategy", "no", "--accelerate_training", "false"]
        return [
            ["distributed_embedding", *worlds["audio"], "--out", str(folder / "embedding"), "--batch_size", "4"],
            ["embed_and_probe", *worlds["timm"], "--out", str(folder / "probe"), "--layers", "false"],
            ["finetune_policy", *worlds["image"], *training, "--output_dir", str(folder / "policy")],
            ["finetune_lora", *worlds["audio"], *training, "--output_dir", str(folder / "lora")],
        ]

    one, two = tmp_path / "one", tmp_path / "two"
    for name, *words in orders(one):
        run(name, *words)
    (tmp_path / "order.json").write_text(json.dumps({"recipes": orders(two), "sharded": str(tmp_path / "s.json")}))
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(RECIPES / "configs" / "two_processes_cpu.yaml")]
    script = Path(__file__).parent / "together.py"
    paths = {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(script), str(tmp_path / "order.json")],
        env=os.environ | paths,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    for part in ("embedding", "probe", "policy", "lora"):
        assert results(one / part)["processes"] == 1
        assert results(two / part)["processes"] == 2
    assert results(one / "embedding")["digest"] == results(two / "embedding")["digest"]
    assert results(one / "probe")["full network"] == results(two / "probe")["full network"]
    for part in ("policy", "lora"):
        assert results(two / part)["cross_entropy"] == pytest.approx(results(one / part)["cross_entropy"], rel=1e-5)
        assert results(two / part)["accuracy"] == results(one / part)["accuracy"]
    sharded = json.loads((tmp_path / "s.json").read_text())
    assert sharded["world"] == 2
    assert sharded["ended"] == 4
    assert sharded["sharded"] == 10
    assert 0 < sharded["frozen"] < 10
    assert sharded["difference"] < 1e-6


def test_what_is_written_is_an_embedding(worlds, run, tmp_path):
    run("distributed_embedding", *worlds["image"], "--out", tmp_path)
    train = Embedding.load(tmp_path / "train")
    assert len(train) == 12
    assert set(train.values[:].ravel()) <= {-1, 0, 1}


def test_where_sharding_does_not_work_it_is_refused(worlds, run, monkeypatch):
    model = load_network(worlds["image"][1], classes=["a", "b"]).model
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    lora = ["finetune_lora", "--model", "nowhere", "--dataset", "nowhere", "--output_dir", "out"]  # refused first
    for version, kind in (("1", "FULL_STATE_DICT"), ("2", "SHARDED_STATE_DICT")):
        monkeypatch.setenv("FSDP_VERSION", version)
        monkeypatch.setenv("FSDP_STATE_DICT_TYPE", kind)
        with pytest.raises(InputError, match=f"FULL_STATE_DICT, got {version} and {kind}"):
            run(*lora)
    with monkeypatch.context() as launched:
        launched.setattr("transformers.integrations.is_deepspeed_zero3_enabled", lambda: True)
        with pytest.raises(InputError, match="ZeRO-3 partitions the network as it is loaded"):
            run(*lora)
    with pytest.raises(InputError, match="each process reads with a whole network"):
        run("distributed_embedding", *worlds["image"], "--out", "out")
    with pytest.raises(InputError, match="FSDP reshapes the parameters and cannot have rates by layer"):
        PolicyCallback("freeze: ..50%; lr: decay 0.8").on_init_end(
            TrainingArguments("out", use_cpu=True), TrainerState(), None, model=model
        )
    PolicyCallback("freeze: ..50%").on_init_end(
        TrainingArguments("out", use_cpu=True), TrainerState(), None, model=model
    )


@pytest.mark.parametrize("path", sorted((RECIPES / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_configurations_are_of_their_recipes(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = next((name for name in NAMES if path.stem.startswith(name)), None)
    if name is None:  # of accelerate
        from accelerate.commands.config.config_args import load_config_from_file

        assert load_config_from_file(str(path)).num_processes == 2
        return
    arguments = runpy.run_path(str(RECIPES / f"{name}.py"))["Arguments"]
    kinds = [arguments, TrainingArguments] if name.startswith("finetune") else [arguments]
    parsed = parse_arguments(*kinds, arguments=[str(path), "--model", "other"])
    assert parsed[0].model == "other"
    assert parsed[0].dataset


@pytest.mark.parametrize("name", NAMES)
def test_recipes_are_short_and_say_how_they_are_started(name):
    text = (RECIPES / f"{name}.py").read_text()
    assert len(text.splitlines()) <= 150
    said = text.split('"""')[1]
    assert f"python recipes/{name}.py" in said
    assert "accelerate launch" in said
    assert "two_processes_cpu.yaml" in said
