"""What no checkpoint held trains and travels, or is named."""

import copy
import warnings

import peft
import pytest
import torch
from torch import nn

from hf_tl import LoraConfig, add_lora, delete_adapter, load_adapter, save_adapter
from hf_tl.lora.adapted import base_modules, record_of
from hf_tl.lora.trained_modules import find_new


@pytest.fixture
def without_pooler(tmp_path):
    """A checkpoint of masked words: a classifier made from it has a new pooler beside its new head."""
    from peft_zoo import tiny_bert
    from transformers import BertForMaskedLM

    folder = tmp_path / "base"
    BertForMaskedLM(tiny_bert().config).save_pretrained(folder)

    def load(seed):
        from transformers import BertForSequenceClassification

        torch.manual_seed(seed)
        return BertForSequenceClassification.from_pretrained(folder, num_labels=3).eval()

    return load


def test_what_the_checkpoint_has_not_trains_and_travels(without_pooler, tmp_path):
    from peft_zoo import randomise, text

    model = add_lora(without_pooler(1), LoraConfig(r=2))
    trained = {name for name, p in model.named_parameters() if p.requires_grad and "lora" not in name}
    assert trained == {
        f"{module}.modules_to_save.default.{part}"
        for module in ("bert.pooler.dense", "classifier")
        for part in ("weight", "bias")
    }
    randomise(model)
    save_adapter(model, tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(without_pooler(2), tmp_path / "adapter").eval()
    ours = load_adapter(without_pooler(3), tmp_path / "adapter")
    for other in (theirs, ours):
        torch.testing.assert_close(other(**text()).logits, model(**text()).logits)


def test_what_is_new_and_stays_frozen_is_named(without_pooler):
    with pytest.warns(UserWarning, match=r"the checkpoint has no weights of bert\.pooler\.dense: .* modules_to_save"):
        add_lora(without_pooler(1), LoraConfig(r=2, modules_to_save=["classifier"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        add_lora(without_pooler(1), LoraConfig(r=2, modules_to_save=["classifier", "pooler"]))


def test_transformers_marks_what_it_loads(without_pooler):
    """The seam: where the mark is gone, nothing is known to be new."""
    model = without_pooler(1)
    assert find_new(model, base_modules(model)) == ["bert.pooler.dense", "classifier"]
    made = type(model)(model.config)
    assert find_new(made, base_modules(made)) == []


class Headed(nn.Module):
    """Names of which PEFT takes one for the other: it asks whether a name ends so, dot or no dot."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.head = nn.ModuleDict({"head": nn.Linear(4, 3), "other": nn.Linear(4, 3)})
        self.after = nn.Module()
        self.after.head, self.after.forehead = nn.LayerNorm(3), nn.Linear(3, 3)

    def forward(self, x):
        x = self.body(x)
        return self.after.forehead(self.after.head(self.head["head"](x) + self.head["other"](x)))


@pytest.mark.parametrize(
    ("wanted", "saved"),
    [
        (["head.head"], {"head.head"}),
        (["head.head", "head.other"], {"head.head", "head.other"}),
        (["after.head"], {"after.head"}),
        (["head"], {"head.head", "head.other", "after.head", "after.forehead"}),
    ],
)
def test_modules_to_save_are_those_that_peft_takes(wanted, saved, tmp_path):
    def base(seed):
        torch.manual_seed(0)
        model = Headed().eval()
        torch.manual_seed(seed)
        for name in saved:
            model.get_submodule(name).reset_parameters()
        return model

    settings = LoraConfig(r=2, target_modules=["body.0"], modules_to_save=wanted, init_lora_weights="random")
    model, x = add_lora(base(1), settings), torch.randn(2, 4)
    assert {*record_of(model).saved} == saved
    save_adapter(model, tmp_path)
    torch.testing.assert_close(peft.PeftModel.from_pretrained(base(2), tmp_path)(x), model(x))


def test_what_peft_takes_besides_is_saved_and_not_trained_or_named(tmp_path):
    def base():
        torch.manual_seed(0)
        return nn.ModuleDict({"classifier": nn.Linear(4, 2), "pre_classifier": nn.Linear(4, 4), "a": nn.Linear(4, 4)})

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            for name, module in base().items():
                self.add_module(name, module)

        def forward(self, x):
            return self.classifier(self.pre_classifier(self.a(x)))

    x = torch.randn(2, 4)
    model = add_lora(Model(), LoraConfig(r=2, target_modules=["a"], init_lora_weights="random"), example=x)
    assert record_of(model).saved["classifier"].trains == {"default": True}
    assert record_of(model).saved["pre_classifier"].trains == {"default": False}
    save_adapter(model, tmp_path)
    torch.testing.assert_close(peft.PeftModel.from_pretrained(Model(), tmp_path)(x), model(x))
    with pytest.warns(UserWarning, match="PEFT cannot load this adapter: by 'classifier' .* 'pre_classifier' as well"):
        add_lora(Model(), LoraConfig(r=2, target_modules=["pre_classifier"]), example=x)


def test_the_head_of_perceiver_lies_in_its_decoder():
    from transformers import PerceiverConfig, PerceiverForImageClassificationConvProcessing

    sizes = dict.fromkeys(("num_latents", "num_self_attends_per_block", "num_cross_attention_heads"), 1)
    config = PerceiverConfig(d_latents=8, num_self_attention_heads=1, num_labels=3, **sizes)
    with torch.device("meta"):
        model = add_lora(PerceiverForImageClassificationConvProcessing(config), LoraConfig(r=2))
    assert "perceiver.decoder.decoder.final_layer" in record_of(model).saved


def test_projections_between_two_towers_are_new_and_a_bare_scale_is_named(tmp_path):
    """The towers come from checkpoints of their own; the scale lies in no module but the network."""
    from transformers import BertConfig, BertModel, ViTConfig, ViTModel
    from transformers import VisionTextDualEncoderModel as Dual

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    BertModel(BertConfig(vocab_size=20, **sizes)).save_pretrained(tmp_path / "text")
    ViTModel(ViTConfig(image_size=8, patch_size=4, **sizes)).save_pretrained(tmp_path / "vision")
    model = Dual.from_vision_text_pretrained(str(tmp_path / "vision"), str(tmp_path / "text"))
    with pytest.warns(UserWarning, match="logit_scale belong to no module"):
        add_lora(model, LoraConfig(r=2))
    assert {*record_of(model).saved} == {"text_projection", "visual_projection"}


def test_a_new_row_that_only_the_tied_output_reads_travels_too(tmp_path):
    """Where the input embeddings train in full, the output goes on with the old ones, which have the new rows too."""
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=20, n_positions=8)).save_pretrained(tmp_path)

    def base(seed):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
        model.resize_token_embeddings(24, mean_resizing=False)
        return model

    x = torch.tensor([[1, 22, 23]])
    model = add_lora(base(1), LoraConfig(r=2, modules_to_save=["wte"]))
    save_adapter(model, tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(base(2), tmp_path / "adapter")
    for other in (load_adapter(base(3), tmp_path / "adapter"), theirs):
        torch.testing.assert_close(other(x).logits, model(x).logits)


class TwoHeads(nn.Module):
    """Both names are one module; or, where `module` is False, have one weight."""

    def __init__(self, *, module=True):
        super().__init__()
        self.body, self.first = nn.Linear(4, 4), nn.Linear(4, 2)
        self.second = self.first if module else nn.Linear(4, 2)
        self.second.weight = self.first.weight

    def forward(self, x):
        x = self.body(x)
        return self.first(x) + self.second(x).sin()


@pytest.mark.parametrize("saved", [["first"], ["first", "second"]])
def test_a_module_that_stands_twice_trains_in_both_places(saved, tmp_path):
    model, x = TwoHeads(), torch.randn(3, 4)
    base = copy.deepcopy(model)
    with pytest.warns(UserWarning, match="'second' is the same layer as 'first'"):
        add_lora(model, LoraConfig(r=2, target_modules=["body"], modules_to_save=saved), example=x)
    assert model.first is model.second
    with torch.no_grad():
        model.first.weight.add_(1)
    expected = model(x)
    save_adapter(model, tmp_path)
    torch.testing.assert_close(load_adapter(base, tmp_path)(x), expected)
    delete_adapter(model, merge=True)
    assert type(model.first) is nn.Linear
    assert model.first is model.second
    torch.testing.assert_close(model(x), expected)


def test_weights_that_are_no_longer_tied_are_named():
    x, config = torch.randn(3, 4), LoraConfig(r=2, target_modules=["body"], modules_to_save=["first"])
    with pytest.warns(UserWarning, match="'first.weight' is the same weight as 'second.weight'.*no longer tied"):
        add_lora(TwoHeads(module=False), config, example=x)


def test_a_head_whose_weight_is_computed_is_copied(tmp_path):
    """torch does not copy the weight that weight_norm leaves in the module."""

    def made():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 4), nn.utils.weight_norm(nn.Linear(4, 2)))

    with pytest.warns(FutureWarning, match="weight_norm"):
        model, base = made(), made()
    x = torch.randn(3, 4)
    add_lora(model, LoraConfig(r=2, target_modules=["0"], modules_to_save=["1"]), example=x)
    with torch.no_grad():
        model[1].current.weight_g.add_(1)
    expected = model(x)
    assert not torch.allclose(expected, base(x))
    expected.sum().backward()
    save_adapter(model, tmp_path)
    torch.testing.assert_close(load_adapter(base, tmp_path)(x), expected)
