"""Which modules are adapted, what is found by itself, and what is said when nothing fits."""

import copy
import json
import re
import warnings

import peft
import pytest
import torch
import transformers
from lanes import lanes
from parity_rows import NETWORKS, exported, live_names
from torch import nn

from hf_tl import (
    InputError,
    LoraConfig,
    add_lora,
    delete_adapter,
    list_layers,
    load_adapter,
    save_adapter,
    select_layers,
)
from hf_tl.lora.adapted import adapter_state_dict, base_modules, record_of
from hf_tl.lora.adapter_plan import plan_adapter
from hf_tl.lora.targets import default_targets
from hf_tl.lora.trained_modules import find_head
from hf_tl.names import exact_names
from hf_tl.trace import first_float, forward


def adapted(model, **config):
    return record_of(add_lora(copy.deepcopy(model), LoraConfig(**config)))


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "deberta-v2", "t5", "gpt2", "llama", "opt", "mpt"])
def test_default_targets_of_text_models_are_peft_s(kind):
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as TABLE
    from transformers import AutoConfig, AutoModel

    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model(kind))
    names = default_targets(base_modules(model))
    assert {name.rpartition(".")[2] for name in names} == set(TABLE[kind])


VISION = ("vit", "dinov2", "swin", "deit", "clip_vision_model", "beit", "convnext", "resnet")


@pytest.mark.parametrize("kind", lanes(VISION, fast=lambda kind: kind in ("deit", "resnet")))
def test_vision_models_have_default_targets(kind):
    from transformers import AutoConfig, AutoModel

    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model(kind))
    names = default_targets(base_modules(model))
    assert len(names) >= 12
    add_lora(model, LoraConfig(r=4))
    assert set(names) <= set(record_of(model).layers)


OF_TIMM = ("resnet18", "vit_tiny_patch16_224", "convnext_atto", "mobilenetv2_100", "mixer_s16_224")


@pytest.mark.parametrize("name", lanes(OF_TIMM, fast=lambda name: name in OF_TIMM[:2]))
def test_timm_models_need_no_names(name):
    import timm

    model = timm.create_model(name, num_classes=3)
    record = record_of(add_lora(model, LoraConfig(r=4)))
    classifier = next(n for n, m in base_modules(model).items() if isinstance(m, nn.Linear) and m.out_features == 3)
    assert classifier not in record.layers
    assert any(
        classifier == head or classifier.startswith(f"{head}.") for head in record.configs["default"].modules_to_save
    )


@pytest.mark.parametrize(
    ("name", "head"),
    [("bert", ["classifier"]), ("vit", ["classifier"]), ("resnet", ["classifier"]), ("timm-vit", ["head"])],
)
def test_the_head_is_found_trained_and_saved(name, head):
    model, _ = NETWORKS[name]()
    modules = base_modules(model)
    assert find_head(model, modules) == head
    ours = add_lora(copy.deepcopy(model), LoraConfig(r=2))
    assert set(head) <= set(record_of(ours).configs["default"].modules_to_save)
    trains = {n for n, p in live_names(ours).items() if p.requires_grad and "lora_" not in n}
    assert trains
    assert all(n.startswith(tuple(head)) for n in trains)
    assert any(key.startswith(f"base_model.model.{head[0]}") for key in adapter_state_dict(ours))


def test_language_models_keep_their_words():
    for name in ("gpt2", "llama", "t5"):
        model, _ = NETWORKS[name]()
        assert find_head(model, base_modules(model)) == []
        assert "lm_head" not in adapted(model, target_modules="all-linear").layers


def test_the_head_of_a_network_of_ones_own_is_traced():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    ours = add_lora(copy.deepcopy(model), LoraConfig(r=2, target_modules="all-linear"), example=torch.zeros(1, 4))
    assert record_of(ours).configs["default"].modules_to_save == ("4",)
    assert sorted(record_of(ours).layers) == ["0", "2"]
    silent = add_lora(copy.deepcopy(model), LoraConfig(r=2, target_modules="all-linear"))
    assert record_of(silent).configs["default"].modules_to_save is None


def test_all_linear_spares_the_head_and_what_torch_never_calls():
    model, _ = NETWORKS["timm-vit"]()
    record = adapted(model, target_modules="all-linear")
    assert "head" not in record.layers
    assert {name.rpartition(".")[2] for name in record.layers} == {"qkv", "proj", "fc1", "fc2"}
    attention, batch = NETWORKS["attention"]()
    ours = add_lora(copy.deepcopy(attention), LoraConfig(r=2, target_modules="all-linear"), example=batch)
    assert sorted(record_of(ours).layers) == ["attention", "attention.base_layer.out_proj"]


