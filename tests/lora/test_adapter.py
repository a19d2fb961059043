"""An adapter on disk: what its parts are, what its files hold, what they may not."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from hf_tl.errors import InputError
from hf_tl.lora.adapter import (
    CONFIG_NAME,
    TENSORS_NAME,
    Adapter,
    LayerUpdate,
    alpha_for,
    rank_fields,
    read_adapter,
    write_adapter,
)
from hf_tl.lora.config import NOT_IMPLEMENTED


def made(**config):
    tensors = {"layer.lora_A.weight": torch.ones(2, 4), "layer.lora_B.weight": torch.ones(6, 2)}
    return Adapter({"peft_type": "LORA", "r": 2, "target_modules": ["layer"], **config}, tensors)


def test_an_update_knows_its_size():
    update = LayerUpdate("x", torch.ones(2, 3, 5, 5), torch.ones(4, 2, 1, 1), 0.5)
    assert update.shape == (4, 75)
    assert update.n_parameters == 158
    B, A = update.factors()
    assert torch.equal(B @ A, torch.ones(4, 75, dtype=torch.float64))


def test_the_files_hold_every_key_of_peft(tmp_path):
    """Other readers take keys for granted: vLLM and llama.cpp read the file without PEFT."""
    from peft import LoraConfig

    write_adapter(made(), tmp_path)
    found = json.loads((tmp_path / CONFIG_NAME).read_text())
    theirs = LoraConfig(r=2, lora_alpha=8, target_modules=["layer"], inference_mode=True).to_dict()
    assert found.keys() >= theirs.keys() - {"runtime_config"}
    same = found.keys() & theirs.keys() - {"target_modules", "peft_version"}
    assert {name: found[name] for name in same} == {name: theirs[name] for name in same}
    assert list(found) == sorted(found)
    assert read_adapter(tmp_path).settings.r == 2


def test_tensors_that_share_memory_are_written_each(tmp_path):
    head = torch.randn(6)
    tensors = {**made().tensors, "head.bias": head, "head.decoder.bias": head, "head.part": head[:3]}
    write_adapter(Adapter({**made().config, "modules_to_save": ["head"]}, tensors), tmp_path)
    found = load_file(tmp_path / TENSORS_NAME)
    for name, tensor in tensors.items():
        assert torch.equal(found[f"base_model.model.{name}"], tensor)


@pytest.mark.parametrize("option", sorted(NOT_IMPLEMENTED))
def test_an_option_that_changes_what_a_file_means_is_refused_by_name(option, tmp_path):
    write_adapter(made(), tmp_path)
    config = json.loads((tmp_path / CONFIG_NAME).read_text())
    (tmp_path / CONFIG_NAME).write_text(json.dumps({**config, option: {"some": "thing"}}))
    with pytest.raises(InputError, match=f"has {option}=.*hf_tl does not implement; load it with peft"):
        read_adapter(tmp_path)


def test_patterns_that_take_long_together_are_refused(tmp_path, monkeypatch):
    write_adapter(made(), tmp_path)
    monkeypatch.setattr("hf_tl.lora.adapter._PATTERN_SECONDS", -1.0)
    with pytest.raises(InputError, match="rank_pattern and alpha_pattern take too long to match"):
        read_adapter(tmp_path)


def test_ranks_and_alphas_are_said_by_the_fewest_patterns():
    ranks, alphas = {"a.q": 4, "a.k": 4, "a.v": 2}, {"a.q": 8, "a.k": 8, "a.v": 8}
    fields = rank_fields(ranks, alphas)
    assert fields == {"r": 4, "lora_alpha": 8, "rank_pattern": {r"^a\.v": 2}, "alpha_pattern": {}}
    adapter = Adapter(fields, {})
    assert {name: adapter.rank_of(name) for name in ranks} == ranks
    assert {name: adapter.alpha_of(name) for name in alphas} == alphas


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("rank", [1, 3, 7, 64])
def test_an_alpha_gives_its_scale_again(rank, use_rslora):
    scale = 16 / (rank**0.5 if use_rslora else rank)
    assert alpha_for(scale, rank, use_rslora=use_rslora) == 16


NAMES = st.from_regex(r"[a-z][a-z_0-9]{0,5}(\.[a-z0-9][a-z_0-9]{0,5}){0,3}", fullmatch=True).filter(
    lambda name: not {"lora_A", "lora_B", "base_layer", "weight", "bias"} & set(name.split("."))
)
LAYERS = st.dictionaries(NAMES, st.tuples(st.integers(1, 9), st.sampled_from([1, 8, 16, 0.5, 3.25])), min_size=1)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=100)
@given(LAYERS)
def test_any_ranks_and_alphas_are_found_again(layers):
    ranks, alphas = ({name: pair[i] for name, pair in layers.items()} for i in (0, 1))
    adapter = Adapter(rank_fields(ranks, alphas), {})
    assert {name: adapter.rank_of(name) for name in ranks} == ranks
    assert {name: adapter.alpha_of(name) for name in alphas} == alphas


@settings(max_examples=30)
@given(LAYERS, st.integers(1, 5), st.integers(1, 5))
def test_what_is_written_is_read(tmp_path_factory, layers, d, k):
    ranks, alphas = ({name: pair[i] for name, pair in layers.items()} for i in (0, 1))
    tensors = {f"{name}.lora_A.weight": torch.randn(rank, k) for name, rank in ranks.items()}
    tensors |= {f"{name}.lora_B.weight": torch.randn(d, rank) for name, rank in ranks.items()}
    config = {"peft_type": "LORA", "target_modules": sorted(ranks), **rank_fields(ranks, alphas)}
    folder = write_adapter(Adapter(config, tensors), tmp_path_factory.mktemp("adapter"))
    found = read_adapter(folder)
    assert found.tensors.keys() == tensors.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in tensors.items())
    assert {name: found.rank_of(name) for name in ranks} == ranks
    assert {name: found.alpha_of(name) for name in alphas} == alphas


@settings(max_examples=200)
@given(st.data())
def test_any_value_of_any_field_is_read_or_refused_by_a_sentence(tmp_path_factory, data):
    folder = write_adapter(made(), tmp_path_factory.mktemp("adapter"))
    config = json.loads((folder / CONFIG_NAME).read_text())
    field = data.draw(st.sampled_from(sorted(config)) | st.text(max_size=8))
    (folder / CONFIG_NAME).write_text(json.dumps({**config, field: data.draw(JSON)}))
    sentence = ""
    try:
        read_adapter(folder)
    except InputError as error:
        sentence = str(error)
    assert sentence.isprintable()  # no line breaks, and nothing that a terminal would obey
