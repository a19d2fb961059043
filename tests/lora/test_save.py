"""Adapters on disk: PEFT's load here, those from here load in PEFT and in transformers, with equal outputs."""

import json
import os
import subprocess
import sys
import warnings

import pytest
import torch
from lanes import lanes
from peft_zoo import (
    AUTO_CLASSES_READ_HEADS,
    NOT_EXACT,
    QUICK,
    SVD_INITS,
    ZOO,
    logits,
    network,
    randomise,
    save_with_peft,
    text,
    tiny_bert,
    tiny_gpt2,
    tiny_vit,
)
from safetensors.torch import load_file

from hf_tl.errors import InputError
from hf_tl.lora.adapted import adapter_state_dict, disable_adapters
from hf_tl.lora.adapter import read_adapter
from hf_tl.lora.config import LoraConfig
from hf_tl.lora.inject import add_lora
from hf_tl.lora.load import load_adapter
from hf_tl.lora.merge import merge_adapter
from hf_tl.lora.save import save_adapter


pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),  # peft 0.21 asks
]


@pytest.fixture(scope="module", params=lanes(ZOO, fast=lambda name: name in QUICK))
def from_peft(request, tmp_path_factory):
    """Name, folder and output of each adapter that PEFT saved."""
    folder = tmp_path_factory.mktemp("peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return request.param, folder, save_with_peft(request.param, folder)


def assert_close(name, found, expected):
    bound = 1e-4 if name in SVD_INITS else 1e-12 if name in NOT_EXACT else 0.0
    assert (found - expected).abs().max() <= bound * expected.abs().max(), name


def test_an_adapter_of_peft_gives_equal_logits_here(from_peft):
    name, folder, expected = from_peft
    example = ZOO[name][1]
    base = logits(network(name), example())
    assert (base - expected).abs().max() > 1e-2 * expected.abs().max(), "the adapter does nothing: nothing is tested"
    model = load_adapter(network(name), folder)
    assert_close(name, logits(model, example()), expected)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_and_saved_from_here_it_gives_equal_logits_in_peft(from_peft, tmp_path):
    from peft import PeftModel

    name, folder, expected = from_peft
    example = ZOO[name][1]
    save_adapter(load_adapter(network(name), folder), tmp_path)
    back = PeftModel.from_pretrained(network(name), tmp_path).eval()
    assert_close(name, logits(back, example()), expected)
    assert load_file(tmp_path / "adapter_model.safetensors").keys() >= {
        key
        for key in load_file(folder / "adapter_model.safetensors")
        if not key.endswith("embed_tokens.base_layer.weight")  # a frozen weight of the network, which PEFT adds
    }


def test_there_are_twelve_configurations():
    assert len(ZOO) >= 12


def test_what_is_saved_and_loaded_is_the_same_bit_for_bit(from_peft, tmp_path):
    name, folder, _ = from_peft
    first = load_adapter(network(name), folder)
    save_adapter(first, tmp_path / "one")
    second = load_adapter(network(name), tmp_path / "one")
    save_adapter(second, tmp_path / "two")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def trained(model, **arguments):
    add_lora(model, LoraConfig(**{"target_modules": ["query", "value"], "r": 4, **arguments}))
    randomise(model)
    return model.eval()


def saved_bert(folder, **arguments):
    """The network and its adapter, each in a folder; returns the output of both together."""
    tiny_bert().save_pretrained(folder / "base")
    from transformers import BertForSequenceClassification

    model = BertForSequenceClassification.from_pretrained(folder / "base")
    trained(model, modules_to_save=["classifier"], **arguments)
    save_adapter(model, folder / "adapter")
    return logits(model, text())


@pytest.mark.parametrize("task", [None, "SEQ_CLS"])
def test_every_loader_of_the_field_reads_it(task, tmp_path):
    from peft import AutoPeftModelForSequenceClassification, PeftModel
    from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

    expected = saved_bert(tmp_path, task_type=task)
    base, folder = tmp_path / "base", tmp_path / "adapter"

    def fresh():
        return BertForSequenceClassification.from_pretrained(base).eval()

    loaded = {
        "PeftModel": PeftModel.from_pretrained(fresh(), folder),
        "AutoPeftModel": AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=3),
        "AutoModel": AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3),
        "hf_tl": load_adapter(fresh(), folder),
    }
    loaded["load_adapter"] = fresh()
    loaded["load_adapter"].load_adapter(str(folder))
    for name, model in loaded.items():
        if name in ("AutoModel", "load_adapter") and not AUTO_CLASSES_READ_HEADS:
            continue
        assert torch.equal(logits(model.eval(), text()), expected), name