def test_blocks_by_index_at_the_top_of_the_network():
    model, _ = NETWORKS["timm-vit"]()
    record = adapted(model, target_modules=["qkv"], layers_to_transform=[1])
    assert list(record.layers) == ["blocks.1.attn.qkv"]
    assert record.configs["default"].target_modules == ["blocks.1.attn.qkv"]
    assert record.configs["default"].layers_to_transform is None


def test_names_that_end_alike_are_told_apart():
    modules = {"": None, "0": None, "deep": None, "deep.0": None, "deep.1": None}
    assert exact_names(["deep.0", "deep.1"], modules) == ["deep.0", "deep.1"]
    pattern = exact_names(["0"], modules)
    assert [name for name in modules if re.fullmatch(pattern, name)] == ["0"]


@pytest.mark.parametrize("statistics", ["save", "freeze", "ignore"])
def test_running_statistics(statistics):
    model, batch = NETWORKS["norm"]()
    ours = add_lora(
        copy.deepcopy(model),
        LoraConfig(r=4, target_modules=["conv0", "conv1"], modules_to_save=["fc"]),
        running_statistics=statistics,
    )
    trains = {name for name, p in live_names(ours).items() if p.requires_grad and "lora_" not in name}
    assert trains == {"fc.modules_to_save.default.weight", "fc.modules_to_save.default.bias"}
    before = model.bn0.running_mean.clone()
    ours.train()(batch)
    moved = not torch.equal(ours.bn0.running_mean, before)
    assert moved == (statistics != "freeze")
    key = "base_model.model.bn0.running_mean"
    state = adapter_state_dict(ours)
    assert (key in state) == (statistics == "save")
    if statistics == "save":
        assert torch.equal(state[key], ours.bn0.running_mean)
        delete_adapter(ours)
        assert torch.equal(ours.bn0.running_mean, before)


def test_peft_reads_what_was_found_by_itself(tmp_path):
    """The head and the statistics, found by hf_tl, in a config and tensors that PEFT understands."""
    model, batch = NETWORKS["resnet"]()
    ours = add_lora(copy.deepcopy(model), LoraConfig(r=4))
    ours.train()
    for _ in range(3):
        first_float(forward(ours, batch))
    config, tensors = exported(ours)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(copy.deepcopy(model), config)
        result = peft.set_peft_model_state_dict(theirs, tensors)
    assert not result.unexpected_keys
    expected = first_float(forward(ours.eval(), batch))
    assert torch.equal(first_float(forward(theirs.eval(), batch)), expected)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"target_modules": ["lin9"]}, r"\['lin9'\] chooses none of the 4 modules; the closest are 'lin"),
        ({"target_modules": ["norm"]}, "chooses 'norm', a LayerNorm, but adapters are made for nn.Linear"),
        ({"target_modules": ["lin0"], "modules_to_save": ["haed"]}, "names 'haed', which is no module.*'head'"),
        ({"target_modules": ["lin0"], "fused_parts": "qv"}, r"chooses 'lin0' \(20 x 10\)"),
        ({"target_modules": ["lin0"], "init_lora_weights": "pissa", "r": 11}, "finds 10 directions"),
        ({"target_modules": ["lin0"], "init_lora_weights": "orthogonal", "r": 3}, "must be even; got 3"),
    ],
)
def test_a_refusal_leaves_the_network_as_it_was(config, message):
    model, batch = NETWORKS["mlp"]()
    before, names = model(batch), list(model.state_dict())
    with pytest.raises(InputError, match=message):
        add_lora(model, LoraConfig(**config))
    assert torch.equal(model(batch), before)
    assert list(model.state_dict()) == names
    assert all(p.requires_grad for p in model.parameters())


def test_two_adapters_of_one_name_and_none_at_all():
    model, _ = NETWORKS["mlp"]()
    with pytest.raises(InputError, match=r"this Mlp has no adapters; call add_lora"):
        record_of(model)
    add_lora(model, LoraConfig(r=2, target_modules=["lin0"]))
    with pytest.raises(InputError, match="adapter 'default' already"):
        add_lora(model, LoraConfig(r=2, target_modules=["lin1"]))
    with pytest.raises(InputError, match=r"word without dots and slashes, got 'a.b'"):
        add_lora(model, LoraConfig(r=2, target_modules=["lin1"]), adapter_name="a.b")


TWO_WAYS = [  # network, a selection, the names of the modules that it leaves of "all-linear"
    ("bert", "50%..", r"bert\.encoder\.layer\.1\..*"),
    ("bert", "0", r"bert\.encoder\.layer\.0\..*"),
    ("vit", "..-1", r"vit\.(encoder\.layer|layers)\.0\..*"),
    ("timm-vit", "-1", r"blocks\.1\..*"),
    ("gpt2", "/h.1/", r"transformer\.h\.1\..*"),
    ("t5", "encoder", r"encoder\..*"),
    ("t5", "encoder.0, decoder.-1", r"(encoder\.block\.0|decoder\.block\.1)\..*"),
]


