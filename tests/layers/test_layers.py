"""The depth-ordered layers, and what counts as the classifier."""

import pytest
import timm
import torch
import transformers
from torch import nn

from hf_tl import InputError, list_layers
from hf_tl.layers import head_names
from hf_tl.names import match_names
from hf_tl.trace import trace


class Backwards(nn.Module):
    """Registers its layers in the opposite order of their use, and one that it never uses."""

    def __init__(self):
        super().__init__()
        self.top, self.unused, self.bottom = nn.Linear(3, 2), nn.Linear(3, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.top(self.bottom(x).relu())


def test_layers_come_in_execution_order_with_depth_from_0_to_1():
    layers = list_layers(Backwards(), level="leaf", example=torch.randn(2, 4))
    assert [layer.name for layer in layers] == ["bottom", "top"]
    assert [layer.depth for layer in layers] == [0.0, 1.0]
    assert [layer.n_parameters for layer in layers] == [15, 8]
    assert [layer.kind for layer in layers] == ["stem", "head"]


def test_a_repeated_layer_is_listed_once_with_its_calls():
    layer = nn.Linear(4, 4)
    (only,) = list_layers(nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU()), level="leaf", example=torch.randn(2, 4))
    assert (only.calls, only.depth) == (2, 0.0)


def heads(model, example):
    return head_names(model, trace(model, example))


def test_timm_names_its_classifiers():
    images = torch.randn(2, 3, 32, 32)
    assert heads(timm.create_model("test_convnext", num_classes=3), images) == ("head.fc",)
    two = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, depth=1)
    assert heads(two, images) == ("head", "head_dist")


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
    from torchvision.models import mobilenet_v3_small, resnet18

    assert heads(mobilenet_v3_small(weights=None), torch.randn(2, 3, 64, 64)) == ("classifier.3",)
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


