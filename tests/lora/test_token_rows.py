"""Single rows of embeddings that train: PEFT's numbers and files, tied and untied output layers, new vocabularies."""

import copy
import json
import warnings

import peft
import pytest
import torch
from closeness import close
from lanes import lanes
from peft_zoo import tiny_bert, tiny_t5
from torch import nn
from transformers import GemmaConfig, GemmaForCausalLM, LlamaConfig, LlamaForCausalLM

from hf_tl import (
    InputError,
    LoraConfig,
    add_lora,
    combine_adapters,
    delete_adapter,
    load_adapter,
    merge_adapter,
    save_adapter,
)
from hf_tl.lora.adapted import adapter_state_dict, disable_adapters, record_of
from hf_tl.lora.token_rows import TokenRows


IDS = torch.tensor([[3, 7, 2, 28, 7], [9, 1, 28, 5, 0]])
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZES |= {"vocab_size": 30, "num_key_value_heads": 2, "initializer_range": 0.2, "pad_token_id": 0}
ROWS = [7, 28, 4]
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")


def llama(*, tied):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=tied)).eval()


def gemma():
    """Its embeddings are multiplied on the way out, and tied."""
    torch.manual_seed(0)
    return GemmaForCausalLM(GemmaConfig(**SIZES, head_dim=8)).eval()


KINDS = {
    "tied": (lambda: llama(tied=True), ROWS, "q_proj"),
    "untied": (lambda: llama(tied=False), ROWS, "q_proj"),
    "by name": (lambda: llama(tied=False), {"embed_tokens": ROWS, "lm_head": [5, 7]}, "q_proj"),
    "scaled": (gemma, ROWS, "q_proj"),
    "bert": (tiny_bert, {"word_embeddings": ROWS}, "query"),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def pair(kind):
    make, rows, target = kind
    config = {"r": 2, "target_modules": [target], "trainable_token_indices": rows}
    theirs = peft.get_peft_model(make(), peft.LoraConfig(**config))
    ours = add_lora(make(), LoraConfig(**config, modules_to_save=()))
    tensors = peft.get_peft_model_state_dict(theirs, save_embedding_layers=False)
    found, generator = adapter_state_dict(ours), torch.Generator().manual_seed(1)
    assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in tensors.items()}
    with torch.no_grad():
        for name, tensor in tensors.items():
            if "trainable" in name:
                assert torch.equal(found[name], tensor)  # they start as the frozen ones
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
            found[name].copy_(tensor)
    return theirs, ours


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def gradients(model):
    model.train().zero_grad()
    output = model(input_ids=IDS).logits
    output.square().mean().backward()
    parts = {"lora_A": "A", "lora_B": "B"}
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    rows = sorted((p.grad for n, p in named if not any(part in n for part in parts)), key=lambda g: g.shape)
    return rows + [p.grad for n, p in named if any(part in n for part in parts)]


def test_the_numbers_are_those_of_peft(kind):
    theirs, ours = pair(kind)
    base = logits(kind[0]())
    close(logits(ours), logits(theirs))
    assert (logits(ours) - base).abs().max() > 1e-3
    with disable_adapters(ours):
        assert torch.equal(logits(ours), base)
    for found, wanted in zip(gradients(ours), gradients(theirs), strict=True):
        close(found, wanted, 1e-5)
    for model in (ours, theirs):
        torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2).step()
    close(logits(ours), logits(theirs), 1e-4)


def test_merged_and_taken_off(kind):
    make, *_ = kind
    theirs, ours = pair(kind)
    before = logits(ours)
    merge_adapter(ours)
    close(logits(ours), before, 1e-5)
    delete_adapter(ours, merge=True)
    merged = theirs.eval().merge_and_unload()
    close(logits(ours), logits(merged), 1e-5)
    state, wanted = ours.state_dict(), make().state_dict()
    assert list(state) == list(wanted)
    for name, tensor in merged.state_dict().items():
        close(state[name], tensor, 1e-6)
    _, ours = pair(kind)
    delete_adapter(ours)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in ours.state_dict().items())
    assert not any(isinstance(module, TokenRows) for module in ours.modules())


