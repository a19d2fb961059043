"""FSDP2 on two processes: the losses of one, one adapter file that PEFT loads, and training that goes on from it."""

import json
import os
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import accelerate_worker
import fsdp_worker
import peft
import pytest
import torch
from accelerate.state import AcceleratorState
from packaging.version import Version
from peft_zoo import logits, text, tiny_llama
from safetensors.torch import load_file
from torch import nn

from hf_tl import InputError, LoraConfig, add_lora, load_adapter, save_adapter
from hf_tl.lora.adapted import record_of
from hf_tl.lora.trainer import AdapterCallback


WORKER = Path(__file__).parent / "fsdp_worker.py"
ROOT = WORKER.parent.parent.parent

averages = pytest.mark.skipif(
    Version(torch.__version__) < Version("2.9"),
    reason="torch 2.7 sums the gradients of FSDP2 over gloo, and takes no two dtypes in a group",
)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory, processes):
    """What two processes that torch's fully_shard shards leave in a folder, one a kind."""
    folder = tmp_path_factory.mktemp("sharded")
    processes.succeed(WORKER, folder, ranks=2)
    return folder


@averages
@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("kind", fsdp_worker.KINDS)
def test_two_processes_that_shard_the_network_train_as_one(kind, sharded, tmp_path):
    done = torch.load(sharded / "done.pt")
    assert done["world"] == 2
    model = fsdp_worker.adapted(kind)
    losses = fsdp_worker.train(model, range(20))
    assert done[kind]["losses"] == pytest.approx(losses, rel=1e-5)
    assert losses[-1] != losses[0]
    assert done[kind]["resumed"] == pytest.approx(done[kind]["losses"][10:], rel=1e-6)
    save_adapter(model, tmp_path)
    own, expected = tensors(sharded / kind / "adapter"), tensors(tmp_path)
    assert own.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (own[name] - tensor).norm() <= 1e-2 * tensor.norm(), name  # twenty steps of .5 carry roundings on
    base = fsdp_worker.KINDS[kind][0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(tiny_llama(**base), sharded / kind / "adapter").eval()
    expected = logits(load_adapter(tiny_llama(**base), sharded / kind / "adapter").eval(), text())
    torch.testing.assert_close(logits(theirs, text()), expected)
    add, merge = done[kind]["refused"]
    assert "is sharded among processes; add or load adapters first, then shard it" in add
    assert "is sharded among processes" in merge


def test_what_deepspeed_has_partitioned_takes_no_adapter(tmp_path):
    model = tiny_llama()
    model.lm_head.weight.ds_id = 3  # as ZeRO-3 marks each of its parameters
    with pytest.raises(InputError, match="DeepSpeed has partitioned the parameters"):
        add_lora(model, LoraConfig(r=2))
    model = add_lora(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    layer = record_of(model).layers["model.layers.0.self_attn.q_proj"]
    layer.lora_A["default"].weight.data = torch.empty(0)  # outside of a call
    with pytest.raises(InputError, match=r"is \(0,\), as DeepSpeed leaves parameters in every process; nothing was"):
        save_adapter(model, tmp_path)


@pytest.fixture(scope="module")
def shared_by_accelerate(tmp_path_factory, text_folder):
    """What two processes that `accelerate launch` starts with recipes/configs/fsdp2.yaml leave in a folder."""
    folder = tmp_path_factory.mktemp("accelerate")
    lines = ["text,label", *["the film was very good,positive", "a dull film not fine,negative"] * 8]
    (folder / "reviews.csv").write_text("\n".join(lines) + "\n")
    recipe = ["--model", str(text_folder), "--dataset", str(folder / "reviews.csv"), "--r", "2", "--batch", "4"]
    recipe += ["--max_steps", "2", "--save_steps", "1", "--report_to", "none", "--output_dir", str(folder / "recipe")]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    command += ["--config_file", str(ROOT / "recipes" / "configs" / "fsdp2.yaml"), "--mixed_precision", "no"]
    paths = [str(ROOT), str(WORKER.parent)]
    done = subprocess.run(
        [*command, str(WORKER.parent / "accelerate_worker.py"), str(folder), *recipe],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def found(folder):
    return json.loads((folder / "found-0.json").read_text())


def tensors(folder):
    return load_file(folder / "adapter_model.safetensors")


def assert_near(found, expected):
    """Values that steps of AdamW of .01 have moved by .1, from gradients that are rounded otherwise."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=2e-3)


@averages
@pytest.mark.dist
@pytest.mark.slow
def test_a_loop_under_accelerate_has_the_losses_of_one_process(shared_by_accelerate, tmp_path):
    done = found(shared_by_accelerate)["loop"]
    model = accelerate_worker.network()
    losses = accelerate_worker.loop(model, accelerate_worker.optimizer_of(model), range(20))
    assert done["loss"] == pytest.approx(losses, rel=1e-5)
    assert done["loss"][-1] != done["loss"][0]
    assert done["resumed"] == done["loss"][10:]
    assert done["whole"] == []  # base and adapters are sharded
    save_adapter(model, tmp_path)
    assert_near(tensors(shared_by_accelerate / "loop"), tensors(tmp_path))
    saved = (tmp_path / "adapter_config.json").read_bytes()
    assert (shared_by_accelerate / "loop" / "adapter_config.json").read_bytes() == saved
    state = torch.load(shared_by_accelerate / "state" / "pytorch_model_fsdp.bin")
    assert all("lora_" in name for name in state)
    for rank in range(2):  # what one process could not write, the other does not believe written
        said = json.loads((shared_by_accelerate / f"found-{rank}.json").read_text())["loop"]["refused"]
        assert "file" in said[0]
        assert said[1] == rank


@averages
@pytest.mark.dist
@pytest.mark.slow
def test_adapters_in_float32_beside_half_precision_share_a_group(shared_by_accelerate, tmp_path):
    model = accelerate_worker.in_halves()
    losses = accelerate_worker.loop(model, accelerate_worker.optimizer_of(model), range(3))
    assert found(shared_by_accelerate)["mixed"]["loss"] == pytest.approx(losses, rel=1e-3)
    save_adapter(model, tmp_path)
    own, expected = tensors(shared_by_accelerate / "mixed"), tensors(tmp_path)
    assert {n: (t.shape, t.dtype) for n, t in own.items()} == {n: (t.shape, t.dtype) for n, t in expected.items()}
    saved = (tmp_path / "adapter_config.json").read_bytes()  # knows nothing of the wrappers that checkpoint blocks
    assert (shared_by_accelerate / "mixed" / "adapter_config.json").read_bytes() == saved


@averages
@pytest.mark.dist
@pytest.mark.slow
def test_trainer_under_accelerate_saves_resumes_and_picks_the_best(shared_by_accelerate, tmp_path):
    checkpoint = assert_trained_as_one(shared_by_accelerate, tmp_path)
    assert [path.name for path in checkpoint.glob("*.safetensors")] == ["adapter_model.safetensors"]
    assert all("lora_" in name for name in torch.load(checkpoint / "pytorch_model_fsdp.bin"))


def assert_trained_as_one(folder, tmp_path):
    """That two Trainers found what one finds, and resumed; returns the best checkpoint."""
    done = found(folder)
    model = accelerate_worker.network()
    one = accelerate_worker.trainer(model, tmp_path, use_cpu=True)
    one.train()
    expected = accelerate_worker.history(one)
    assert done["trainer"]["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert done["trainer"]["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-5)
    assert done["trainer"]["best"] == done["again"]["best"] == expected["best"] == "checkpoint-5"
    assert done["again"] == done["trainer"]
    checkpoint, end = folder / "trainer" / "checkpoint-5", folder / "trainer-end"
    assert_near(tensors(end), tensors(checkpoint))
    save_adapter(model, tmp_path / "end")
    assert_near(tensors(end), tensors(tmp_path / "end"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(tiny_llama(), end).eval()
    torch.testing.assert_close(logits(theirs, text()), logits(load_adapter(tiny_llama(), end).eval(), text()))
    return checkpoint


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed: DS_BUILD_OPS=0 pip install it")
@pytest.mark.parametrize("stage", [2, 3])
def test_zero_has_the_losses_of_one_process_saves_and_resumes(stage, processes, tmp_path):
    processes.succeed(WORKER.parent / "deepspeed_worker.py", tmp_path, stage, ranks=2)
    model = accelerate_worker.network()
    losses = accelerate_worker.loop(model, accelerate_worker.optimizer_of(model), range(20))
    done = found(tmp_path)["loop"]
    assert done["loss"] == pytest.approx(losses, rel=1e-5)
    assert done["empty"] == (len([*model.parameters()]) if stage == 3 else 0)  # what is partitioned lies elsewhere
    save_adapter(model, tmp_path / "one")
    assert_near(tensors(tmp_path / "loop"), tensors(tmp_path / "one"))
    assert_trained_as_one(tmp_path, tmp_path / "trainer-one")


@averages
@pytest.mark.dist
@pytest.mark.slow
def test_the_recipe_shards(shared_by_accelerate, text_folder):
    from transformers import AutoModelForSequenceClassification

    folder = shared_by_accelerate / "recipe"
    assert json.loads((folder / "results.json").read_text())["processes"] == 2
    model = AutoModelForSequenceClassification.from_pretrained(text_folder, num_labels=2)
    load_adapter(model, folder)
    assert {path.name for path in folder.iterdir()} >= {"checkpoint-1", "checkpoint-2", "adapter_model.safetensors"}


def test_checkpoints_in_shards_are_warned_of_and_refused_where_trainer_is_seen(monkeypatch):
    plugin = SimpleNamespace(state_dict_type="StateDictType.SHARDED_STATE_DICT", fsdp_version=2)
    model = add_lora(tiny_llama(), LoraConfig(r=2))
    monkeypatch.setattr(AcceleratorState, "_shared_state", {"fsdp_plugin": plugin, "distributed_type": "FSDP"})
    with pytest.warns(UserWarning, match="set fsdp_state_dict_type: FULL_STATE_DICT"):
        model.state_dict()
    with pytest.raises(InputError, match="set fsdp_state_dict_type: FULL_STATE_DICT"):
        AdapterCallback().on_init_end(None, None, None, model=model)


def test_fsdp_of_version_1_is_refused_before_a_step(monkeypatch):
    model = add_lora(tiny_llama(), LoraConfig(r=2))
    with monkeypatch.context() as launched:
        launched.setenv("ACCELERATE_USE_FSDP", "true")
        launched.setenv("FSDP_VERSION", "1")
        with pytest.raises(InputError, match="set fsdp_version: 2"):
            add_lora(tiny_llama(), LoraConfig(r=2))
    state = {"fsdp_plugin": SimpleNamespace(fsdp_version=1, state_dict_type="")}
    monkeypatch.setattr(AcceleratorState, "_shared_state", state)  # of a Trainer made after the adapter
    with pytest.raises(InputError, match="set fsdp_version: 2"):
        model(**text())


@pytest.mark.filterwarnings("ignore:.* holds the adapter and no name of its network:UserWarning")
def test_a_network_in_parts_is_saved_from_the_state_dict_that_was_gathered(monkeypatch, tmp_path):
    """As Trainer does in one process, whose parts are then not read."""
    model = add_lora(tiny_llama(), LoraConfig(r=2, init_lora_weights="pissa", modules_to_save=["lm_head"]))
    save_adapter(model, tmp_path / "whole")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for parameter in model.parameters():
        nn.init.constant_(parameter, 7.0)
    monkeypatch.setattr("hf_tl.lora.trainer.is_in_pieces", lambda model: True)
    with pytest.raises(InputError, match=r"with state_dict=accelerator.get_state_dict\(model\)"):
        model.save_pretrained(tmp_path / "parts")
    model.save_pretrained(tmp_path / "other", state_dict={}, is_main_process=False)
    assert not (tmp_path / "other").exists()
    model.save_pretrained(tmp_path / "parts", state_dict=state)
    assert_near(tensors(tmp_path / "parts"), tensors(tmp_path / "whole"))
    assert all((p == 7).all() for p in model.parameters())  # the parts are back in their places
