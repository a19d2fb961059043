"""PEFT and hf_tl on one adapter: what is compared, and what must not pass."""

import sys

import pytest
import torch
from peft_zoo import randomise, text, tiny_bert

from hf_tl.analysis.verify_adapter import verification_table, verify_adapter
from hf_tl.errors import InputError
from hf_tl.lora.config import LoraConfig
from hf_tl.lora.inject import add_lora
from hf_tl.lora.save import save_adapter


pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),  # peft 0.21 asks
]


def saved(folder, model, **settings):
    save_adapter(randomised(add_lora(model, LoraConfig(r=2, **settings))), folder)
    return folder


def randomised(model):
    randomise(model)
    return model


def test_outputs_gradients_and_merged_weights_are_compared(tmp_path):
    folder = saved(tmp_path, tiny_bert(), target_modules=["query"], modules_to_save=["classifier"])
    model = tiny_bert()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = verify_adapter(model, folder, text())
    assert [one.what for one in found] == ["logits", "gradients", "merged weights"]
    assert all(one.relative <= 1e-6 for one in found)
    assert "merged weights" in verification_table(found)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_value_that_is_nan_on_one_side_is_no_agreement(tmp_path):
    """A row of zeros under DoRA: PEFT divides 0 by 0, hf_tl keeps the row at 0."""

    def make():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
        with torch.no_grad():
            model[0].weight[1] = 0
        return model

    folder = tmp_path / "adapter"
    save_adapter(add_lora(make(), LoraConfig(r=2, target_modules=["0"], modules_to_save=(), use_dora=True)), folder)
    found = verify_adapter(make(), folder, torch.ones(1, 4))
    assert max(one.relative for one in found) == float("inf")


def test_an_adapter_that_peft_cannot_load_is_said_so(tmp_path, monkeypatch):
    folder = saved(tmp_path, tiny_bert(), target_modules=["query"])

    def fails(*arguments, **options):
        raise KeyError("no such thing")

    monkeypatch.setattr("peft.PeftModel.from_pretrained", fails)
    with pytest.raises(InputError, match=r"hf_tl loads .*, but peft does not: KeyError: 'no such thing'"):
        verify_adapter(tiny_bert(), folder, text())


def test_without_peft_it_is_said_what_to_install(tmp_path, monkeypatch):
    folder = saved(tmp_path, tiny_bert(), target_modules=["query"])
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"peft, which is not installed: pip install 'hf-tl\[peft\]'"):
        verify_adapter(tiny_bert(), folder, text())
