"""What a file brings for a network's own weights, and what it may not do to them."""

import warnings

import peft
import pytest
import torch
from closeness import ulps
from peft_zoo import randomise, tiny_bert, tiny_gpt2, tiny_llama, tokens
from safetensors.torch import load_file, save_file
from torch import nn

from hf_tl import InputError, LoraConfig, add_lora, delete_adapter, disable_adapters, load_adapter, save_adapter
from hf_tl.lora.adapter import read_adapter
from hf_tl.lora.load import load_base, put_adapter


pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),  # peft 0.21 asks
]


def plain(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval().to(dtype)


def saved(folder, model, **settings):
    add_lora(model, LoraConfig(r=2, **settings))
    randomise(model)
    save_adapter(model, folder)
    return folder / "adapter_model.safetensors"


def values(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_frozen_weight_in_the_file_is_refused(tmp_path):
    path = saved(tmp_path, plain(), target_modules=["1"], modules_to_save=())
    save_file({**load_file(path), "base_model.model.1.base_layer.weight": torch.ones(4, 4)}, path)
    model = plain()
    before = values(model)
    with pytest.raises(InputError, match=r"1 unexpected: '1.base_layer.weight' \(not among modules_to_save"):
        load_adapter(model, tmp_path)
    assert equal(before, values(model))


@pytest.mark.parametrize("targets", [["1"], ["0", "1"]])
def test_embeddings_in_the_file_go_with_the_adapter(tmp_path, targets):
    path = saved(tmp_path, plain(), target_modules=targets, modules_to_save=())
    key = "0.base_layer.weight" if "0" in targets else "0.weight"
    save_file({**load_file(path), f"base_model.model.{key}": torch.ones(10, 4)}, path)
    model, ids = plain(), tokens(top=10)
    before, output = values(model), plain()(ids)
    load_adapter(model, tmp_path)
    assert not torch.equal(model(ids), output)
    with disable_adapters(model):
        assert torch.equal(model(ids), output)
    save_adapter(model, tmp_path / "again")
    again = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert torch.equal(again[f"base_model.model.{key}"], torch.ones(10, 4))
    delete_adapter(model)
    assert equal(before, values(model))


def test_two_adapters_cannot_bring_different_embeddings(tmp_path):
    path = saved(tmp_path, plain(), target_modules=["1"], modules_to_save=())
    tensors = load_file(path)
    model = plain()
    for name, value in (("one", 1.0), ("same", 1.0), ("other", 2.0)):
        save_file({**tensors, "base_model.model.0.weight": torch.full((10, 4), value)}, path)
        if name == "other":
            with pytest.raises(InputError, match=r"'other' brings other values of '0.weight' than adapter 'one' did"):
                load_adapter(model, tmp_path, adapter_name=name)
        else:
            load_adapter(model, tmp_path, adapter_name=name)
    delete_adapter(model, "one")
    assert torch.equal(model[0].weight, torch.ones(10, 4))  # the second one still has it
    delete_adapter(model)
    assert torch.equal(model[0].weight, plain()[0].weight)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2], ids=["own output embeddings", "tied"])
def test_an_adapter_of_a_resized_vocabulary_is_loaded_as_peft_loads_it(tmp_path, make):
    import peft

    def resized(seed):
        model = make()
        torch.manual_seed(seed)
        model.resize_token_embeddings(101, mean_resizing=False)
        return model.eval()

    ids = torch.tensor([[1, 99, 100, 5]])
    names = ["c_attn"] if make is tiny_gpt2 else ["q_proj", "v_proj"]
    theirs = peft.get_peft_model(resized(1), peft.LoraConfig(r=2, target_modules=names))
    randomise(theirs)
    theirs.eval().save_pretrained(tmp_path, save_embedding_layers=True)
    ours = load_adapter(resized(2), tmp_path)
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits)
    save_adapter(ours, tmp_path / "again")
    back = peft.PeftModel.from_pretrained(resized(3), tmp_path / "again").eval()
    torch.testing.assert_close(back(ids).logits, theirs(ids).logits)


