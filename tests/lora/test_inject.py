"""What add_lora puts where, and what it says of what cannot act or would be lost."""

import copy
import pickle
import subprocess
import sys
import warnings

import peft
import pytest
import torch
import transformers
from torch import nn

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
from hf_tl.lora.adapted import record_of
from hf_tl.lora.linear import LoraLinear


SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def bert(kind=transformers.BertForSequenceClassification):
    torch.manual_seed(0)
    return kind(transformers.BertConfig(vocab_size=32, max_position_embeddings=32, **SIZES))


def trained_in_full(model):
    return sorted(record_of(model).saved)


class Reader(nn.Module):
    """Reads the weight of `hidden` by itself, as BEiT does, calls `out`, and drops what `spare` returns."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out, self.spare = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x):
        self.spare(x)
        return self.out(nn.functional.linear(x, self.hidden.weight))


@pytest.mark.parametrize("dora", [False, True])
def test_a_layer_whose_weight_is_read_acts_and_is_named(dora, tmp_path):
    model, x = Reader(), torch.randn(3, 4)
    with pytest.warns(UserWarning, match=r"reads the weights of 1 adapted layers .* PEFT leaves them out .*: hidden$"):
        add_lora(model, LoraConfig(r=2, target_modules=["hidden", "out"], init_lora_weights="random", use_dora=dora))
    model(x).sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if p.requires_grad)
    expected = model(x)
    save_adapter(model, tmp_path)
    base = delete_adapter(copy.deepcopy(model))
    assert torch.allclose(load_adapter(base, tmp_path)(x), expected)
    merge_adapter(model)
    assert torch.allclose(model(x), expected, atol=1e-6)


class ReaderInTraining(nn.Module):
    """Calls its layer, but clamps the weight in training, as Gemma3n does."""

    def __init__(self):
        super().__init__()
        self.coefs = nn.Linear(4, 4, bias=False)

    def forward(self, x):
        return nn.functional.linear(x, self.coefs.weight.clamp(-9, 9)) if self.training else self.coefs(x)


def test_a_layer_whose_weight_is_read_in_training_only_acts_there_too():
    model, x = ReaderInTraining(), torch.randn(3, 4)
    add_lora(model, LoraConfig(r=2, target_modules=["coefs"], init_lora_weights="random"))
    trained, called = model.train()(x), model.eval()(x)
    assert torch.allclose(trained, called, atol=1e-6)
    trained.sum().backward()
    assert all(parameter.grad is not None for parameter in model.coefs.lora_A.parameters())


def test_a_layer_that_the_output_does_not_depend_on_is_named():
    with pytest.warns(UserWarning, match=r"does not depend on 1 of 2 adapted layers.*: spare$"):
        add_lora(Reader(), LoraConfig(r=2, target_modules=["spare", "out"]))
    model = Reader()
    names = list(model.state_dict())
    with pytest.raises(InputError, match=r"none of the 1 layers to be adapted, such as 'spare'.*choose others"):
        add_lora(model, LoraConfig(r=2, target_modules=["spare"]))
    assert list(model.state_dict()) == names
    assert all(p.requires_grad for p in model.parameters())


class Strided(nn.Module):
    """Pads by the stride of its convolution, as MobileNet does in transformers."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(2, 3, 3, stride=2)

    def forward(self, x):
        return self.conv(nn.functional.pad(x, (0, self.conv.stride[0] - 1)))


