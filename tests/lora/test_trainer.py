"""An unmodified Trainer trains, saves, resumes and picks the best, whatever kind of network carries the adapter."""

import copy
import json
import logging

import pytest
import torch
from lanes import lanes
from peft_zoo import logits, tiny_bert
from safetensors.torch import load_file
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_tl.errors import InputError
from hf_tl.lora.adapted import adapter_state_dict, set_adapter
from hf_tl.lora.config import LoraConfig
from hf_tl.lora.inject import add_lora
from hf_tl.lora.load import load_adapter
from hf_tl.lora.trainer import AdapterCallback, follow_trainer, live_tensors


class Plain(nn.Module):
    """A module of one's own: returns a loss, knows nothing of transformers."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 64), nn.ReLU())
        self.head = nn.Linear(64, 3)

    def forward(self, features, labels=None):
        logits = self.head(self.body(features))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class TimmInside(nn.Module):
    """A timm network inside a module of one's own."""

    def __init__(self):
        import timm

        super().__init__()
        self.network = timm.create_model("test_vit", num_classes=3, img_size=32, proj_drop_rate=0.1)

    def forward(self, pixel_values, labels=None):
        logits = self.network(pixel_values)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Normalised(nn.Module):
    """A convolution and a batch normalisation, whose statistics move though nothing of it is trained."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
        self.head = nn.Linear(8, 3)

    def forward(self, pixel_values, labels=None):
        logits = self.head(self.body(pixel_values).mean((2, 3)))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def timm_wrapper():
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    config = TimmWrapperConfig(
        architecture="test_vit", num_labels=3, model_args={"img_size": 32, "proj_drop_rate": 0.1}
    )
    return TimmWrapperForImageClassification(config)


def bert():
    return tiny_bert(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)


def rows(kind):
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(0, 3, (24,), generator=generator)
    if kind == "bert":
        inputs = {"input_ids": torch.randint(1, 99, (24, 7), generator=generator)}
    elif kind == "plain":
        inputs = {"features": torch.randn(24, 6, generator=generator) + labels[:, None]}
    else:
        inputs = {"pixel_values": torch.randn(24, 3, 32, 32, generator=generator) + labels[:, None, None, None]}
    return [
        {**{name: values[i] for name, values in inputs.items()}, "labels": int(labels[i])} for i in range(len(labels))
    ]


KINDS = {
    "bert": (bert, {"target_modules": ["query", "value"], "modules_to_save": ["classifier"]}),
    "timm wrapper": (timm_wrapper, {"target_modules": ["qkv"], "modules_to_save": ["timm_model.head"]}),
    "timm inside": (TimmInside, {"target_modules": ["qkv"], "modules_to_save": ["network.head"]}),
    "plain": (Plain, {"target_modules": ["body.0", "body.3"], "modules_to_save": ["head"]}),
    "batch norm": (Normalised, {"target_modules": ["body.0", "body.3"], "modules_to_save": ["head"]}),
}
PRETRAINED = ("bert", "timm wrapper")


def build(kind):
    make, arguments = KINDS[kind]
    torch.manual_seed(0)
    model = add_lora(make(), LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, **arguments))
    return model


def trainer(kind, folder, model=None, **changes):
    settings = {
        "output_dir": str(folder),
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 12,
        "learning_rate": 1e-2,
        "save_steps": 3,
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 7,
    }
    callbacks = [] if kind in PRETRAINED else [AdapterCallback()]
    data = rows(kind)
    args = TrainingArguments(**{**settings, **changes})
    return Trainer(model or build(kind), args, train_dataset=data, eval_dataset=data[:12], callbacks=callbacks)


def state(model):
    return {name: tensor.clone() for name, tensor in adapter_state_dict(model).items()}


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
@pytest.mark.parametrize("kind", lanes(KINDS, fast=("bert", "batch norm").__contains__))
def test_resumed_is_straight_bit_for_bit(kind, tmp_path, caplog):
    straight = trainer(kind, tmp_path / "straight")
    before = state(straight.model)
    straight.train()
    assert not equal(before, state(straight.model))

    resumed = trainer(kind, tmp_path / "resumed")
    with torch.no_grad():  # whatever the adapter holds when training resumes, the checkpoint's values count
        for tensor in live_tensors(resumed.model).values():
            tensor.add_(1)
    with caplog.at_level(logging.WARNING):
        resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-3"))
    assert equal(state(resumed.model), state(straight.model))
    assert "missing keys" not in caplog.text
    assert "unexpected keys" not in caplog.text
    losses = [[row["loss"] for row in t.state.log_history if "loss" in row] for t in (straight, resumed)]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_a_decomposition_that_starts_the_adapter_is_resumed_too(tmp_path):
    """PiSSA by a randomised decomposition: the part it took out of the weight is in the checkpoint."""

    def made(seed):
        model = bert()
        torch.manual_seed(seed)
        arguments = {"target_modules": ["query"], "modules_to_save": ["classifier"]}
        return add_lora(model, LoraConfig(r=2, init_lora_weights="pissa_niter_1", **arguments))

    assert not equal(live_tensors(made(0)), live_tensors(made(1)))
    straight = trainer("bert", tmp_path, model=made(0))
    straight.train()
    resumed = trainer("bert", tmp_path, model=made(1))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert equal(live_tensors(resumed.model), live_tensors(straight.model))
    loaded = load_adapter(bert(), tmp_path / "checkpoint-6")
    batch = {"input_ids": torch.randint(1, 99, (3, 7))}
    assert torch.allclose(logits(loaded.eval(), batch), logits(straight.model.eval(), batch), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_is_the_adapter_and_loads_as_one(kind, tmp_path):
    done = trainer(kind, tmp_path)
    done.train()
    checkpoint = tmp_path / "checkpoint-6"
    names = {path.name for path in checkpoint.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "model.safetensors"} <= names
    assert "config.json" not in names  # with it, transformers would take this folder for the network
    saved = load_file(checkpoint / "model.safetensors")
    assert equal(saved, state(done.model))
    assert not any("base_layer" in name or "original_module" in name for name in saved)
    torch.manual_seed(0)
    again = load_adapter(KINDS[kind][0](), checkpoint)
    assert equal(state(again), state(done.model))
    if kind == "batch norm":
        assert "base_model.model.body.1.running_mean" in saved
        return
    size = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors")) / 2
    assert size < sum(p.numel() * 4 for p in done.model.parameters()) / 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_best_comes_back_at_the_end(kind, tmp_path):
    done = trainer(
        kind,
        tmp_path,
        eval_strategy="steps",
        eval_steps=2,
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="quality",
    )
    qualities = iter([0.5, 0.9, 0.1])
    done.compute_metrics = lambda prediction: {"quality": next(qualities)}
    done.train()
    best = done.state.best_model_checkpoint
    assert best.endswith("checkpoint-4")
    last = load_file(tmp_path / "checkpoint-6" / "adapter_model.safetensors")
    assert not equal(last, state(done.model))
    assert equal(state(done.model), load_file(f"{best}/adapter_model.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_what_trainer_saves_at_the_end_is_the_adapter(kind, tmp_path):
    done = trainer(kind, tmp_path / "runs", save_strategy="no")
    done.train()
    done.save_model(str(tmp_path / "out"))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    if kind in PRETRAINED:
        assert names == {"README.md", "adapter_config.json", "adapter_model.safetensors", "training_args.bin"}
    else:  # Trainer writes the state dict of any other module: whole again after training
        assert names == {"model.safetensors", "training_args.bin"}
        assert any("base_layer" in name for name in load_file(tmp_path / "out" / "model.safetensors"))


def test_a_checkpoint_of_another_adapter_is_refused(tmp_path):
    trainer("bert", tmp_path, max_steps=3).train()
    torch.manual_seed(0)
    other = add_lora(bert(), LoraConfig(r=2, target_modules=["query", "value"], modules_to_save=["classifier"]))
    with pytest.raises(InputError, match=r"does not fit adapter 'default': 8 tensors are of another shape.*settings"):
        trainer("bert", tmp_path, model=other).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    fewer = add_lora(bert(), LoraConfig(r=4, target_modules=["query"], modules_to_save=["classifier"]))
    with pytest.raises(InputError, match="4 tensors are unexpected"):
        trainer("bert", tmp_path, model=fewer).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_a_damaged_checkpoint_is_refused(tmp_path):
    from safetensors.torch import save_file

    trainer("plain", tmp_path, max_steps=3).train()
    path = tmp_path / "checkpoint-3" / "model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.body.0.lora_A.weight"][0, 0] = float("nan")
    save_file(tensors, path)
    with pytest.raises(
        InputError, match=r"1 tensors are NaN or too large, the first 'base_model.model.body.0.lora_A.weight'"
    ):
        trainer("plain", tmp_path).train(resume_from_checkpoint=str(path.parent))


def test_the_callback_asks_for_an_adapter(tmp_path):
    with pytest.raises(InputError, match="has no adapters; call add_lora or load_adapter first"):
        trainer("plain", tmp_path, model=Plain())


def test_a_plain_module_resumes_without_the_callback_too(tmp_path):
    def made(folder):
        args = TrainingArguments(output_dir=str(folder), max_steps=4, save_steps=2, report_to=[], disable_tqdm=True)
        return Trainer(build("plain"), args, train_dataset=rows("plain"))

    straight = made(tmp_path)
    straight.train()
    resumed = made(tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert equal(state(resumed.model), state(straight.model))


def test_a_copy_saves_and_loads_for_itself(tmp_path):
    model = build("bert")
    other = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in adapter_state_dict(other).values():
            tensor.add_(1.0)
    other.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert equal(saved, state(other))
    before = state(model)
    follow_trainer(model)  # twice is once
    other.load_state_dict({name: tensor * 2 for name, tensor in saved.items()})
    assert equal(before, state(model))
    assert not equal(saved, state(other))


def test_a_whole_state_dict_still_loads_strictly():
    model = build("bert")
    whole = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = model.load_state_dict(whole)
    assert not result.missing_keys
    lacking = dict(list(whole.items())[3:])
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(lacking)


def test_trainer_reads_the_names_that_follow_trainer_writes():
    """The seam: for anything but PEFT's class, Trainer's loaders read this file and call load_state_dict with it."""
    import inspect

    from transformers.utils import SAFE_WEIGHTS_NAME

    assert SAFE_WEIGHTS_NAME == "model.safetensors"
    for method in (Trainer._load_from_checkpoint, Trainer._load_best_model):
        source = inspect.getsource(method)
        assert "SAFE_WEIGHTS_NAME" in source
        assert "model.load_state_dict(state_dict, False)" in source


def test_the_config_of_a_checkpoint_says_what_was_trained(tmp_path):
    trainer("timm inside", tmp_path, max_steps=3).train()
    config = json.loads((tmp_path / "checkpoint-3" / "adapter_config.json").read_text())
    assert config["r"] == 4
    assert config["target_modules"] == ["qkv"]
    assert config["modules_to_save"] == ["network.head"]
    assert config["lora_dropout"] == 0.1


def test_what_trainer_saves_names_no_folder_of_this_machine(tmp_path):
    """Trainer pushes its folders; whoever gets them can do nothing with such a name."""
    from transformers import BertForSequenceClassification

    from hf_tl import save_adapter

    bert().save_pretrained(tmp_path / "alice" / "base")
    network = BertForSequenceClassification.from_pretrained(tmp_path / "alice" / "base")
    model = add_lora(network, LoraConfig(r=4, target_modules=["query"]))
    save_adapter(model, tmp_path / "own")
    assert str(tmp_path) in (tmp_path / "own" / "adapter_config.json").read_text()
    done = trainer("bert", tmp_path / "runs", model=model, max_steps=1, save_steps=1)
    done.train()
    done.save_model()
    saved = [*(tmp_path / "runs").rglob("adapter_config.json"), tmp_path / "runs" / "README.md"]
    assert len(saved) == 3
    assert not any("alice" in path.read_text() for path in saved)


def test_a_network_with_an_adapter_is_pickled_whole(tmp_path):
    model = build("bert")
    torch.save(model, tmp_path / "whole.pt")
    again = torch.load(tmp_path / "whole.pt", weights_only=False)
    batch = {"input_ids": torch.randint(1, 99, (3, 7))}
    assert torch.equal(logits(again.eval(), batch), logits(model.eval(), batch))
    with torch.no_grad():
        for tensor in adapter_state_dict(again).values():
            tensor.add_(1.0)
    again.save_pretrained(tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert equal(saved, state(again))
    assert not equal(saved, state(model))
    again.load_state_dict({name: tensor * 2 for name, tensor in saved.items()})
    assert not equal(saved, state(again))


def test_after_the_last_adapter_the_network_saves_and_loads_itself(tmp_path):
    from hf_tl import delete_adapter

    model = delete_adapter(build("bert"))
    model.save_pretrained(tmp_path)
    assert (tmp_path / "config.json").is_file()
    assert not (tmp_path / "adapter_config.json").exists()
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({})


def test_a_head_with_tied_parts_is_trained_and_resumed(tmp_path):
    """The decoder of RoBERTa's head for masked words has the head's own bias."""
    from transformers import RobertaConfig, RobertaForMaskedLM

    def made():
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
        network = RobertaForMaskedLM(RobertaConfig(vocab_size=32, max_position_embeddings=40, **sizes))
        return add_lora(network, LoraConfig(r=2, target_modules=["query"], modules_to_save=["lm_head"]))

    def trained(folder, **options):
        settings = {"max_steps": 2, "save_steps": 1, "report_to": [], "disable_tqdm": True, "use_cpu": True}
        ids = torch.randint(3, 31, (4, 7), generator=torch.Generator().manual_seed(3))
        data = [{"input_ids": row, "labels": row} for row in ids]
        done = Trainer(made(), TrainingArguments(str(folder), **settings), train_dataset=data)
        done.train(**options)
        return done.model

    straight = trained(tmp_path)
    names = load_file(tmp_path / "checkpoint-1" / "adapter_model.safetensors").keys()
    assert {"base_model.model.lm_head.bias", "base_model.model.lm_head.decoder.bias"} <= names
    resumed = trained(tmp_path / "again", resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert equal(state(resumed), state(straight))


def test_several_adapters_in_use_are_saved_and_resumed(tmp_path):
    def model():
        network = bert()
        for name, target in (("a", "query"), ("b", "value")):
            settings = LoraConfig(r=2, target_modules=[target], modules_to_save=["classifier"])
            add_lora(network, settings, adapter_name=name)
        set_adapter(network, ["a", "b"])
        return network

    torch.manual_seed(0)
    straight = model()
    trainer("bert", tmp_path / "run", straight).train()
    checkpoint = tmp_path / "run" / "checkpoint-3"
    torch.manual_seed(0)
    resumed = model()
    trainer("bert", tmp_path / "again", resumed).train(resume_from_checkpoint=str(checkpoint))
    for name in ("a", "b"):
        found, expected = (adapter_state_dict(m, adapter_name=name) for m in (resumed, straight))
        assert all(torch.equal(found[key], expected[key]) for key in expected)
        other = load_adapter(bert(), tmp_path / "run" / "checkpoint-6" / name)
        loaded = adapter_state_dict(other)
        assert all(torch.equal(loaded[key], expected[key]) for key in expected)


def test_a_folder_that_from_pretrained_cannot_load_is_said_to_be_one(tmp_path):
    model = build("bert")
    with pytest.warns(UserWarning, match="no name of its network, which was made here: .*load_adapter"):
        model.save_pretrained(tmp_path / "out")


def test_a_card_does_not_name_a_folder_that_is_there_no_more(tmp_path):
    tiny_bert().save_pretrained(tmp_path / "client")
    model = type(tiny_bert()).from_pretrained(tmp_path / "client")
    add_lora(model, LoraConfig(r=2, target_modules=["query"]))
    (tmp_path / "client").rename(tmp_path / "elsewhere")
    args = TrainingArguments(str(tmp_path / "runs"), report_to=[], use_cpu=True)
    done = Trainer(model, args)
    with pytest.warns(UserWarning, match="loaded from .*client"):
        done.save_model()
    done.create_model_card()
    text = (tmp_path / "runs" / "README.md").read_text()
    assert "client" not in text
    assert "library_name: peft" in text
