"""What a LoraConfig may hold."""

import pickle

import pytest

from hf_tl import InputError, LoraConfig


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"r": 0}, "r should be a whole number of at least 1 \\(delete_adapter drops an adapter\\), got 0"),
        ({"rank_pattern": {"x": 1.5}}, "patterns with whole numbers from 1 or None, got {'x': 1.5}"),
        ({"target_parameters": "w1"}, "target_parameters should be a list of module names or None, got 'w1'"),
        ({"lora_aplha": 8}, "no field 'lora_aplha'; the closest are 'lora_alpha'"),
        ({"lora_alpha": float("nan")}, "lora_alpha should be a finite number, got nan"),
        ({"lora_dropout": 1.0}, "probability below 1, got 1.0"),
        ({"bias": "some"}, "one of none, all, lora_only, got 'some'"),
        ({"init_lora_weights": "gausian"}, "unknown init_lora_weights 'gausian'; the closest are 'gaussian'"),
        ({"target_modules": "(", "r": 2}, "is not a regular expression"),
        ({"modules_to_save": "head"}, "modules_to_save should be a list of module names or None, got 'head'"),
        ({"target_modules": "all-linear", "layers_to_transform": [0]}, "needs target_modules as a list"),
        ({"layers": [0, 1]}, r"layers should be a selection such as '50%..' or '0, 3' or None, got \[0, 1\]"),
        ({"target_modules": ["q"], "layers": "0", "layers_to_transform": 0}, "both choose blocks; leave one out"),
        ({"layers_pattern": "h"}, "layers_pattern='h' needs layers_to_transform"),
        ({"layers_pattern": ["h", "h["], "layers_to_transform": 0}, "'h\\[' is not a regular expression"),
        ({"fused_parts": "qx"}, "letters of 'qkv'"),
    ],
)
def test_a_config_is_checked_when_it_is_made(config, message):
    with pytest.raises(InputError, match=message):
        LoraConfig(**config)


def test_inits_by_peft_s_flags():
    assert [LoraConfig(init_lora_weights=given).init for given in (True, False, "pissa")] == [
        "kaiming",
        "random",
        "pissa",
    ]


def test_a_config_can_be_pickled():
    config = LoraConfig(r=4, rank_pattern={"query": 2}, target_modules=["query"])
    assert pickle.loads(pickle.dumps(config)) == config
