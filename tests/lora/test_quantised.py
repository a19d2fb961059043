"""Adapters beside weights of bitsandbytes' 8 and 4 bits and torchao's int8: PEFT's numbers, and where PEFT has none.

bitsandbytes lays 4-bit codes out anew in the first call in eval mode on processors with AVX512-BF16, and PEFT reads
those wrongly; its networks are kept from it here (`plain_codes`), ours keep themselves.
"""

import copy
import subprocess
import sys
import warnings

import peft
import pytest
import torch
from closeness import close
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from hf_tl import (
    InputError,
    LoraConfig,
    add_lora,
    delete_adapter,
    load_adapter,
    merge_adapter,
    save_adapter,
    unmerge_adapter,
)
from hf_tl.lora.adapted import adapter_state_dict, record_of
from hf_tl.lora.quantised import PACKS, plain_weight


KINDS = ("int8", "nf4", "fp4", "torchao")
TARGETS = ["q_proj", "v_proj", "down_proj"]
IDS = torch.randint(1, 96, (2, 7), generator=torch.Generator().manual_seed(0))
pytestmark = pytest.mark.filterwarnings("ignore:MatMul8bitLt", "ignore:Merge lora module", "ignore:.*quantised again")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=96, num_key_value_heads=2, initializer_range=0.2, pad_token_id=0, **sizes)
    folder = tmp_path_factory.mktemp("checkpoint")
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=KINDS)
def load(request, checkpoint):
    """The network, loaded in fewer bits."""
    if request.param == "torchao":
        pytest.importorskip("torchao")
        from torchao.quantization import Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        quantisation = TorchAoConfig(Int8WeightOnlyConfig())
    else:
        pytest.importorskip("bitsandbytes")
        from transformers import BitsAndBytesConfig

        four = {"load_in_4bit": True, "bnb_4bit_quant_type": request.param}
        double = {"bnb_4bit_use_double_quant": request.param == "nf4"}
        quantisation = BitsAndBytesConfig(**({"load_in_8bit": True} if request.param == "int8" else four | double))

    def loaded():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return AutoModelForCausalLM.from_pretrained(
                checkpoint, quantization_config=quantisation, dtype=torch.float32
            )

    loaded.kind = request.param
    return loaded


def plain_codes(model):
    for module in model.modules():
        if PACKS in vars(module):
            setattr(module, PACKS, False)
    return model


def peft_network(load, **config):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return plain_codes(peft.get_peft_model(load(), peft.LoraConfig(target_modules=TARGETS, **config)))


def our_network(load, **config):
    return add_lora(load(), LoraConfig(target_modules=TARGETS, **config))


def pair(load, **config):
    """PEFT's network and ours, with one adapter at random."""
    config = {"r": 4, "lora_alpha": 8, **config}
    theirs, ours = peft_network(load, **config), our_network(load, **config)
    generator, found = torch.Generator().manual_seed(1), adapter_state_dict(ours)
    tensors = peft.get_peft_model_state_dict(theirs, save_embedding_layers=False)
    assert {n: t.shape for n, t in tensors.items()} == {n: t.shape for n, t in found.items()}
    with torch.no_grad():
        for name, tensor in tensors.items():
            noise = torch.randn(tensor.shape, generator=generator) * 0.1
            if "magnitude" in name:  # the norms of the dequantised rows
                assert torch.allclose(found[name], tensor, rtol=1e-6), name
            tensor.copy_(tensor * (1 + noise) if "magnitude" in name else noise)
            found[name].copy_(tensor)
    return theirs, ours


def step(model):
    """The logits in training, the gradients, and what AdamW makes of the adapter in one step."""
    model.train()
    model.zero_grad()
    out = model(input_ids=IDS, labels=IDS)
    out.loss.backward()
    trained = {n.removeprefix("base_model.model."): p for n, p in model.named_parameters() if p.grad is not None}
    gradients = {name: p.grad.clone() for name, p in trained.items()}
    values = {name: p.detach().clone() for name, p in trained.items()}
    torch.optim.AdamW(list(trained.values()), lr=1e-2).step()
    return out.logits.detach(), gradients, {n: p.detach() - values[n] for n, p in trained.items()}


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def same(one, other):
    if type(one) is not torch.Tensor:  # torchao compares none
        one, other = one.dequantize(), other.dequantize()
    return torch.equal(one, other)


@pytest.mark.parametrize("config", [{}, {"use_dora": True}], ids=["lora", "dora"])
def test_the_numbers_are_those_of_peft(load, config):
    theirs, ours = pair(load, **config)
    tolerance = 5e-5 if config else 5e-6  # DoRA's norms round otherwise
    if not (config and load.kind == "int8"):  # PEFT's layer loses its scales there and fails in the second call
        close(logits(ours), logits(theirs), tolerance)
    (y, gradients, steps), (y0, gradients0, steps0) = step(ours), step(theirs)
    close(y, y0, tolerance)
    assert sorted(gradients) == sorted(gradients0)
    for name in gradients:
        close(gradients[name], gradients0[name], tolerance)
        close(steps[name], steps0[name], 10 * tolerance)


