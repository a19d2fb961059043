"""Adapters beside weights that accelerate keeps in memory or on disk: the same outputs, or a sentence."""

import pytest
import torch
import transformers
from accelerate import cpu_offload, disk_offload
from peft_zoo import tiny_bert, tiny_llama, tokens

from hf_tl import InputError, LoraConfig, add_lora, load_adapter, merge_adapter, save_adapter
from hf_tl.lora.adapted import adapter_state_dict


CPU = torch.device("cpu")
TARGETS = ["q_proj", "down_proj", "embed_tokens"]


def from_disk(model, folder):
    """As from_pretrained places a network: a block on disk, the rest in memory."""
    model.save_pretrained(folder / "checkpoint")
    places = dict.fromkeys(
        ["model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head"], "cpu"
    )
    kind = transformers.AutoModelForCausalLM
    places["model.layers.1"] = "disk"
    return kind.from_pretrained(folder / "checkpoint", device_map=places, offload_folder=folder / "weights").eval()


OFFLOADED = {
    "memory": lambda model, folder: cpu_offload(model, execution_device=CPU),
    "disk": lambda model, folder: disk_offload(model, folder / "weights", execution_device=CPU),
    "a block on disk": from_disk,
}


@pytest.mark.parametrize("how", OFFLOADED)
def test_the_same_outputs_gradients_and_files(how, tmp_path):
    def gradients(model):
        model(input_ids=ids).logits.square().mean().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}

    ids, config = tokens(), LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=False)
    torch.manual_seed(1)
    plain = add_lora(tiny_llama(), config)
    away = add_lora(OFFLOADED[how](tiny_llama(), tmp_path), config)
    assert any(p.is_meta for p in away.parameters())
    found = adapter_state_dict(away)
    assert found.keys() == adapter_state_dict(plain).keys()
    for name, tensor in adapter_state_dict(plain).items():
        found[name].copy_(tensor)
    assert torch.equal(away(input_ids=ids).logits, plain(input_ids=ids).logits)
    wanted = gradients(plain)
    assert all(torch.equal(gradient, wanted[name]) for name, gradient in gradients(away).items())
    save_adapter(away, tmp_path / "adapter")
    again = load_adapter(OFFLOADED[how](tiny_llama(), tmp_path / "again"), tmp_path / "adapter")
    assert torch.equal(again.eval()(input_ids=ids).logits, plain(input_ids=ids).logits)
    with pytest.raises(InputError, match=r"the weight of \w+ is offloaded and not here"):
        merge_adapter(away)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dora": True}, "is offloaded and not here to be read"),
        ({"init_lora_weights": "pissa"}, "is offloaded and not here to be read"),
        ({"bias": "all"}, "bias='all' needs the network's own weights, and those of"),
        ({"trainable_token_indices": {"word_embeddings": [1]}}, "rows of weights that are offloaded"),
        ({"modules_to_save": ["classifier"]}, "a Linear is to be saved with the adapter, but its weights are offl"),
        ({"target_parameters": ["query.weight"], "target_modules": ["value"]}, "is offloaded and not here to be read"),
    ],
)
def test_what_reads_the_weights_is_refused(config, message):
    model = cpu_offload(tiny_bert(), execution_device=CPU)
    before = [type(module) for module in model.modules()]
    with pytest.raises(InputError, match=message):
        add_lora(model, LoraConfig(**{"r": 2, "target_modules": ["query"], "modules_to_save": (), **config}))
    assert [type(module) for module in model.modules()] == before
