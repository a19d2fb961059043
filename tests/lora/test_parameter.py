"""Adapters beside stacked experts and other bare parameters: PEFT's numbers and files, for six kinds of networks."""

import copy
import json
import warnings

import peft
import pytest
import torch
import transformers
from closeness import close
from lanes import lanes
from torch import nn

from hf_tl import (
    InputError,
    LoraConfig,
    add_lora,
    combine_adapters,
    delete_adapter,
    load_adapter,
    merge_adapter,
    save_adapter,
    set_adapter,
    unmerge_adapter,
)
from hf_tl.lora.adapted import adapter_state_dict, disable_adapters, record_of
from hf_tl.lora.adapter import read_adapter


IDS = torch.randint(1, 32, (2, 6), generator=torch.Generator().manual_seed(0))
SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
DEEPSEEK = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
NETWORKS = {  # class, own settings, names of the experts' parameters
    "Mixtral": {"num_local_experts": 3},
    "Qwen3Moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "head_dim": 8},
    "GptOss": {"num_local_experts": 4, "head_dim": 8},
    "DeepseekV3": {"moe_intermediate_size": 8, **DEEPSEEK, **ROUTED},
    "Glm4Moe": {"moe_intermediate_size": 8, "head_dim": 8, **ROUTED},
    "Ernie4_5_Moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 8, "moe_layer_start_index": 0},
}
OLD = "gate_proj up_proj down_proj"
PARAMETERS = ["experts.gate_up_proj", "experts.down_proj"]
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")


@pytest.fixture(params=lanes(NETWORKS, fast=lambda kind: kind in ("Mixtral", "GptOss")))
def make(request):
    return lambda: network(request.param)


def network(kind):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **NETWORKS[kind]})
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():  # some are born as zeros, or as they come
        for name, parameter in model.named_parameters():
            if parameter.dim() == 3:
                parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(len(name)))
    return model


def peft_network(base, **config):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(base, peft.LoraConfig(**config))


def pair(make, **changes):
    config = {"r": 3, "lora_alpha": 6, "target_modules": ["o_proj"], "target_parameters": PARAMETERS, **changes}
    theirs, ours = peft_network(make(), **config), add_lora(make(), LoraConfig(**config))
    randomise(theirs)
    mine, tensors = adapter_state_dict(ours), peft.get_peft_model_state_dict(theirs, save_embedding_layers=False)
    assert {n: t.shape for n, t in mine.items()} == {n: t.shape for n, t in tensors.items()}
    for name, tensor in tensors.items():
        mine[name].copy_(tensor)
    return theirs, ours


def randomise(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def gradients(model):
    model.train().zero_grad()
    model(input_ids=IDS, labels=IDS).loss.backward()
    return {n.removeprefix("base_model.model."): p.grad for n, p in model.named_parameters() if p.requires_grad}


def test_the_numbers_are_those_of_peft(make):
    theirs, ours = pair(make)
    base = logits(make())
    close(logits(ours), logits(theirs))
    assert (logits(ours) - base).abs().max() > 0.01
    with disable_adapters(ours):
        assert torch.equal(logits(ours), base)
    found, wanted = gradients(ours), gradients(theirs)
    assert sorted(found) == sorted(wanted)  # live names too
    largest = max(gradient.abs().max() for gradient in wanted.values())
    for name, gradient in wanted.items():
        close(found[name] / largest, gradient / largest, 1e-5)
    for model in (ours, theirs):
        torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2).step()
    close(logits(ours), logits(theirs), 1e-4)


def test_merged_and_unmerged(make):
    theirs, ours = pair(make)
    before, state = logits(ours), copy.deepcopy(ours.state_dict())
    merge_adapter(ours)
    close(logits(ours), before, 1e-5)
    assert all(torch.equal(tensor, state[name]) for name, tensor in ours.state_dict().items())
    unmerge_adapter(ours)
    assert torch.equal(logits(ours), before)
    merged = theirs.eval().merge_and_unload().state_dict()
    delete_adapter(ours, merge=True)  # in place
    assert sorted(merged) == sorted(ours.state_dict())
    for name, tensor in ours.state_dict().items():
        close(tensor, merged[name])