@pytest.mark.parametrize(("name", "selection", "inside"), TWO_WAYS)
def test_layers_by_the_language_of_select(name, selection, inside):
    model, _ = NETWORKS[name]()
    whole = list(adapted(model, r=2, target_modules="all-linear").layers)
    part = list(adapted(model, r=2, target_modules="all-linear", layers=selection).layers)
    assert part == [n for n in whole if re.fullmatch(inside, n)]
    assert 0 < len(part) < len(whole)


def test_layers_are_those_of_list_layers_and_of_a_network_with_adapters_too():
    model, _ = NETWORKS["bert"]()
    model = add_lora(copy.deepcopy(model), LoraConfig(r=2), adapter_name="first")
    add_lora(model, LoraConfig(r=2, target_modules="all-linear", layers="-1"), adapter_name="second")
    second = [n for n, layer in record_of(model).layers.items() if "second" in layer.r]
    chosen = select_layers(list_layers(NETWORKS["bert"]()[0]), "-1")
    inside = [f"{name}." for layer in chosen for name, _ in layer.modules]
    assert len(second) == 6
    assert all(n.startswith(tuple(inside)) for n in second)


def test_layers_narrow_the_defaults_a_list_and_a_pattern():
    model, _ = NETWORKS["bert"]()
    own = "bert.encoder.layer.1.attention.self"
    for wanted in (None, ["query", "value"], r".*\.(query|value)"):
        record = adapted(model, r=2, target_modules=wanted, layers="1")
        assert list(record.layers) == [f"{own}.query", f"{own}.value"]
    spared = adapted(model, r=2, target_modules="all-linear", exclude_modules=["dense"], layers="1")
    assert list(spared.layers) == [f"{own}.query", f"{own}.key", f"{own}.value"]


def test_peft_reads_which_layers_were_chosen(tmp_path):
    """adapter_config.json names modules, nothing of ours, and PEFT adapts those and no others."""
    model, batch = NETWORKS["bert"]()
    ours = add_lora(
        copy.deepcopy(model), LoraConfig(r=2, target_modules="all-linear", layers="1", init_lora_weights=False)
    )
    save_adapter(ours, tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert "layers" not in written
    assert written["layers_to_transform"] is None
    config = record_of(ours).configs["default"]
    assert (config.layers, config.target_modules) == (None, sorted(record_of(ours).layers))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path)
    found = {n.partition(".lora_A")[0] for n, _ in theirs.named_parameters() if ".lora_A." in n}
    assert {n.removeprefix("base_model.model.") for n in found} == set(record_of(ours).layers)
    again = load_adapter(copy.deepcopy(model), tmp_path)
    expected = first_float(forward(ours.eval(), batch))
    assert torch.equal(first_float(forward(theirs.eval(), batch)), expected)
    assert torch.equal(first_float(forward(again.eval(), batch)), expected)


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (
            "..50%, 7",
            "there is no block 7: '7'; the blocks are 0 to 1, or -2 to -1 from the task\n  ..50%, 7\n         ^",
        ),
        ("heda", "this names no layer: 'heda'; the closest are 'head'"),
        (
            "stem",
            "layers='stem' holds none of the 4 modules that target_modules=['query', 'value'] chooses; the first",
        ),
    ],
)
def test_a_selection_that_fits_nothing_is_pointed_at(selection, message):
    model, _ = NETWORKS["bert"]()
    with pytest.raises(InputError, match=re.escape(message)):
        adapted(model, target_modules=["query", "value"], layers=selection)


def test_a_stage_without_attention_is_adapted_like_the_others():
    attention, convolution = "stages.1.blocks.{}.attn.qkv", "stages.0.blocks.{}.conv{}"
    modules = {"stem": nn.Conv2d(3, 8, 3), "stages.0.downsample.conv": nn.Conv2d(8, 8, 3)}
    modules |= {convolution.format(i, j): nn.Conv2d(8, 8, 3) for i in (0, 1) for j in (1, 2)}
    modules |= {attention.format(i): nn.Linear(8, 24) for i in range(6)}
    modules |= {"stages.2.downsample.conv": nn.Conv2d(8, 8, 3), "merge.0.conv": nn.Conv2d(8, 8, 3)}
    names = default_targets(modules)
    assert {attention.format(i) for i in range(6)} <= set(names)
    assert {convolution.format(i, j) for i in (0, 1) for j in (1, 2)} <= set(names)
    assert "stages.2.downsample.conv" not in names  # a step between two stages is no stage
    assert "merge.0.conv" not in names


def deepseek():
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "moe_intermediate_size": 8, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "n_routed_experts": 4, "num_experts_per_tok": 2}
    sizes |= {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4}
    sizes |= {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "vocab_size": 32}
    return DeepseekV3ForCausalLM(DeepseekV3Config(**sizes)).eval()


