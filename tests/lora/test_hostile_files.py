"""Damaged and malicious adapters end in one clear sentence, at once, and leave the network as it was."""

import shutil
import time
import warnings
from collections import Counter

import pytest
import torch
from mutations import CONFIG, MUTATIONS, TENSORS, mutate
from peft_zoo import ZOO, randomise, save_with_peft, tiny_bert

from hf_tl.errors import InputError
from hf_tl.lora.adapter import read_adapter
from hf_tl.lora.load import load_adapter


N = 1000  # mutations
ARGUMENTS = {"target_modules": ["query", "value"], "r": 4, "lora_alpha": 8, "modules_to_save": ["classifier"]}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A small adapter with a head, as PEFT saves it."""
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("sound")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(tiny_bert(), LoraConfig(**ARGUMENTS))
        randomise(model)
        model.save_pretrained(folder)
    return folder


def fingerprint(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}, [n for n, _ in model.named_modules()]


@pytest.mark.slow
def test_every_mutation_ends_in_a_clear_sentence(sound, tmp_path):
    load_adapter(tiny_bert(), sound)
    model = tiny_bert()
    tensors, names = fingerprint(model)
    seen = Counter()
    for seed in range(N):
        folder = tmp_path / "copy"
        shutil.copytree(sound, folder)
        what = mutate(folder, seed)
        seen[what.partition(":")[0]] += 1
        start = time.perf_counter()
        try:
            load_adapter(model, folder)
        except InputError as error:
            sentence = str(error)
        except BaseException as error:
            raise AssertionError(f"mutation {seed}, {what}: {type(error).__name__}: {error}") from error
        else:
            raise AssertionError(f"mutation {seed} was loaded: {what}")
        assert time.process_time() - start < 2, what
        assert 20 < len(sentence) < 2000, f"{what}: {sentence}"
        assert sentence.isprintable(), f"{what}: {sentence!r}"
        assert not (folder / "exploded").exists(), what
        after, modules = fingerprint(model)
        assert modules == names, what
        assert after.keys() == tensors.keys(), what
        assert all(torch.equal(after[k], tensors[k]) for k in after), what
        shutil.rmtree(folder)
    assert set(seen) == {mutation.__name__ for mutation in MUTATIONS}


def test_the_pickles_of_the_mutations_do_explode(sound, tmp_path):
    """So that not seeing the explosion means something."""
    import pickle

    folder = shutil.copytree(sound, tmp_path / "copy")
    mutate(folder, [m.__name__ for m in MUTATIONS].index("a_pickle"))
    with (folder / "adapter_model.bin").open("rb") as file:
        pickle.load(file).close()
    assert (folder / "exploded").exists()


SENTENCES = {
    "no folder": "does not exist; give a folder with an adapter_config.json",
    "no config": r"holds no adapter: adapter_config.json is missing",
    "no tensors": r"holds no adapter: adapter_model.safetensors is missing",
    "pickle": r"adapter_model.bin, a pickle, which can run code .* load and save it again with peft",
    "qalora": r"use_qalora=True, quantisation-aware LoRA, which hf_tl does not implement; load it with peft",
    "ia3": r"peft_type='IA3'; hf_tl loads LORA only",
    "future": r"'use_future': \[1\], which hf_tl does not know; load it with peft",
    "corda": r"init_lora_weights='corda', after which the base weight is no longer the pre-trained one",
    "rank": r"layer .bert.encoder.layer.[01].attention.self.[a-z]+. has rank 4 in the tensors, 5 in adapter_config",
}


@pytest.mark.parametrize("case", SENTENCES)
def test_what_is_said(case, sound, tmp_path):
    import json

    folder = shutil.copytree(sound, tmp_path / "copy")
    config = json.loads((folder / CONFIG).read_text())
    if case == "no folder":
        folder = tmp_path / "nowhere"
    elif case == "no config":
        (folder / CONFIG).unlink()
    elif case in ("no tensors", "pickle"):
        (folder / TENSORS).unlink()
        if case == "pickle":
            (folder / "adapter_model.bin").write_bytes(b"")
    changes = {"qalora": {"use_qalora": True}, "ia3": {"peft_type": "IA3"}, "future": {"use_future": [1]}}
    changes |= {"corda": {"init_lora_weights": "corda"}, "rank": {"r": 5}}
    if case in changes:
        (folder / CONFIG).write_text(json.dumps(config | changes[case]))
    with pytest.raises(InputError, match=SENTENCES[case]):
        read_adapter(folder)


def test_one_sentence_lists_everything_with_the_nearest_name(sound, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(sound, tmp_path / "copy")
    tensors = load_file(folder / TENSORS)
    prefix = "base_model.model.bert.encoder.layer"
    for part in "AB":
        tensors[f"{prefix}.0.attention.self.qeury.lora_{part}.weight"] = tensors.pop(
            f"{prefix}.0.attention.self.query.lora_{part}.weight"
        )
    tensors["base_model.model.classifier.weight"] = torch.ones(5, 32)
    tensors["base_model.model.classifier.bias"] = torch.ones(5)
    tensors[f"{prefix}.1.attention.self.value.lora_A.weight"] = torch.ones(4, 31)
    save_file(tensors, folder / TENSORS)
    with pytest.raises(InputError) as error:
        load_adapter(tiny_bert(), folder)
    said = str(error.value)
    assert "1 unexpected: layer 'bert.encoder.layer.0.attention.self.qeury' (the closest are " in said
    assert "'bert.encoder.layer.0.attention.self.query'" in said
    assert "3 mismatched: layer 'bert.encoder.layer.1.attention.self.value' (A is (4, 31), expected (4, 32))" in said
    assert (
        "'classifier.weight' (is (5, 32) float32, expected (3, 32) float32; build the network with 5 outputs)" in said
    )
    assert "missing: layer 'bert.encoder.layer.0.attention.self.query'" in said
    with pytest.warns(UserWarning, match="left out of the load: .*1 unexpected"):
        model = load_adapter(tiny_bert(), folder, strict=False)
    assert [
        name for name, _ in model.named_parameters() if "lora_A" in name and ".0." in name and "query" in name
    ] == []
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == 2


def test_a_file_that_changes_later_changes_nothing(tmp_path):
    """Memory maps would follow the file, or crash when it shrinks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_with_peft("bert-query-value", tmp_path)
    adapter = read_adapter(tmp_path)
    before = {name: tensor.clone() for name, tensor in adapter.tensors.items()}
    (tmp_path / TENSORS).write_bytes(b"")
    assert all(torch.equal(adapter.tensors[name], before[name]) for name in before)
    assert ZOO
