"""The depth-ordered layers, and what counts as the classifier."""

import pytest
import timm
import torch
from torch import nn

from hf_tl import InputError, list_layers
from hf_tl.layers import head_names, match_names
from hf_tl.trace import trace


class Backwards(nn.Module):
    """Registers its layers in the opposite order of their use, and one that it never uses."""

    def __init__(self):
        super().__init__()
        self.top, self.unused, self.bottom = nn.Linear(3, 2), nn.Linear(3, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.top(self.bottom(x).relu())


def test_layers_come_in_execution_order_with_depth_from_0_to_1():
    layers = list_layers(Backwards(), torch.randn(2, 4))
    assert [layer.name for layer in layers] == ["bottom", "top"]
    assert [layer.depth for layer in layers] == [0.0, 1.0]
    assert [layer.n_parameters for layer in layers] == [15, 8]
    assert [layer.head for layer in layers] == [False, True]


def test_a_repeated_layer_is_listed_once_with_its_calls():
    layer = nn.Linear(4, 4)
    (only,) = list_layers(nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU()), torch.randn(2, 4))
    assert (only.calls, only.depth) == (2, 0.0)


def heads(model, example):
    return head_names(model, trace(model, example))


def test_timm_names_its_classifiers():
    images = torch.randn(2, 3, 224, 224)
    assert heads(timm.create_model("vgg11", num_classes=3), images[..., :32, :32]) == ("head.fc",)
    assert heads(timm.create_model("deit_tiny_distilled_patch16_224"), images) == ("head", "head_dist")


def test_in_transformers_the_head_is_what_stands_outside_the_base_model():
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    batch = {"input_ids": torch.ones(2, 4, dtype=torch.long)}
    assert heads(BertForSequenceClassification(config), batch) == ("dropout", "classifier")
    assert heads(BertModel(config), batch) == ()


def test_the_wrapper_of_transformers_keeps_timms_classifier():
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    model = TimmWrapperForImageClassification(TimmWrapperConfig(architecture="test_resnet", num_labels=3))
    assert heads(model, {"pixel_values": torch.randn(2, 3, 32, 32)}) == ("timm_model.fc",)


def test_elsewhere_the_head_is_the_layer_whose_output_is_returned():
    from torchvision.models import resnet18, vgg11

    assert heads(vgg11(weights=None), torch.randn(2, 3, 64, 64)) == ("classifier.6",)
    assert heads(resnet18(weights=None), torch.randn(2, 3, 64, 64)) == ("fc",)
    assert heads(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(2, 4)) == ()


def test_patterns_keep_the_order_of_the_network():
    names = ["stem", "blocks.0.conv", "blocks.1.conv", "fc"]
    assert match_names(["fc", "blocks.*"], names) == ["blocks.0.conv", "blocks.1.conv", "fc"]


def test_a_pattern_that_matches_nothing_shows_the_closest_names():
    with pytest.raises(
        InputError, match=r"'block.0.\*' matches none of the 2 layers; the closest are 'blocks.0.conv'"
    ):
        match_names(["block.0.*"], ["blocks.0.conv", "fc"])