class Twice(nn.Module):
    """Has one layer under several names."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.again = self.first
        self.blocks = nn.ModuleList([nn.Linear(4, 4)] * 2)
        self.out = nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.blocks[1](self.blocks[0](self.again(self.first(x)))))


def test_a_layer_that_stands_twice_has_its_adapter_twice(tmp_path):
    model, x = Twice(), torch.randn(3, 4)
    base, plain = copy.deepcopy(model), model(x)
    with pytest.warns(UserWarning, match=r"'again' is the same layer as 'first' \(2 such\)"):
        add_lora(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights="random"), example=x)
    assert [*record_of(model).layers] == ["first", "blocks.0"]
    assert model.first is model.again
    expected = model(x)
    save_adapter(model, tmp_path)
    torch.testing.assert_close(load_adapter(base, tmp_path)(x), expected)
    merge_adapter(model)
    torch.testing.assert_close(model.eval()(x), expected)
    unmerge_adapter(model)
    add_lora(model, LoraConfig(r=2, target_modules=["again"], modules_to_save=[]), adapter_name="other")
    assert [*record_of(model).layers] == ["first", "blocks.0"]
    delete_adapter(model)
    assert type(model.first) is nn.Linear
    assert model.again is model.first
    assert model.blocks[0] is model.blocks[1]
    torch.testing.assert_close(model(x), plain)


def test_what_the_network_reads_of_a_layer_and_peft_s_has_not_is_named():
    with pytest.warns(UserWarning, match="reads stride of 1 adapted layers.* PEFT cannot run this adapter.* conv$"):
        add_lora(Strided(), LoraConfig(r=2, target_modules=["conv"], modules_to_save=[]), example=torch.randn(1, 2, 9))


@pytest.mark.parametrize("settings", [{"dilation": 2}, {"padding": 1, "padding_mode": "circular"}])
def test_a_convolution_that_peft_makes_otherwise_is_named(settings):
    model = nn.Sequential(nn.Conv1d(2, 3, 3, **settings), nn.Conv1d(3, 2, 1))
    with pytest.warns(UserWarning, match="PEFT cannot run this adapter until it is merged.*: 0$"):
        add_lora(model, LoraConfig(r=2, target_modules=["0"]), example=torch.randn(1, 2, 9))


def test_targets_that_all_train_in_full_are_named():
    with pytest.raises(InputError, match=r"chooses only modules that train in full \(conv\); .* modules_to_save"):
        add_lora(Strided(), LoraConfig(r=2, target_modules=["conv"]), example=torch.randn(1, 2, 9))


def test_one_line_says_what_was_done(caplog):
    add_lora(bert(), LoraConfig(r=2))
    said = "adapter 'default': 4 layers (query, value) in bert.encoder.layer.0-1; in full: classifier; "
    assert said in caplog.text
    assert caplog.records[-1].message.count("\n") == 0


class OfTwo(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, 2)

    def forward(self, x, y):
        return self.out(x + y)


def test_what_cannot_be_looked_at_is_said(caplog):
    sizes = {"hidden_size": 16, "ffn_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32}
    config = transformers.MusicgenDecoderConfig(**sizes, num_codebooks=2)  # two rows a sample
    with pytest.warns(UserWarning, match=r"does not depend on 2 of 4 adapted layers.*encoder_attn"):
        add_lora(transformers.MusicgenForCausalLM(config), LoraConfig(r=2))
    assert "no dummy input" not in caplog.text
    add_lora(OfTwo(), LoraConfig(r=2, target_modules=["out"], modules_to_save=()))
    assert "the network runs on no dummy input" in caplog.text
    model = Reader()
    names = list(model.state_dict())
    with pytest.raises(InputError, match=r"does not run on example=\.\.\.: RuntimeError"):
        add_lora(model, LoraConfig(r=2, target_modules=["out"], modules_to_save=()), example=torch.ones(1, 3))
    assert list(model.state_dict()) == names


@pytest.mark.slow
def test_the_line_is_shown_where_logging_is_not_set_up():
    code = (
        "import hf_tl; from torch import nn; "
        "hf_tl.add_lora(nn.Sequential(nn.Linear(2, 2)), hf_tl.LoraConfig(r=1, target_modules=['0']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.count("adapter 'default': 1 layers (0) in 0; in full: nothing; 4 of 10 parameters") == 1


class Around(nn.Module):
    """A backbone that was trained before, and a head of one's own."""

    def __init__(self):
        super().__init__()
        self.backbone = bert(transformers.BertModel)
        self.norm, self.heads = nn.LayerNorm(16), nn.ModuleList([nn.Linear(16, 3)])
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, input_ids):
        state = self.backbone(input_ids=input_ids).last_hidden_state[:, 0]
        return self.heads[0](self.norm(state)) * self.temperature


def test_what_stands_around_a_backbone_trains_and_travels(tmp_path):
    model, ids = Around().eval(), torch.randint(3, 31, (2, 7))
    with pytest.warns(UserWarning, match=r"temperature belong to no module"):
        add_lora(model, LoraConfig(r=2))
    assert trained_in_full(model) == ["heads.0", "norm"]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    save_adapter(model, tmp_path)
    other = Around().eval()
    with torch.no_grad():
        other.heads[0].weight.zero_()
    assert torch.allclose(load_adapter(other, tmp_path)(ids), model(ids), atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": ["query", "valeu"]}, "'valeu' in target_modules matches nothing.*'value'"),
        ({"target_modules": ["query"], "exclude_modules": ["poler"]}, "'poler' in exclude_modules"),
        ({"target_modules": ["query"], "rank_pattern": {"^query": 4}}, "'\\^query' in rank_pattern"),
        ({"target_modules": ["query"], "alpha_pattern": {"key": 4}}, "'key' in alpha_pattern"),
        ({"target_modules": ["query"], "layers_to_transform": [0, 12]}, "'12' in layers_to_transform"),
        (
            {"target_modules": ["query"], "layers_to_transform": [0], "layers_pattern": ["layer", "blok"]},
            "'blok' in layers_pattern",
        ),
    ],
    ids=str,
)
def test_a_word_that_matches_nothing_is_named(settings, message):
    with pytest.warns(UserWarning, match=message):
        add_lora(bert(), LoraConfig(r=2, **settings))