def test_a_call_in_eval_mode_takes_no_gradient_away(load):
    """Where bitsandbytes lays its codes out anew, layers would pass none from then on, adapted or not."""
    model = our_network(load)
    with torch.no_grad():
        for layer in record_of(model).layers.values():
            layer.lora_B["default"].weight.normal_(generator=torch.Generator().manual_seed(2), std=0.1)
    _, before, _ = step(copy.deepcopy(model))
    logits(model)
    _, after, _ = step(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_codes_that_were_laid_out_anew_are_read_rightly(load):
    base = load()
    expected = {n: plain_weight(m) for n, m in base.named_modules() if isinstance(m, nn.Linear)}
    logits(base)
    found = {n: plain_weight(m) for n, m in base.named_modules() if isinstance(m, nn.Linear)}
    for name, weight in expected.items():  # scales come back in bfloat16
        close(found[name], weight, 1e-2)


@pytest.mark.parametrize("config", [{}, {"use_dora": True}], ids=["lora", "dora"])
def test_merged_and_unmerged(load, config):
    theirs, ours = pair(load, **config)
    before, state = logits(ours), {n: t.clone() for n, t in ours.state_dict().items() if isinstance(t, torch.Tensor)}
    exact = {name: layer.adapted_matrix(["default"]) for name, layer in record_of(ours).layers.items()}
    with pytest.warns(UserWarning, match="3 merged weights were quantised again, which moves them by up to"):
        merge = merge_adapter(ours, example={"input_ids": IDS})
    found = {name: plain_weight(layer.base_layer) for name, layer in record_of(ours).layers.items()}
    largest = max((found[name] - exact[name]).abs().max().item() for name in found)
    assert merge.rounding == pytest.approx(largest, rel=1e-4)
    assert merge.largest_change == (logits(ours) - before).abs().max()
    assert merge.largest_change > 0
    kept = ours.state_dict()
    assert kept.keys() == state.keys()
    assert all(same(kept[name], tensor) for name, tensor in state.items())  # frozen weights and adapter apart
    unmerge_adapter(ours)
    assert torch.equal(logits(ours), before)
    if not (config and load.kind in ("int8", "torchao")):  # PEFT's merge beside torchao leaves DoRA's norms out
        merged = plain_codes(theirs.eval()).merge_and_unload()
        for name, weight in found.items():
            wanted = plain_weight(merged.get_submodule(name))  # a value between two codes may go either way
            assert ((weight - wanted).abs() > 1e-4 * wanted.abs().max()).float().mean() < 0.01, name
    delete_adapter(ours, merge=True)
    layer = ours.model.layers[0].self_attn.q_proj
    assert torch.equal(plain_weight(layer), found["model.layers.0.self_attn.q_proj"])
    assert type(layer) is type(load().model.layers[0].self_attn.q_proj)


def test_an_adapter_that_is_taken_off_leaves_the_network_as_it_was(load):
    base = load()
    before = {n: dict(vars(m)) for n, m in base.named_modules() if PACKS in vars(m)}
    weights = {n: t.clone() for n, t in base.state_dict().items() if isinstance(t, torch.Tensor)}
    delete_adapter(add_lora(base, LoraConfig(r=2, target_modules=TARGETS, use_dora=True)))
    assert {n: vars(m)[PACKS] for n, m in base.named_modules() if PACKS in vars(m)} == {
        n: values[PACKS] for n, values in before.items()
    }
    assert not base._hf_peft_config_loaded
    after = base.state_dict()
    assert all(same(after[name], tensor) for name, tensor in weights.items())


def test_files_both_ways(load, tmp_path):
    theirs, ours = pair(load)
    expected = logits(ours)
    save_adapter(ours, tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    close(logits(load_adapter(load(), tmp_path / "theirs")), expected, 1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = peft.PeftModel.from_pretrained(load(), tmp_path / "ours")
    close(logits(plain_codes(read)), expected, 1e-6)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_starts_that_read_the_weight_change_no_output(load, init):
    base = load()
    expected = logits(plain_codes(base))
    ours = add_lora(base, LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=init))
    close(logits(ours), expected, 1e-5)
    layer = record_of(ours).layers["model.layers.0.self_attn.q_proj"]
    a, b = layer.held_factors("default")
    weight = plain_weight(layer.base_layer)
    if init == "pissa":
        rest = torch.linalg.norm(weight - layer.scaling["default"] * (b @ a).detach())
        assert rest < 0.95 * torch.linalg.norm(weight)
    _, gradients, _ = step(ours)
    assert all(gradient.abs().max() > 0 for gradient in gradients.values())


def test_peft_s_file_of_a_base_that_it_quantised_again_is_refused(load, tmp_path):
    if load.kind == "torchao":
        return  # PEFT makes none
    peft_network(load, r=4, init_lora_weights="olora").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="'olora': PEFT trained it beside weights that it quantised again"):
        load_adapter(load(), tmp_path)


@pytest.mark.slow
def test_trainer_trains_and_resumes(load, tmp_path):
    rows = [{"input_ids": ids, "labels": ids} for ids in IDS.repeat(4, 1)]

    def train(folder, *, steps, resume=None):
        torch.manual_seed(3)
        model = our_network(load, r=4)
        arguments = {"per_device_train_batch_size": 2, "report_to": [], "use_cpu": True, "save_steps": 2, "seed": 3}
        more = {"lr_scheduler_type": "constant", "learning_rate": 1e-2, "max_steps": steps, "logging_steps": 1}
        trainer = Trainer(model, TrainingArguments(folder, **arguments, **more), train_dataset=rows)
        trainer.train(resume_from_checkpoint=resume)
        return adapter_state_dict(model), [one["loss"] for one in trainer.state.log_history if "loss" in one]

    straight, losses = train(tmp_path / "straight", steps=4)
    assert losses[-1] < losses[0]
    train(tmp_path / "halves", steps=2)
    resumed, _ = train(tmp_path / "halves", steps=4, resume=str(tmp_path / "halves" / "checkpoint-2"))
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_a_head_of_codes_does_not_train_in_full(load):
    model = load()
    with pytest.raises(InputError, match="is to train in full, but its weights are quantised"):
        add_lora(model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["down_proj"]))
    assert not any("lora" in name for name, _ in model.named_modules())