def test_files_both_ways(kind, tmp_path):
    make, rows, _ = kind
    theirs, ours = pair(kind)
    expected = logits(ours)
    save_adapter(ours, tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    close(logits(load_adapter(make(), tmp_path / "theirs")), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        close(logits(peft.PeftModel.from_pretrained(make(), tmp_path / "ours")), expected)
    saved = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())["trainable_token_indices"]
    lists = [saved] if isinstance(saved, list) else saved.values()
    assert sorted(lists) == sorted([rows] if isinstance(rows, list) else rows.values())


def test_shared_embeddings_of_an_encoder_and_a_decoder():
    model = add_lora(tiny_t5(), LoraConfig(r=2, target_modules=["q"], trainable_token_indices=ROWS))
    inputs = {"input_ids": IDS, "decoder_input_ids": IDS[:, :3]}
    before = model(**inputs).logits
    with torch.no_grad():
        record_of(model).tokens["shared"].rows["default"].add_(0.5)
    written = copy.deepcopy(tiny_t5())
    with torch.no_grad():
        written.shared.weight[ROWS] += 0.5
    assert (model(**inputs).logits - before).abs().max() > 1e-3
    close(model(**inputs).logits, written(**inputs).logits, 1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_of_a_resized_vocabulary_the_new_rows_alone_train_and_travel(tied, tmp_path):
    llama(tied=tied).save_pretrained(tmp_path / "base")

    def resized(seed):
        model = LlamaForCausalLM.from_pretrained(tmp_path / "base")
        torch.manual_seed(seed)
        model.resize_token_embeddings(33, mean_resizing=False)
        return model

    new = [30, 31, 32]
    rows = new if tied else {"embed_tokens": new, "lm_head": new}
    model = add_lora(resized(1), LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=rows))
    trained = [p for n, p in model.named_parameters() if p.requires_grad and "lora" not in n]
    assert sum(p.numel() for p in trained) == 3 * 16 * (1 if tied else 2)
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)))
    ids = torch.tensor([[1, 31, 5, 32]])
    expected = model.eval()(input_ids=ids).logits
    save_adapter(model, tmp_path / "adapter")
    tensors = load_tensors(tmp_path / "adapter")
    assert max(tensor.numel() for tensor in tensors.values()) <= 3 * 16
    other = load_adapter(resized(2), tmp_path / "adapter")
    close(other.eval()(input_ids=ids).logits, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(resized(3), tmp_path / "adapter")
    close(theirs.eval()(input_ids=ids).logits, expected)
    with pytest.raises(InputError, match=r"row 32 of 30; resize_token_embeddings\(33\) first"):
        load_adapter(LlamaForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter")


def load_tensors(folder):
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def test_half_precision_keeps_the_rows_in_float32():
    model = add_lora(llama(tied=True).bfloat16(), LoraConfig(r=2, trainable_token_indices=ROWS))
    (rows,) = {id(r): r for tokens in record_of(model).tokens.values() for r in tokens.rows.values()}.values()
    assert rows.dtype == torch.float32
    assert model(input_ids=IDS).logits.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"trainable_token_indices": [1, 30]}, "should be from 0 to 29, the rows of the embedding, got 1 to 30"),
        ({"trainable_token_indices": [1, 1]}, "names a token twice"),
        ({"trainable_token_indices": {"embed_token": [1]}}, "'embed_token', which is no module; .* 'embed_tok"),
        ({"trainable_token_indices": {"q_proj": [1], "norm": [1]}}, "not of a LlamaRMSNorm"),
        ({"trainable_token_indices": [1], "modules_to_save": ["embed_tokens"]}, "or all of it does as well"),
        ({"trainable_token_indices": [1], "target_modules": ["lm_head"]}, "'lm_head' has the weight of 'model.embed"),
    ],
)
def test_refusals_leave_the_network_as_it_was(config, message):
    model = llama(tied=True)
    before = copy.deepcopy(model)
    with pytest.raises(InputError, match=message):
        add_lora(model, LoraConfig(**{"r": 2, "target_modules": ["o_proj"], **config}))
    assert [type(m) for m in model.modules()] == [type(m) for m in before.modules()]
    assert torch.equal(logits(model), logits(before))