@pytest.mark.parametrize("wanted", [["q_a_proj", "gate_proj"], r".*shared_experts\.up_proj", ["mlp.down_proj"]])
def test_layers_that_peft_takes_for_experts_are_refused(wanted):
    with pytest.raises(InputError, match=r"take down_proj, gate, gate_proj, up_proj in a file"):
        add_lora(deepseek(), LoraConfig(r=2, target_modules=wanted))


@pytest.mark.parametrize("wanted", [None, "all-linear"])
@pytest.mark.filterwarnings("ignore:.*are left out|.*are stacked", "ignore:.is_gradient_checkpointing.:FutureWarning")
def test_they_are_spared_otherwise_so_that_peft_computes_the_same(wanted, tmp_path):
    from peft_zoo import randomise

    model = add_lora(deepseek(), LoraConfig(r=2, target_modules=wanted))
    randomise(model)
    names = list(record_of(model).layers)
    kinds = {name.rpartition(".")[2] for name in names if ".experts." not in name}
    assert kinds
    assert not kinds & {"gate_proj", "up_proj", "down_proj"}
    assert any(".experts." in name for name in names) == (wanted is not None)
    save_adapter(model, tmp_path)
    ids = torch.randint(0, 32, (2, 5))
    theirs = peft.PeftModel.from_pretrained(deepseek(), tmp_path).eval()
    torch.testing.assert_close(theirs(input_ids=ids).logits, model.eval()(input_ids=ids).logits)


def test_a_linear_layer_with_a_forward_pass_of_its_own_is_chosen_if_it_computes_the_same():
    """Falcon's does; the router of Llama 4 gives a tuple."""
    sizes = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    falcon = transformers.FalconForCausalLM(transformers.FalconConfig(**sizes))
    plan = plan_adapter(falcon, LoraConfig(r=2, target_modules="all-linear"))
    assert sorted(target.name.rpartition(".")[2] for target in plan.targets) == [
        "dense",
        "dense_4h_to_h",
        "dense_h_to_4h",
        "query_key_value",
    ]


@pytest.mark.parametrize("settings", [{"layers_to_transform": [7]}, {"exclude_modules": ["query"]}])
def test_a_setting_that_leaves_no_target_is_named_rather_than_the_targets(settings):
    model = nn.ModuleDict({"blocks": nn.ModuleList(nn.ModuleDict({"query": nn.Linear(4, 4)}) for _ in range(2))})
    (name, value), *_ = settings.items()
    message = rf"{name}={re.escape(repr(value))} leaves none of the 2 modules .* 'blocks.0.query'"
    with pytest.raises(InputError, match=message):
        add_lora(model, LoraConfig(r=2, target_modules=["query"], modules_to_save=(), **settings))


def test_all_linear_is_the_same_word_in_any_case():
    assert LoraConfig(target_modules="All-Linear") == LoraConfig(target_modules="all-linear")


def test_a_linear_layer_that_takes_other_shapes_is_left_out():
    from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4GroupedLinear

    model = nn.ModuleDict({"plain": nn.Linear(4, 4), "grouped": DeepseekV4GroupedLinear(4, 8, n_groups=2)})
    add_lora(model, LoraConfig(r=2, target_modules="all-linear", modules_to_save=()))
    assert [*record_of(model).layers] == ["plain"]


def test_what_peft_refuses_in_mamba_is_named():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 32, "state_size": 4}
    model = transformers.MambaForCausalLM(transformers.MambaConfig(**sizes))
    with pytest.warns(UserWarning, match="PEFT cannot load this adapter: .*mixer.out_proj"):
        add_lora(model, LoraConfig(r=2, target_modules=["out_proj"]))


@pytest.mark.parametrize(("source", "target", "told"), [
    (r"attention\.q", "attention.weights_of_q", True),  # as transformers takes Inkling2's convolutions for older ones
    (r"^bert\.", "", False),  # PEFT takes back what only shortens a name
])  # fmt: skip
def test_names_that_peft_takes_for_those_of_old_checkpoints_are_named(source, target, told, monkeypatch):
    from transformers import conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    mapping = [WeightRenaming(source, target)]
    monkeypatch.setattr(conversion_mapping, "get_model_conversion_mapping", lambda model: mapping)
    sizes = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes, intermediate_size=16))
    model.bert.encoder.layer[0].attention.q = nn.Linear(4, 4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plan_adapter(model, LoraConfig(r=2, target_modules=["q"]))
    found = [str(one.message) for one in caught if "PEFT cannot load" in str(one.message)]
    assert len(found) == told
    assert all("'bert.encoder.layer.0.attention.weights_of_q'" in message for message in found)