def test_new_words_travel_with_the_adapter_and_are_named(tmp_path):
    from transformers import AutoModelForCausalLM

    tiny_llama().save_pretrained(tmp_path / "base")

    def resized(seed):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        torch.manual_seed(seed)
        model.resize_token_embeddings(101, mean_resizing=False)
        return model.eval()

    model, ids = resized(1), torch.tensor([[1, 99, 100, 5]])
    with pytest.warns(UserWarning, match=r"has another size .* model.embed_tokens.weight, lm_head.weight is"):
        add_lora(model, LoraConfig(r=2, target_modules=["q_proj"]))
    randomise(model)
    save_adapter(model, tmp_path / "adapter")
    other = load_adapter(resized(2), tmp_path / "adapter")
    assert torch.equal(other(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    ("base", "file", "value"),
    [(torch.float32, torch.float64, 1e300), (torch.float16, torch.float32, 7e4), (torch.float16, torch.bfloat16, 7e4)],
)
@pytest.mark.parametrize("key", ["3.bias", "1.lora_B.weight"])
def test_values_beyond_the_networks_dtype_are_refused(tmp_path, base, file, value, key):
    path = saved(tmp_path, plain(), target_modules=["1"], modules_to_save=["3"])
    tensors = {name: tensor.to(file) for name, tensor in load_file(path).items()}
    tensors[f"base_model.model.{key}"].fill_(value)
    save_file(tensors, path)
    model = plain(base)
    before = values(model)
    if key == "1.lora_B.weight" and value < 1e30:  # factors are float32 beside a network in half precision
        load_adapter(model, tmp_path)
        return
    with pytest.raises(InputError, match=r"holds values up to .*, more than torch.float(16|32) can"):
        load_adapter(model, tmp_path)
    assert equal(before, values(model))


def test_what_is_left_out_of_an_attention_adds_nothing(tmp_path):
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "head": nn.Linear(8, 2)})
    path = saved(tmp_path, model, target_modules=["attention"], modules_to_save=())
    tensors = {key: tensor for key, tensor in load_file(path).items() if "out_proj" not in key}
    save_file(tensors, path)
    again = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "head": nn.Linear(8, 2)})
    with pytest.raises(InputError, match="2 tensors are missing"):
        load_adapter(again, tmp_path)
    load_adapter(again, tmp_path, strict=False)
    outer = {n: p for n, p in again.named_parameters() if "out_proj.lora" in n}
    assert len(outer) == 2
    assert not any(p.any() for p in outer.values())


@pytest.mark.slow
def test_a_compiled_network_is_adapted_inside_its_wrapper(tmp_path):
    model = tiny_bert()
    wrapped = torch.compile(model, backend="eager")
    assert add_lora(wrapped, LoraConfig(r=2, target_modules=["query"])) is wrapped
    randomise(model)
    save_adapter(wrapped, tmp_path)
    again = torch.compile(tiny_bert(), backend="eager")
    load_adapter(again, tmp_path)
    assert ulps(again(tokens()).logits, model(tokens()).logits) <= 16


def test_wrappers_that_an_adapter_must_come_before_are_named(tmp_path):
    saved(tmp_path, plain(), target_modules=["1"], modules_to_save=())
    parallel, partly = nn.DataParallel(plain()), plain()
    partly[1] = torch.compile(partly[1], backend="eager")
    for model, sentence in ((parallel, "the network is in DataParallel"), (partly, "'1' is compiled by itself")):
        before = values(model)
        with pytest.raises(InputError, match=f"{sentence}.*; add or load adapters first"):
            add_lora(model, LoraConfig(r=2, target_modules=["1"]))
        with pytest.raises(InputError, match=f"{sentence}.*; add or load adapters first"):
            load_adapter(model, tmp_path)
        assert equal(before, values(model))


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_a_file_of_a_network_that_was_wrapped_first_is_read(prefix, tmp_path):
    model = add_lora(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    randomise(model)
    save_adapter(model, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    start = "base_model.model."
    save_file({key.replace(start, start + prefix, 1): value for key, value in load_file(path).items()}, path)
    found = load_adapter(tiny_llama(), tmp_path)
    assert torch.equal(found(tokens()).logits, model(tokens()).logits)


def test_an_adapter_in_several_files_is_named(tmp_path):
    save_adapter(add_lora(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj"])), tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model-00001-of-00001.safetensors")
    (tmp_path / "adapter_model.safetensors.index.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds an adapter in several files .* larger max_shard_size"):
        load_adapter(tiny_llama(), tmp_path)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_the_bias_of_an_attention_s_output_comes_from_peft_s_file(tmp_path):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.inner = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.inner(x, x, x)[0]

    config = {"r": 2, "target_modules": ["inner"], "bias": "all"}
    theirs, x = peft.get_peft_model(Attention(), peft.LoraConfig(**config)), torch.randn(2, 5, 8)
    randomise(theirs)
    theirs.save_pretrained(tmp_path)
    assert theirs.base_model.model.inner.base_layer.out_proj.base_layer.bias.any()
    torch.testing.assert_close(load_adapter(Attention(), tmp_path)(x), theirs(x), atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_base_gets_the_vocabulary_that_the_adapter_brings(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "base")
    model = type(tiny_llama()).from_pretrained(tmp_path / "base")
    words = model.get_input_embeddings().num_embeddings + 2
    model.resize_token_embeddings(words, mean_resizing=False)
    add_lora(model.eval(), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    save_adapter(model, tmp_path / "adapter")
    adapter = read_adapter(tmp_path / "adapter")
    base = load_base(str(tmp_path / "base"), adapter)
    ids = torch.tensor([[1, words - 1]])
    assert torch.equal(put_adapter(base, adapter)(ids).logits, model(ids).logits)


@pytest.mark.filterwarnings("ignore:the vocabulary has another size")
@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])  # whose output embeddings are tied
def test_a_vocabulary_that_is_resized_after_add_lora_is_named(make, tmp_path):
    make().save_pretrained(tmp_path / "base")
    model = type(make()).from_pretrained(tmp_path / "base")
    add_lora(model, LoraConfig(r=2))
    model.resize_token_embeddings(model.get_input_embeddings().num_embeddings + 2, mean_resizing=False)
    with pytest.warns(UserWarning, match="resized after add_lora, and .* is not saved with the adapter"):
        save_adapter(model, tmp_path / "after")
    delete_adapter(model)
    add_lora(model, LoraConfig(r=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_adapter(model, tmp_path / "before")