def test_a_network_that_does_not_name_its_embeddings():
    model = nn.ModuleDict({"one": nn.Embedding(4, 4), "two": nn.Embedding(4, 4), "out": nn.Linear(4, 4)})
    with pytest.raises(InputError, match=r"needs the name of an embedding here, .*: there are one, two"):
        add_lora(model, LoraConfig(target_modules=["out"], modules_to_save=(), trainable_token_indices=[1]))
    with pytest.raises(InputError, match="trainable_token_indices should be a list of token indices from 0"):
        LoraConfig(trainable_token_indices=[-1])


@pytest.mark.parametrize("tied", [True, False])
def test_a_combination_has_the_rows_of_all(tied, tmp_path):
    model = llama(tied=tied)
    for name, rows in (("a", [7, 28]), ("b", [28, 4])):
        add_lora(model, LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=rows), adapter_name=name)
        with torch.no_grad():
            record_of(model).tokens["model.embed_tokens"].rows[name].normal_()
    tokens = record_of(model).tokens["model.embed_tokens"]
    expected = [tokens.rows["b"][1], tokens.rows["a"][0], tokens.rows["a"][1]]
    with pytest.warns(UserWarning, match=r"tokens \[28\] of 'model.embed_tokens' .* those of the first are taken"):
        combine_adapters(model, ["a", "b"], weights=[1.0, 1.0], adapter_name="both")
    assert tokens.indices["both"] == (4, 7, 28)
    assert torch.equal(tokens.rows["both"], torch.stack(expected))
    found = model(input_ids=IDS).logits
    save_adapter(model, tmp_path, adapter_name="both")
    torch.testing.assert_close(load_adapter(llama(tied=tied), tmp_path)(input_ids=IDS).logits, found)


TIED_ROWS = [{"lm_head": [28]}, {"lm_head": [28], "embed_tokens": [7]}, {"embed_tokens": [28]}]


@pytest.mark.parametrize("rows", TIED_ROWS, ids=str)
def test_rows_of_a_tied_output_layer_are_its_own_as_in_peft(rows, tmp_path):
    config = {"r": 2, "target_modules": ["q_proj"], "trainable_token_indices": rows}
    theirs = peft.get_peft_model(llama(tied=True), peft.LoraConfig(**config))
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=draw))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_adapter(llama(tied=True), tmp_path / "theirs")
    close(logits(ours), logits(theirs))
    save_adapter(ours, tmp_path / "ours")
    close(logits(peft.PeftModel.from_pretrained(llama(tied=True), tmp_path / "ours")), logits(theirs))
    close(logits(delete_adapter(ours, merge=True)), logits(theirs))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "config",
    lanes(
        [
            {"trainable_token_indices": [32, 33]},
            {"trainable_token_indices": [33]},
            {"trainable_token_indices": {"embed_tokens": [33]}},
            {"trainable_token_indices": {"lm_head": [33]}},
            {"modules_to_save": ["embed_tokens", "lm_head"]},
            {"modules_to_save": ["embed_tokens"]},
            {"modules_to_save": ["lm_head"], "bias": "all"},
        ],
        fast=lambda config: config.get("trainable_token_indices") == [33] or "bias" in config,
    ),
    ids=str,
)
def test_files_of_a_resized_vocabulary_that_trains_in_part_go_both_ways(config, tied, tmp_path):
    llama(tied=tied).save_pretrained(tmp_path / "base")

    def base(seed):
        model = LlamaForCausalLM.from_pretrained(tmp_path / "base")
        torch.manual_seed(seed)
        model.resize_token_embeddings(34, mean_resizing=False)
        return model.eval()

    def found(model):
        with torch.no_grad():
            return model.eval()(input_ids=torch.tensor([[1, 32, 33, 5]])).logits

    config = {"r": 2, "target_modules": ["q_proj"], **config}
    theirs = peft.get_peft_model(base(1), peft.LoraConfig(**config))
    ours = add_lora(base(1), LoraConfig(**config))
    for model in (theirs, ours):
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path / "theirs")
    close(found(load_adapter(base(2), tmp_path / "theirs")), found(theirs))
    save_adapter(ours, tmp_path / "ours")
    close(found(load_adapter(base(3), tmp_path / "ours")), found(ours))
    close(found(peft.PeftModel.from_pretrained(base(4), tmp_path / "ours")), found(ours))