def test_words_that_all_match_go_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        add_lora(bert(), LoraConfig(r=2, target_modules=["query"], rank_pattern={"0.attention.self.query": 4}))
        add_lora(bert(), LoraConfig(r=2, target_modules="all-linear"))


def test_the_head_of_a_network_that_is_its_own_base():
    vision = {"image_size": 32, "patch_size": 8, **SIZES}
    text = {"vocab_size": 99, "max_position_embeddings": 20, **SIZES}
    clip = transformers.CLIPConfig(text_config=text, vision_config=vision, num_labels=3)
    model = add_lora(transformers.CLIPForImageClassification(clip), LoraConfig(r=2))
    assert trained_in_full(model) == ["classifier"]
    assert trained_in_full(add_lora(bert(transformers.BertModel), LoraConfig(r=2))) == []


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT reads it
def test_what_the_checkpoint_did_not_hold_trains_and_travels(tmp_path):
    bert(transformers.BertForMaskedLM).save_pretrained(tmp_path / "base")

    def load(seed):
        torch.manual_seed(seed)
        return transformers.BertForSequenceClassification.from_pretrained(tmp_path / "base").eval()

    model = add_lora(load(1), LoraConfig(r=2))
    assert trained_in_full(model) == ["bert.pooler.dense", "classifier"]
    save_adapter(model, tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(load(2), tmp_path / "adapter").eval()
    ids = torch.arange(3, 10)[None]
    assert torch.allclose(again(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-6)
    with pytest.warns(UserWarning, match="no weights of bert.pooler.dense: what was drawn for them stays frozen"):
        add_lora(load(1), LoraConfig(r=2, modules_to_save=["classifier"]))


@pytest.mark.parametrize("name", ["train", "type", "keys", "forward"])
def test_names_that_torch_takes_for_itself(name):
    model = bert()
    names = list(model.state_dict())
    with pytest.raises(InputError, match=f"be called '{name}'; choose another name"):
        add_lora(model, LoraConfig(r=2), adapter_name=name)
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"init_lora_weights": "pissa"}], ids=str)
def test_codes_are_not_taken_for_weights(settings):
    class Codes(nn.Linear):
        def __init__(self):
            super().__init__(8, 8)
            self.weight = nn.Parameter(torch.ones(8, 8, dtype=torch.int8), requires_grad=False)

    class Halved(nn.Linear):
        def forward(self, x):
            return super().forward(x) / 2

    for layer, message in ((Codes(), "stored as torch.int8"), (Halved(8, 8), "computes something else")):
        with pytest.raises(InputError, match=message):
            add_lora(nn.Sequential(layer), LoraConfig(r=2, target_modules=["0"], **settings))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_trains_is_kept_in_float32(dtype):
    model = add_lora(bert().to(dtype), LoraConfig(r=2))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert model(input_ids=torch.arange(3, 10)[None]).logits.dtype == dtype
    assert {p.dtype for p in delete_adapter(model, merge=True).parameters()} == {dtype}