def test_layers_without_codes_are_refused():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    for layer, message in (
        (bitsandbytes.nn.Linear8bitLt(8, 8), r"'0' is a Linear8bitLt that holds torch.float32 and no codes yet"),
        (bitsandbytes.nn.Linear4bit(8, 8), "'0' is a Linear4bit without codes yet; move the network"),
        (bitsandbytes.nn.Embedding4bit(8, 64), r"'0' is quantised \(bitsandbytes Embedding4bit\)"),
    ):
        with pytest.raises(InputError, match=message):
            add_lora(nn.Sequential(layer), LoraConfig(target_modules=["0"]), example=torch.zeros(1, 8))


def test_other_quantisers_are_refused_by_name(tmp_path):
    class Packed(nn.Module):
        def __init__(self, package):
            super().__init__()
            self.register_buffer("qweight", torch.zeros(4, 4, dtype=torch.int32))

    def network(package, name):
        kind = type(name, (Packed,), {"__module__": package})
        return nn.Sequential(nn.Linear(4, 4), kind(package))

    config = LoraConfig(target_modules=["0"], modules_to_save=())
    plain = add_lora(nn.Sequential(nn.Linear(4, 4)), config, example=torch.zeros(1, 4))
    save_adapter(plain, tmp_path)
    for package, name, said in (
        ("gptqmodel.nn_modules.qlinear.torch", "TorchQuantLinear", "GPTQ"),
        ("awq.modules.linear.gemm", "WQLinear_GEMM", "AWQ"),
        ("hqq.core.quantize", "HQQLinear", "HQQ"),
        ("transformers.integrations.eetq", "EetqLinear", "EETQ"),
        ("somebody.layers", "Squeezed", "Squeezed"),
    ):
        model = network(package, name)
        for call in (
            lambda model=model: add_lora(model, LoraConfig(target_modules="all-linear")),
            lambda model=model: load_adapter(model, tmp_path),
        ):
            with pytest.raises(InputError, match=rf"'1' is quantised \({said}\), of which hf_tl knows neither"):
                call()
        assert type(model[0]) is nn.Linear
    config = LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    model = LlamaForCausalLM(config)
    model.quantization_method = "gptq"
    with pytest.raises(InputError, match="the network is quantised by gptq, of which hf_tl knows"):
        add_lora(model, LoraConfig(target_modules="all-linear"))


@pytest.mark.slow
def test_nothing_of_a_quantiser_is_imported_for_a_network_in_float():
    code = """
import sys, torch
from torch import nn
from hf_tl import LoraConfig, add_lora, merge_adapter
config = LoraConfig(target_modules=["0"], modules_to_save=())
merge_adapter(add_lora(nn.Sequential(nn.Linear(4, 4)), config, example=torch.zeros(1, 4)))
assert not {"bitsandbytes", "torchao"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