def test_a_causal_model_loads_by_its_task(tmp_path):
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, GPT2LMHeadModel

    tiny_gpt2().save_pretrained(tmp_path / "base")
    model = GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    trained(model, target_modules=["c_attn"], task_type="CAUSAL_LM", modules_to_save=())
    save_adapter(model, tmp_path / "adapter")
    for kind in (AutoPeftModelForCausalLM, AutoModelForCausalLM):
        loaded = kind.from_pretrained(tmp_path / "adapter").eval()
        assert torch.equal(logits(loaded, text()), logits(model, text())), kind


CODE = """
import sys, torch
from torch import nn
from hf_tl import LoraConfig, add_lora, save_adapter
torch.manual_seed(0)
model = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("value", "query", "dense", "head")})
config = LoraConfig(target_modules=["value", "query", "dense"], modules_to_save=["head"])
save_adapter(add_lora(model, config), sys.argv[1])
assert not {"transformers", "peft"} & set(sys.modules)  # seconds that a plain module need not wait for
"""


@pytest.mark.slow
def test_another_process_writes_the_same_bytes(tmp_path):
    """Sets are ordered by hashes that differ from process to process."""
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({name: torch.nn.Linear(4, 4) for name in ("value", "query", "dense", "head")})
    config = LoraConfig(target_modules=["value", "query", "dense"], modules_to_save=["head"])
    here = save_adapter(add_lora(model, config), tmp_path / "here")
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    there = tmp_path / "there"
    subprocess.run([sys.executable, "-c", CODE, str(there)], check=True, capture_output=True, env=environment)
    for path in here.iterdir():
        assert path.read_bytes() == (there / path.name).read_bytes()


