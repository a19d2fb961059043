"""The comparison with PEFT is worth what it catches: each deliberate defect makes a check of it fail."""

import pytest
import test_parity as parity
import torch
from parity_rows import ROWS, make_pair, randomise

from hf_tl.lora.adapted import record_of
from hf_tl.lora.convolution import LoraConv
from hf_tl.lora.layer import LoraLayer


def pair_of(name):
    pair = make_pair(next(row for row in ROWS if row.name == name))
    randomise(pair)
    return pair


@pytest.mark.parametrize("row", ["mlp", "conv2d", "embedding", "attention", "bert dense", "mlp dora"])
def test_a_scale_one_percent_off_is_caught(row):
    pair = pair_of(row)
    parity.check_forward(pair)
    for layer in record_of(pair.ours).layers.values():
        layer.scaling["default"] *= 1.01
    with pytest.raises(AssertionError, match="forward"):
        parity.check_forward(pair)
    with pytest.raises(AssertionError):
        parity.check_gradients(pair)
    with pytest.raises(AssertionError, match="merged"):
        parity.check_merge(pair)


def test_an_adapter_name_left_in_the_keys_is_caught(monkeypatch):
    pair = pair_of("bert dense")
    right = LoraLayer.adapter_tensors

    def wrong(self, adapter, **options):
        yield from ((name.replace(".weight", f".{adapter}.weight"), t) for name, t in right(self, adapter, **options))

    monkeypatch.setattr(LoraLayer, "adapter_tensors", wrong)
    with pytest.raises(AssertionError):
        parity.check_keys_shapes_dtypes(pair)


def test_a_trainable_bias_of_the_base_is_caught():
    pair = pair_of("mlp")
    pair.ours.lin0.base_layer.bias.requires_grad_(True)
    with pytest.raises(AssertionError):
        parity.check_trainable(pair)
    with pytest.raises(AssertionError):
        parity.check_gradients(pair)


@pytest.mark.parametrize("row", ["conv1d", "conv2d", "conv3d", "conv2d stride dora"])
def test_a_dropped_merge_of_convolutions_is_caught(row, monkeypatch):
    pair = pair_of(row)
    monkeypatch.setattr(LoraConv, "add_to", lambda self, matrix, bias, adapter: None)
    with pytest.raises(AssertionError, match="merged"):
        parity.check_merge(pair)


def test_a_dropped_merge_of_embeddings_is_caught(monkeypatch):
    from hf_tl.lora.embedding_table import LoraEmbedding

    pair = pair_of("embedding")
    monkeypatch.setattr(LoraEmbedding, "add_to", lambda self, matrix, bias, adapter: None)
    with pytest.raises(AssertionError, match="merged"):
        parity.check_merge(pair)


def test_factors_swapped_between_layers_are_caught():
    pair = pair_of("bert")
    layers = list(record_of(pair.ours).layers.values())
    first, second = (layer.lora_A["default"].weight.data for layer in layers[:2])
    kept = first.clone()
    first.copy_(second)
    second.copy_(kept)
    with pytest.raises(AssertionError, match="forward"):
        parity.check_forward(pair)


def test_a_gradient_that_ignores_dropout_is_caught(monkeypatch):
    pair = pair_of("mlp dropout")
    parity.check_training_forward(pair)
    monkeypatch.setattr(torch, "native_dropout", lambda x, p, train: (x, torch.ones_like(x, dtype=torch.bool)))
    with pytest.raises(AssertionError):
        parity.check_gradients(pair)
