"""The language that names layers: what each term takes, and how wrong ones are answered."""

import pytest
import timm
import torch
from torch import nn
from zoo import ZOO

from hf_tl import InputError, list_layers, select_layers


class Blocks(nn.Module):
    """A stem, ten residual blocks, a norm and a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(Residual() for _ in range(10))
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn, self.mlp = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = x + self.attn(x)
        return x + self.mlp(x)


@pytest.fixture(scope="module")
def layers():
    return list_layers(Blocks(), example=torch.randn(2, 4))


@pytest.fixture(scope="module")
def clip():
    return list_layers(next(specimen for specimen in ZOO if specimen.name == "CLIPModel").model())


def numbers(chosen):
    return [layer.kind if layer.index is None else layer.index for layer in chosen]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ("all", ["stem", *range(10), "norm", "head"]),
        ("stem", ["stem"]),
        ("head, stem", ["stem", "head"]),
        ("3", [3]),
        ("-1", [9]),
        ("-10", [0]),
        ("2..5", [2, 3, 4]),
        ("..3", ["stem", 0, 1, 2]),
        ("-2..", [8, 9, "norm"]),
        ("..", ["stem", *range(10), "norm"]),
        ("0..100%", [*range(10)]),
        ("..50%", ["stem", 0, 1, 2, 3, 4]),
        ("25%..-5", [2, 3, 4]),
        ("..0", ["stem"]),
        ("10..", ["norm"]),
        ("..2, 1..3, 1", ["stem", 0, 1, 2]),
        ("blocks.[0-2]", [0, 1, 2]),
        ("blocks", [*range(10)]),
        ("nor?", ["norm"]),
        (r"/s\.[13]$/, head", [1, 3, "head"]),
        ("/blocks.{1,1}[12]/", [1, 2]),
        ("  7  ,8 ", [7, 8]),
    ],
)
def test_a_selection_takes(layers, selection, expected):
    assert numbers(select_layers(layers, selection)) == expected


@pytest.mark.parametrize("share", range(0, 101, 7))
def test_two_ranges_that_meet_part_the_network(layers, share):
    below, above = select_layers(layers, f"..{share}%"), select_layers(layers, f"{share}%.., head")
    assert below + above == list(layers)


def test_among_the_leaves_the_numbers_are_those_of_the_blocks():
    leaves = list_layers(Blocks(), level="leaf", example=torch.randn(2, 4))
    assert [leaf.name for leaf in select_layers(leaves, "stem, -1")] == ["stem", "blocks.9.attn", "blocks.9.mlp"]
    assert [leaf.name for leaf in select_layers(leaves, "blocks.[01].attn")] == ["blocks.0.attn", "blocks.1.attn"]
    assert numbers(select_layers(leaves, "..50%")) == ["stem", 0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_towers(clip):
    assert [layer.name for layer in select_layers(clip, "text_model.0, vision_model.-1")] == [
        "vision_model.encoder.layers.3",
        "text_model.encoder.layers.0",
    ]
    assert {layer.tower for layer in select_layers(clip, "text_model")} == {"text_model"}
    assert select_layers(clip, "text_model") == select_layers(clip, "text_model.all")
    chosen = select_layers(clip, "vision_model...50%, text_model.norm")
    assert numbers(chosen) == ["stem", 0, 1, "norm"]
    assert {layer.tower for layer in select_layers(clip, "head")} == {"vision_model", "text_model", ""}


def test_in_a_real_network_stages_have_names():
    layers = list_layers(timm.create_model("resnet18"), example=torch.randn(1, 3, 64, 64))
    assert [layer.name for layer in select_layers(layers, "layer[34]")] == [
        "layer3.0",
        "layer3.1",
        "layer4.0",
        "layer4.1",
    ]


@pytest.mark.parametrize(
    ("selection", "message", "position"),
    [
        ("12", r"there is no block 12: '12'; the blocks are 0 to 9, or -10 to -1 from the task", 0),
        ("stem, 4..11", "11 is no end of a range of 10 blocks: '4..11'; write -10 to 10, or a share like 50%", 6),
        ("..120%", r"120% is no share of the blocks: '..120%'; write 0% to 100%", 0),
        ("5..5", r"the range is empty: '5..5'; the blocks are 0 to 9, and the end is excluded", 0),
        ("heat", r"this names no layer: 'heat'; the closest are 'head'", 0),
        ("all, block.*", r"this names no layer: 'block.\*'; the closest are 'blocks", 5),
        ("/blocks[/", "a regular expression stands between two slashes", 0),
        ("/(/", "a regular expression stands between two slashes", 0),
        ("blocks.3.attn", r"'blocks.3.attn' is a part of the layer 'blocks.3': .* choose among the leaves", 0),
        ("", "a layer is missing; write all, stem, norm, head, a number, a range or a name", 0),
        ("stem,, head", "a layer is missing", 5),
        ("stem,", "a layer is missing", 5),
    ],
)
def test_a_wrong_term_is_pointed_at(layers, selection, message, position):
    with pytest.raises(InputError, match=message) as raised:
        select_layers(layers, selection)
    _, shown, pointer = str(raised.value).split("\n")
    assert shown[2:] == selection
    assert pointer.index("^") - 2 == position


def test_a_bare_number_is_ambiguous_among_towers(clip):
    for term in ("3", "..50%"):
        with pytest.raises(InputError, match=r"has 2 towers, say which one: .* write vision_model.* or text_model"):
            select_layers(clip, term)


def test_what_is_not_there():
    plain = list_layers(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), example=torch.randn(2, 4))
    with pytest.raises(InputError, match="there is no norm here: 'norm'"):
        select_layers(plain, "norm")


def test_a_selection_may_be_part_of_a_longer_text(layers):
    text = "freeze: stem, 20; tune: head"
    assert numbers(select_layers(layers, text, start=7, stop=12)) == ["stem"]
    with pytest.raises(InputError) as caught:
        select_layers(layers, text, start=7, stop=16)
    assert str(caught.value).splitlines()[1:] == [f"  {text}", "  " + " " * 14 + "^^"]


def test_a_share_is_rounded_down_to_a_block(layers):
    assert numbers(select_layers(layers, "..19%")) == ["stem", 0]
    assert numbers(select_layers(layers, "89%..99%")) == [8]


def test_a_name_is_taken_as_it_is_listed():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("a[0]", "a[1], b", "a?", "ab")})

        def forward(self, x):
            for part in self.parts.values():
                x = part(x).relu()
            return x

    listed = list_layers(Named(), "leaf")
    for layer in listed:
        assert select_layers(listed, layer.name) == [layer]
    assert len(select_layers(listed, ", ".join(layer.name for layer in listed))) == len(listed)
