"""What servers take from a saved adapter: transformers and PEFT, which swap one for another; vLLM and llama.cpp.

The readers of vLLM 0.8's PEFTHelper and of llama.cpp's converter below know what those know, as their public sources
have it: which keys of adapter_config.json must be there, which names of tensors are understood, and what the update is
multiplied with.
"""

import json

import pytest
import torch
from peft_zoo import logits, randomise, text, tiny_llama
from safetensors.torch import load_file

from hf_tl import LoraConfig, add_lora, load_adapter, save_adapter
from hf_tl.lora.adapted import record_of


ENDINGS = {"lora_A.weight": "A", "lora_B.weight": "B", "lora_embedding_A": "A", "lora_embedding_B": "B"}


def read(folder):
    """The config and, by layer, A and B; AssertionError for a name that neither server knows."""
    config = json.loads((folder / "adapter_config.json").read_text())
    layers = {}
    for name, tensor in load_file(folder / "adapter_model.safetensors").items():
        ending = next((one for one in ENDINGS if name.endswith(f".{one}")), None)
        assert ending is not None, name
        assert name.startswith("base_model.model.")
        layer = name.removeprefix("base_model.model.").removesuffix(f".{ending}")
        layers.setdefault(layer, {})[ENDINGS[ending]] = tensor
    return config, layers


def vllm(folder):
    config, layers = read(folder)
    assert {"r", "lora_alpha", "target_modules"} <= config.keys()
    assert not config["modules_to_save"]
    assert not config["use_dora"]
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"])
    return {name: scale * part["B"] @ part["A"] for name, part in layers.items()}


def llama_cpp(folder):
    config, layers = read(folder)
    assert "base_model_name_or_path" in config
    return {name: config["lora_alpha"] / part["B"].shape[1] * part["B"] @ part["A"] for name, part in layers.items()}


def saved(folder, **config):
    model = add_lora(tiny_llama(), LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": "all-linear", **config}))
    randomise(model)
    save_adapter(model, folder)
    updates = {}
    for name, layer in record_of(model).layers.items():
        a, b = layer.factor_matrices("default")
        updates[name] = (layer.scaling["default"] * b @ a).detach()
    return updates


def agree(found, updates):
    assert found.keys() == updates.keys()
    return all(torch.allclose(found[name], update, atol=1e-6) for name, update in updates.items())


@pytest.mark.parametrize(
    ("config", "vllm_agrees", "llama_cpp_agrees"),
    [  # as docs/large-models.md says
        ({}, True, True),
        ({"layers": "50%.."}, True, True),
        ({"init_lora_weights": "pissa"}, True, True),
        ({"use_rslora": True}, True, False),
        ({"rank_pattern": {"q_proj": 2}}, False, True),
        ({"alpha_pattern": {"q_proj": 2}}, False, False),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_servers_compute_the_same_update(config, vllm_agrees, llama_cpp_agrees, tmp_path):
    updates = saved(tmp_path, **config)
    assert agree(vllm(tmp_path), updates) == vllm_agrees
    assert agree(llama_cpp(tmp_path), updates) == llama_cpp_agrees


@pytest.mark.parametrize(
    "config", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"trainable_token_indices": [1, 2]}]
)
def test_what_neither_of_them_knows(config, tmp_path):
    saved(tmp_path, **config)
    for server in (vllm, llama_cpp):
        with pytest.raises(AssertionError):
            server(tmp_path)


def test_transformers_swaps_one_for_another(tmp_path):
    """Of the same ranks and alphas: those of the first adapter stay in transformers 5.24."""
    model = tiny_llama()
    for name, start in (("first", True), ("second", "orthogonal")):
        saved(tmp_path / name, init_lora_weights=start)
        model.load_adapter(str(tmp_path / name), adapter_name="default", hotswap=name == "second")
        expected = logits(load_adapter(tiny_llama(), tmp_path / name), text())
        torch.testing.assert_close(logits(model, text()), expected)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft 0.21 asks
def test_peft_swaps_one_for_another_of_another_rank(tmp_path):
    """The same for all layers: PEFT 0.21 takes the scale from no pattern there."""
    from peft import PeftModel
    from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap

    saved(tmp_path / "first")
    saved(tmp_path / "second", r=2, lora_alpha=10)
    model = PeftModel.from_pretrained(tiny_llama(), tmp_path / "first").eval()
    prepare_model_for_compiled_hotswap(model, target_rank=4)
    hotswap_adapter(model, str(tmp_path / "second"), adapter_name="default")
    expected = logits(load_adapter(tiny_llama(), tmp_path / "second"), text())
    torch.testing.assert_close(logits(model, text()), expected)