def test_the_config_says_what_was_trained(tmp_path):
    save_adapter(trained(tiny_bert(), modules_to_save=["classifier"]), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    found = json.loads((tmp_path / "adapter_config.json").read_text())
    expected = {"r": 4, "lora_alpha": 8, "target_modules": ["query", "value"], "modules_to_save": ["classifier"]}
    expected |= {"task_type": None, "base_model_name_or_path": None, "inference_mode": True}
    assert {name: found[name] for name in expected} == expected


def test_names_from_before_transformers_5_are_found(tmp_path):
    """An adapter of ViT as transformers 4 named its modules, which PEFT does not load any more."""
    from safetensors.torch import save_file

    model = trained(tiny_vit(), target_modules=["q_proj", "fc1", "o_proj"], modules_to_save=["classifier"])
    model.get_submodule("vit.layers.1.mlp.fc1").lora_alpha["default"]  # the layer is adapted
    save_adapter(model, tmp_path / "new")
    old = {
        "vit.layers.": "vit.encoder.layer.",
        ".attention.q_proj": ".attention.attention.query",
        ".attention.o_proj": ".attention.output.dense",
        ".mlp.fc1": ".intermediate.dense",
    }
    tensors = load_file(tmp_path / "new" / "adapter_model.safetensors")
    for new, before in old.items():
        tensors = {key.replace(new, before): value for key, value in tensors.items()}
    config = json.loads((tmp_path / "new" / "adapter_config.json").read_text())
    config["target_modules"] = ["query", "intermediate.dense", "attention.output.dense"]
    config["alpha_pattern"] = {"intermediate.dense": 8}  # in the old names too
    config["rank_pattern"] = {r"encoder\.layer\.1\.intermediate\.dense": 4}
    (tmp_path / "old").mkdir()
    save_file(tensors, tmp_path / "old" / "adapter_model.safetensors")
    (tmp_path / "old" / "adapter_config.json").write_text(json.dumps(config))
    example = ZOO["vit-blocks"][1]()
    loaded = load_adapter(tiny_vit(), tmp_path / "old")
    assert torch.equal(logits(loaded, example), logits(model, example))
    save_adapter(loaded, tmp_path / "again")
    again = read_adapter(tmp_path / "again")
    assert again.config["target_modules"] == ["fc1", "o_proj", "q_proj"]
    assert again.updates.keys() == read_adapter(tmp_path / "new").updates.keys()


def test_an_adapter_of_the_bare_network_finds_it_under_its_head(tmp_path):
    from transformers import BertModel

    torch.manual_seed(0)
    bare = BertModel(tiny_bert().config)
    trained(bare, modules_to_save=())
    save_adapter(bare, tmp_path)
    model = load_adapter(tiny_bert(), tmp_path)
    names = [name for name in adapter_state_dict(model) if "lora_A" in name]
    assert len(names) == 4
    assert all(name.startswith("base_model.model.bert.encoder.layer") for name in names)


def test_loading_twice_and_beside_another(tmp_path):
    model = trained(tiny_bert(), modules_to_save=["classifier"])
    expected = logits(model, text())
    save_adapter(model, tmp_path)
    other = trained(tiny_bert(), modules_to_save=["classifier"], r=2)
    load_adapter(other, tmp_path, adapter_name="second")
    assert torch.equal(logits(other, text()), expected)
    before = [name for name, _ in other.named_modules()]
    with pytest.raises(InputError, match="there is an adapter 'second' already"):
        load_adapter(other, tmp_path, adapter_name="second")
    assert [name for name, _ in other.named_modules()] == before
    with pytest.raises(InputError, match="there is no adapter 'third'; there are 'default', 'second'"):
        save_adapter(other, tmp_path / "out", adapter_name="third")


def test_nothing_is_loaded_beside_a_merged_adapter(tmp_path):
    from hf_tl import merge_adapter

    model = trained(tiny_bert())
    save_adapter(model, tmp_path)
    merge_adapter(model)
    before = [name for name, _ in model.named_modules()]
    with pytest.raises(InputError, match="adapters are merged into the weights; call unmerge_adapter before adding"):
        load_adapter(model, tmp_path, adapter_name="second")
    assert [name for name, _ in model.named_modules()] == before


def test_training_goes_on_where_it_is_asked_to(tmp_path):
    model = trained(tiny_bert(), modules_to_save=["classifier"])
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    save_adapter(model, tmp_path)
    loaded = load_adapter(tiny_bert(), tmp_path, is_trainable=True)
    assert {name for name, parameter in loaded.named_parameters() if parameter.requires_grad} == trains


def test_what_is_not_finite_is_not_saved(tmp_path):
    model = trained(tiny_bert())
    with torch.no_grad():
        next(iter(adapter_state_dict(model).values()))[0, 0] = float("inf")
    with pytest.raises(InputError, match="holds NaN or infinite values; nothing was saved"):
        save_adapter(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="cannot be made a folder: File exists"):
        save_adapter(trained(tiny_bert()), tmp_path / "taken")


def test_weights_that_somebody_unfroze_and_no_adapter_holds_are_named(tmp_path):
    from peft_zoo import tiny_bert

    model = add_lora(tiny_bert(), LoraConfig(r=2, bias="lora_only"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        save_adapter(model, tmp_path)
    for block in model.bert.encoder.layer:
        block.output.LayerNorm.weight.requires_grad_(True)
    with pytest.warns(
        UserWarning, match=r"encoder\.layer\.0-1\.output\.LayerNorm\.weight require gradients .* not sav"
    ):
        save_adapter(model, tmp_path)


@pytest.mark.parametrize("state", ["merged", "disabled"])
def test_what_is_saved_while_merged_or_disabled_is_what_was_trained(state, tmp_path):
    config = LoraConfig(r=2, target_modules=["query"], bias="lora_only", lora_bias=True, init_lora_weights="random")
    model, example = add_lora(tiny_bert().eval(), config), text()
    randomise(model)
    expected = logits(model, example)
    if state == "merged":
        merge_adapter(model)
        save_adapter(model, tmp_path)
    else:
        with disable_adapters(model):
            save_adapter(model, tmp_path)
    torch.testing.assert_close(logits(load_adapter(tiny_bert().eval(), tmp_path), example), expected)


def test_what_a_merge_changed_for_good_is_not_saved_as_trained(tmp_path):
    config = LoraConfig(r=2, target_modules=["query"], bias="lora_only", lora_bias=True)
    model = add_lora(tiny_bert(), config)
    merge_adapter(model, reversible=False)
    with pytest.raises(InputError, match="has adapters merged into it for good; save the network instead"):
        save_adapter(model, tmp_path)


def test_an_adapter_without_values_is_not_saved(tmp_path):
    model = add_lora(tiny_bert(), LoraConfig(r=2, target_modules=["query"])).to("meta")
    with pytest.raises(InputError, match="is on the meta device and has no values to save"):
        save_adapter(model, tmp_path)