def test_a_state_dict_is_the_same_merged_or_not():
    model = add_lora(nn.Sequential(nn.Linear(4, 4)), LoraConfig(r=2, target_modules=["0"], init_lora_weights="random"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    merge_adapter(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(InputError, match="call unmerge_adapter before load_state_dict"):
        model.load_state_dict(before)
    with pytest.warns(UserWarning, match="merged into the weights and do not train"):
        model.train()(torch.ones(1, 4))


def test_a_network_with_an_adapter_can_be_pickled():
    model = add_lora(bert().eval(), LoraConfig(r=2))
    again, ids = pickle.loads(pickle.dumps(model)), torch.arange(3, 10)[None]
    assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", ["vit", "bert"])
def test_reentrant_checkpoints_switched_on_afterwards(kind):
    if kind == "vit":
        config = transformers.ViTConfig(image_size=16, patch_size=8, **SIZES)
        model, batch = transformers.ViTForImageClassification(config), {"pixel_values": torch.randn(2, 3, 16, 16)}
    else:
        model, batch = bert(), {"input_ids": torch.arange(3, 10)[None]}
    add_lora(model.train(), LoraConfig(r=2))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model(**batch).logits.sum().backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


class OwnForward(nn.Linear):
    """Returns two things."""

    def forward(self, x):
        return super().forward(x), None


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.out = OwnForward(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.first(x)[0])


class Particular(nn.Module):
    """Looks which class its layer has."""

    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        if not isinstance(self.first, nn.Linear):
            raise TypeError(f"a {type(self.first).__name__} came")
        return self.out(self.first(x))


@pytest.mark.parametrize(("kind", "message"), [(Pair, "'tuple' object"), (Particular, "a LoraLinear came")])
def test_a_network_that_runs_without_the_adapter_only_is_told_from_a_bad_batch(kind, message):
    model, x = kind(), torch.randn(3, 4)
    plain = model(x)
    with pytest.raises(InputError, match=f"does not run with this adapter, as it does without: .*{message}"):
        add_lora(model, LoraConfig(r=2, target_modules=["first"]), example=x)
    assert type(model.first) is not LoraLinear
    assert torch.equal(model(x), plain)


def test_the_layer_and_its_weight_are_not_both_adapted():
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.randn(3, 4)
    whole = {"target_modules": ["0"], "modules_to_save": ()}
    weight = {"target_modules": ["1"], "target_parameters": ["0.weight"], "modules_to_save": ()}
    with pytest.raises(InputError, match=r"'0\.weight' is to be adapted as a parameter, and the layer"):
        add_lora(model, LoraConfig(r=2, **{**weight, "target_modules": ["0"]}), example=x)
    add_lora(model, LoraConfig(r=2, **whole), example=x)
    with pytest.raises(InputError, match=r"'0\.weight' is to be adapted as a parameter, and the layer"):
        add_lora(model, LoraConfig(r=2, **weight), adapter_name="second", example=x)
    delete_adapter(model)
    add_lora(model, LoraConfig(r=2, **weight), example=x)
    with pytest.raises(InputError, match=r"'0\.weight' is to be adapted as a parameter, and the layer"):
        add_lora(model, LoraConfig(r=2, **whole), adapter_name="second", example=x)


def test_adapters_of_peft_are_not_taken_for_the_network():
    model = peft.get_peft_model(nn.Sequential(nn.Linear(4, 4)), peft.LoraConfig(r=2, target_modules=["0"]))
    with pytest.raises(InputError, match="'the network' is a PeftModel of PEFT"):
        add_lora(model, LoraConfig(r=2, target_modules=["0"]))
    with pytest.raises(InputError, match="'0' is a Linear of PEFT"):
        add_lora(model.base_model.model, LoraConfig(r=2, target_modules=["0"]))


def test_a_second_adapter_finds_the_head_beside_the_copy_of_the_first():
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(3, 4)
    for name in ("first", "second"):
        add_lora(model, LoraConfig(r=2, target_modules=["0"]), adapter_name=name, example=x)
        assert record_of(model).configs[name].modules_to_save == ("2",)


def test_a_network_without_values_is_looked_at_too(caplog):
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        add_lora(model, LoraConfig(r=2, target_modules=["0"]), example=torch.randn(3, 4))
        assert model(torch.randn(3, 4)).shape == (3, 2)


class Tied(nn.Module):
    """Its output embeddings are the input's, which it reads; `shape` is all that it reads of another weight."""

    def __init__(self):
        super().__init__()
        self.words, self.body = nn.Embedding(9, 4), nn.Linear(4, 4)

    def forward(self, ids):
        return self.body(self.words(ids)).view(-1, self.body.weight.shape[0]) @ self.words.weight.t()


def test_a_layer_that_is_called_and_read_is_named():
    ids, settings = torch.tensor([[1, 3]]), {"r": 2, "modules_to_save": ()}
    with pytest.warns(UserWarning, match="calls 1 adapted layers and reads their weights besides.*merged: words"):
        model = add_lora(Tied(), LoraConfig(**settings, target_modules=["words", "body"]), example=ids)
    assert model.words.probe is None
    assert not model.eval().words.weight.requires_grad
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        add_lora(Tied(), LoraConfig(**settings, target_modules=["body"]), example=ids)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": ["quary"]}, r"\['quary'\] chooses none of the \d+ modules; the closest are 'query'"),
        ({"modules_to_save": ["bert"]}, r"chooses only modules that train in full \(bert\)"),
        ({"modules_to_save": [""]}, "modules_to_save names '', which is no module"),
        ({"modules_to_save": ["clasifier"]}, "which is no module; the closest are 'classifier'"),
    ],
    ids=str,
)
def test_what_leaves_nothing_to_adapt_is_named(settings, message):
    with pytest.raises(InputError, match=message):
        add_lora(bert(), LoraConfig(r=2, **settings))