class Residual(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.a, self.b = nn.Linear(n, n), nn.Linear(n, n)

    def forward(self, x):
        return x + self.b(self.a(x).relu())


class Plain(nn.Module):
    """A stem, a bare scale, four residual blocks, an idle layer and a classifier."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.stem = nn.Linear(4, 3)
        self.blocks = nn.Sequential(*(Residual(3) for _ in range(4)))
        self.head = nn.Linear(3, 2)
        self.idle = nn.Linear(2, 2)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x) * self.scale))


def test_bare_parameters_and_modules_that_never_run_belong_to_the_stem():
    layers = list_layers(Plain())
    assert [(layer.name, layer.kind, layer.index) for layer in layers] == [
        ("stem", "stem", None),
        *((f"blocks.{i}", "block", i) for i in range(4)),
        ("head", "head", None),
    ]
    assert [name for name, _ in layers[0].modules] == ["stem", "idle"]
    assert layers[0].n_parameters == 15 + 6 + 3
    assert layers.detector == "dataflow"
    assert [layer.split_point for layer in layers] == [True] * 5 + [False]
    assert [layer.place for layer in layers] == ["stem", "0/4", "1/4", "2/4", "3/4", "head"]
    assert layers.n_parameters == sum(p.numel() for p in Plain().parameters())


def test_blocks_of_stages_between_which_the_network_reshapes_are_found():
    from transformers import PvtV2Config, PvtV2Model

    sizes = {"hidden_sizes": [8, 16, 24, 32], "depths": [2, 1, 1, 3], "num_attention_heads": [1, 2, 3, 4]}
    layers = list_layers(PvtV2Model(PvtV2Config(image_size=64, mlp_ratios=[2] * 4, **sizes)))
    blocks = [f"encoder.layers.{stage}.blocks.{i}" for stage, n in enumerate(sizes["depths"]) for i in range(n)]
    assert [layer.name for layer in layers if layer.kind == "block"] == blocks


def test_what_is_trainable_is_counted_when_it_is_asked_for():
    model = Plain()
    layers = list_layers(model)
    assert layers[1].n_trainable == layers[1].n_parameters == 24
    model.blocks[0].a.requires_grad_(False)
    assert layers[1].n_trainable == 12


def test_the_users_map_goes_first():
    layers = list_layers(Plain(), blocks=["blocks.1", "blocks.[23]"])
    assert layers.detector == "map"
    assert [layer.name for layer in layers if layer.kind == "block"] == ["blocks.1", "blocks.2", "blocks.3"]
    assert [name for name, _ in layers[0].modules] == ["stem", "blocks.0", "idle"]


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ("blocks.*", r"blocks should be a list of module names, got the string 'blocks.\*'"),
        ([], "blocks is empty; name at least one module"),
        (["block.0"], r"'block.0' matches none of the \d+ layers; the closest are 'blocks.0'"),
        (["idle"], "blocks names 'idle', which does not run on the example"),
        (["blocks", "blocks.0"], "blocks names both 'blocks' and 'blocks.0', one inside the other"),
        (["blocks.2", "blocks.1"], "in execution order, but 'blocks.1' runs before 'blocks.2'"),
    ],
)
def test_a_wrong_map_is_refused(blocks, message):
    with pytest.raises(InputError, match=message):
        list_layers(Plain(), blocks=blocks)


def test_a_wrong_level_or_example_is_refused():
    with pytest.raises(InputError, match="level should be 'block' or 'leaf', got 'stage'"):
        list_layers(Plain(), level="stage")
    with pytest.raises(InputError, match=r"Plain cannot run on the example, \(2, 5\): .*example=") as error:
        list_layers(Plain(), example=torch.randn(2, 5))
    assert "\n" not in str(error.value)


def test_a_network_whose_forward_fails_is_left_as_it_was():
    model = Plain().train()
    with pytest.raises(InputError):
        list_layers(model, example=torch.randn(2, 5))
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_tied_weights_are_reported_and_counted_once():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 3), nn.Linear(3, 5, bias=False))
    model[2].weight = model[0].weight
    layers = list_layers(model)
    assert layers.tied == (("0.weight", "2.weight"),)
    assert [layer.n_parameters for layer in layers] == [15 + 12, 0]


def test_a_plain_stack_has_its_layers_as_blocks():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2))
    layers = list_layers(model)
    assert [(layer.name, layer.kind) for layer in layers] == [("stem", "stem"), ("2", "block"), ("head", "head")]
    assert layers.detector == "leaves"


def test_leaves_know_the_block_they_are_in():
    leaves = list_layers(Plain(), level="leaf")
    assert [leaf.index for leaf in leaves] == [None, None, 0, 0, 1, 1, 2, 2, 3, 3, None]
    assert [leaf.name for leaf in leaves][:3] == ["(bare)", "stem", "blocks.0.a"]  # the scale is the network's own


def test_the_meta_device_is_read_without_memory():
    with torch.device("meta"):
        model = Plain()
    layers = list_layers(model)
    assert len(layers) == 6
    assert layers.tied == ()


def test_a_picture_is_drawn(tmp_path):
    layers = list_layers(Plain())
    for name in ("layers.png", "layers.svg"):
        layers.plot(tmp_path / name, title="plain", frozen=layers[:3])
        assert (tmp_path / name).stat().st_size > 5000
    assert "frozen" in (tmp_path / "layers.svg").read_text()
    with pytest.raises(InputError, match=r"should be a .png, .svg or .pdf file, got 'layers.gif'"):
        layers.plot("layers.gif", title="plain")


def test_a_compiled_network_is_listed_as_the_network_itself():
    plain = Plain()
    expected = [layer.name for layer in list_layers(plain)]
    assert [layer.name for layer in list_layers(torch.compile(plain, backend="eager"))] == expected
    plain.compile(backend="eager")
    assert [layer.name for layer in list_layers(plain)] == expected


def test_stages_that_transformers_marks_for_checkpointing_are_no_blocks():
    sizes = {"focal_levels": [1] * 4, "focal_windows": [3] * 4}
    config = transformers.FocalNetConfig(
        image_size=32, embed_dim=8, hidden_sizes=[8, 16, 32, 64], depths=[1, 2, 3, 1], **sizes
    )
    layers = list_layers(transformers.FocalNetForImageClassification(config))
    names = [f"focalnet.encoder.stages.{i}.layers.{j}" for i, depth in enumerate((1, 2, 3, 1)) for j in range(depth)]
    assert [layer.name for layer in layers if layer.kind == "block"] == names


def test_empty_parameters_are_not_tied():
    model = Plain()
    empty = torch.empty(0)
    model.first, model.second = nn.Parameter(empty), nn.Parameter(empty)
    assert list_layers(model).tied == ()