def test_files_both_ways(make, tmp_path):
    theirs, ours = pair(make)
    expected = logits(ours)
    save_adapter(ours, tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    close(logits(load_adapter(make(), tmp_path / "theirs")), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        close(logits(peft.PeftModel.from_pretrained(make(), tmp_path / "ours")), expected)
    first, second = (json.loads((tmp_path / one / "adapter_config.json").read_text()) for one in ("ours", "theirs"))
    assert sorted(first["target_parameters"]) == sorted(second["target_parameters"])
    again = load_adapter(make(), tmp_path / "ours", is_trainable=True)
    assert all(torch.equal(t, adapter_state_dict(ours)[n]) for n, t in adapter_state_dict(again).items())


def test_all_linear_takes_them_in_and_layers_selects_them(tmp_path):
    model = add_lora(network("GptOss"), LoraConfig(r=2, target_modules="all-linear", layers="75%.."))
    names = [name for name, layer in record_of(model).layers.items() if ".experts." in name]
    assert names == ["model.layers.1.mlp.experts.gate_up_proj", "model.layers.1.mlp.experts.down_proj"]
    randomise(model)
    save_adapter(model, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_parameters"] == sorted(names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        close(logits(peft.PeftModel.from_pretrained(network("GptOss"), tmp_path)), logits(model))
    close(logits(load_adapter(network("GptOss"), tmp_path)), logits(model))


@pytest.mark.parametrize("changes", [{"lora_dropout": 0.1}, {"use_dora": True}, {"init_lora_weights": "pissa"}])
def test_what_peft_cannot_do_with_them_leaves_them_out_or_is_refused(changes):
    (name, value), *_ = changes.items()
    with pytest.warns(UserWarning, match=rf"4 parameters of stacked experts .* are left out: {name}={value!r} is not"):
        model = add_lora(network("GptOss"), LoraConfig(r=2, target_modules="all-linear", **changes))
    assert not any(".experts." in layer for layer in record_of(model).layers)
    model = network("GptOss")
    with pytest.raises(InputError, match=rf"{name}={value!r} is not for target_parameters \('gate_up_proj'\)"):
        add_lora(model, LoraConfig(r=2, target_modules=["o_proj"], target_parameters=PARAMETERS, **changes))
    assert not any("lora" in part for part, _ in model.named_modules())


def test_a_matrix_that_no_layer_holds(tmp_path):
    """The router of Mixtral; and its own rank."""
    theirs, ours = pair(lambda: network("Mixtral"), target_parameters=["gate.weight"], rank_pattern={"gate.weight": 2})
    close(logits(ours), logits(theirs))
    assert record_of(ours).layers["model.layers.0.mlp.gate.weight"].r == {"default": 2}
    before = logits(ours)
    save_adapter(ours, tmp_path)
    close(logits(load_adapter(network("Mixtral"), tmp_path)), before)
    merge_adapter(ours)
    close(logits(ours), before, 1e-5)


def test_two_adapters_of_different_parameters():
    model = network("Qwen3Moe")
    base = logits(model)
    config = {"r": 2, "target_modules": ["q_proj"], "init_lora_weights": False}
    add_lora(model, LoraConfig(**config, target_parameters=PARAMETERS[1:]), adapter_name="down")
    alone = logits(model)
    add_lora(model, LoraConfig(**config, target_parameters=PARAMETERS), adapter_name="both")
    both = logits(model)
    keys = {key for key in adapter_state_dict(model, adapter_name="down") if "experts" in key}
    assert keys == {
        f"base_model.model.model.layers.{i}.mlp.experts.lora_{part}.weight" for i in (0, 1) for part in "AB"
    }
    assert any("experts.base_layer.lora_A" in key for key in adapter_state_dict(model, adapter_name="both"))
    set_adapter(model, "down")
    close(logits(model), alone)
    with pytest.raises(InputError, match="holds factors for each expert and is no update of one matrix"):
        combine_adapters(model, ["down", "both"], weights=[1.0, 1.0], adapter_name="sum")
    delete_adapter(model, "down")
    close(logits(model), both)
    delete_adapter(model)
    assert torch.equal(logits(model), base)
    assert type(model.model.layers[0].mlp.experts).__name__ == "Qwen3MoeExperts"


def test_names_that_are_no_parameters():
    with pytest.raises(InputError, match=r"'experts\.down_porj', which is no parameter .* closest are '.*down_proj'"):
        add_lora(network("Mixtral"), LoraConfig(target_parameters=["experts.down_porj"]))

    class Bank(nn.Module):
        def __init__(self):
            super().__init__()
            self.stack = nn.Parameter(torch.zeros(2, 3, 4, 5))

    with pytest.raises(InputError, match=r"'bank\.stack', which is no parameter of two or three axes"):
        add_lora(nn.ModuleDict({"bank": Bank()}), LoraConfig(target_parameters=["bank.stack"]))


@pytest.mark.parametrize("rslora", lanes([False, True], fast=lambda rslora: rslora))
@pytest.mark.parametrize(
    ("kind", "block", "parts"), [("Mixtral", "block_sparse_moe", "w1 w3 w2"), ("Qwen3Moe", "mlp", OLD)]
)
def test_files_from_before_the_experts_were_stacked(kind, block, parts, rslora, tmp_path):
    model, generator = network(kind), torch.Generator().manual_seed(3)
    bank = model.model.layers[0].mlp.experts
    (e, wide, d), tensors = bank.gate_up_proj.shape, {}
    gate, up, down = parts.split()
    shapes = {gate: (d, wide // 2), up: (d, wide // 2), down: (wide // 2, d)}
    for i in (0, 1):
        places = {f"{block}.experts.{j}.{part}": shapes[part] for j in range(e) for part in shapes}
        for name, (k, n) in {**places, f"{block}.gate": (d, e), "self_attn.o_proj": (d, d)}.items():
            for part, shape in (("A", (2, k)), ("B", (n, 2))):
                key = f"base_model.model.model.layers.{i}.{name}.lora_{part}.weight"
                tensors[key] = 0.1 * torch.randn(shape, generator=generator)
    from safetensors.torch import save_file

    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["o_proj", "gate", *shapes]}
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "use_rslora": rslora}))
    ours = load_adapter(network(kind), tmp_path, is_trainable=True)
    layer = record_of(ours).layers["model.layers.1.mlp.experts.gate_up_proj"]
    scale, key = 6 / (2**0.5 if rslora else 2), f"base_model.model.model.layers.1.{block}.experts.1"
    assert layer.scaling["default"] == pytest.approx(scale)
    update = torch.zeros(e * wide, d)
    layer.add_to(update, None, "default")
    for half, part in zip(update.view(e, 2, -1, d)[1], (gate, up), strict=True):
        a, b = (tensors[f"{key}.{part}.lora_{one}.weight"] for one in "AB")
        assert torch.allclose(half, scale * b @ a, atol=1e-6)
    if not rslora:  # PEFT doubles alpha, which is not the scale of a rank twice as large then
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            close(logits(peft.PeftModel.from_pretrained(network(kind), tmp_path)), logits(ours))
    save_adapter(ours, tmp_path / "again")
    close(logits(load_adapter(network(kind), tmp_path / "again")), logits(ours))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        close(logits(peft.PeftModel.from_pretrained(network(kind), tmp_path / "again")), logits(ours))


def test_a_file_that_does_not_fit_is_refused(tmp_path):
    _, ours = pair(lambda: network("Mixtral"))
    save_adapter(ours, tmp_path)
    torch.manual_seed(0)
    config = transformers.MixtralConfig(**{**SIZES, "num_local_experts": 2})
    with pytest.raises(
        InputError, match=r"4 mismatched: 'model\.layers\.0\.mlp\.experts\.\w+', as layer .*\(A is \(9, 16\)"
    ):
        load_adapter(transformers.MixtralForCausalLM(config), tmp_path)
    with pytest.raises(InputError, match="holds factors of stacked experts"):
        read_adapter(tmp_path).updates["model.layers.0.mlp.experts"].factors()
    tensors = tmp_path / "adapter_model.safetensors"
    from safetensors.torch import load_file, save_file

    save_file({n: t for n, t in load_file(tensors).items() if "layers.1.mlp.experts.lora" not in n}, tensors)
    with pytest.raises(InputError, match=r"1 missing: parameter 'model\.layers.1.mlp.experts.down_proj'"):
        load_adapter(network("Mixtral"), tmp_path)


@pytest.mark.parametrize("words", [{"target_modules": "all-linear"}, {"target_parameters": PARAMETERS}], ids=str)
def test_an_exclusion_of_a_parameter_matches(words):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = add_lora(network("Mixtral"), LoraConfig(r=2, exclude_modules=["experts.down_proj"], **words))
    assert not any(name.endswith("down_proj") for name in record_of(model).layers)
