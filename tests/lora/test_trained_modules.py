"""What no checkpoint held trains and travels, or is named."""

import warnings

import peft
import pytest
import torch

from hf_tl import LoraConfig, add_lora, load_adapter, save_adapter
from hf_tl.lora.adapted import base_modules
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
