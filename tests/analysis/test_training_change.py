"""The change of a layer is that of its weights, whether they were trained or adapted."""

import copy

import numpy as np
import pytest
import torch
from peft_zoo import randomise, tiny_bert

from hf_tl import LoraConfig, add_lora, delete_adapter
from hf_tl.analysis.training_change import TrainingChange, measure_change
from hf_tl.embedding.embedding import Embedding, LayerColumns
from hf_tl.errors import InputError


def test_full_weights():
    before = tiny_bert()
    after = copy.deepcopy(before)
    with torch.no_grad():
        for parameter in after.bert.encoder.layer[1].parameters():
            parameter *= 1.1
    found = measure_change(before, after)
    changed = {name for name, value in zip(found.layers, found.relative, strict=True) if value > 0}
    assert changed == {"bert.encoder.layer.1"}
    assert found.relative[found.layers.index("bert.encoder.layer.1")] == pytest.approx(0.1, rel=1e-5)
    assert "the weights changed by 0.00% / " in str(found)
    assert "bert.encoder.layer.1" in found.table()


def test_adapters_count_as_what_they_add():
    before = tiny_bert()
    after = add_lora(copy.deepcopy(before), LoraConfig(r=2, target_modules=["query"]))
    randomise(after)
    names = list(dict(after.named_parameters()))
    found = measure_change(before, after)
    merged = delete_adapter(copy.deepcopy(after), merge=True)
    weight, other = (model.bert.encoder.layer[0].attention.self.query.weight for model in (before, merged))
    whole = sum(float(p.square().sum()) for p in before.bert.encoder.layer[0].parameters())
    expected = float((other - weight).norm()) / np.sqrt(whole)
    assert found.relative[found.layers.index("bert.encoder.layer.0")] == pytest.approx(expected, rel=1e-4)
    assert list(dict(after.named_parameters())) == names


def test_features_and_a_picture(tmp_path):
    model = tiny_bert()
    values = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    one = Embedding(values, (LayerColumns("a", 0, 3, 0.0), LayerColumns("b", 3, 6, 1.0)), np.arange(20))
    found = measure_change(model, model, features=[one, one])
    assert found.cka == pytest.approx([1, 1])
    assert "1 - CKA of 20 samples is 0.00 / - / 0.00" in str(found)
    assert found.plot(tmp_path / "change.png", title="change").stat().st_size > 1000


@pytest.mark.parametrize(
    ("relative", "said"),
    [
        ([0.01, 0.02, 0.03, 0.5], "diminishes towards the data (rank correlation with depth: weights +1.00)"),
        ([0.5, 0.03, 0.02, 0.01], "diminishes towards the task"),
        ([0.1, 0.3, 0.2, 0.1], "no clear trend with depth"),
        ([0.1, np.nan, 0.2, 0.1], "too few layers for a trend"),
    ],
)
def test_the_trend_with_depth_is_a_sentence(relative, said):
    found = TrainingChange(tuple("abcd"), np.linspace(0, 1, 4), np.array(relative))
    assert said in str(found)


def test_mistakes():
    with pytest.raises(InputError, match="no weight in common"):
        measure_change(torch.nn.Linear(2, 2), torch.nn.Linear(3, 3))
    with pytest.raises(InputError, match="two embeddings, got 1"):
        measure_change(tiny_bert(), tiny_bert(), features=[None])
