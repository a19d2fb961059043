"""FSDP2 on two processes: the losses of one, one adapter file that PEFT loads, and training that goes on from it."""

import warnings
from pathlib import Path

import peft
import pytest
import torch
from peft_zoo import logits, text, tiny_llama
from safetensors.torch import load_file

from hf_tl import InputError, LoraConfig, add_lora, load_adapter, save_adapter
from hf_tl.lora.adapted import record_of


WORKER = Path(__file__).parent / "fsdp_worker.py"


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_two_processes_that_shard_the_network_train_as_one(kind, tmp_path, processes):
    for ranks in (2, 1):
        (tmp_path / str(ranks)).mkdir()
        processes.succeed(WORKER, tmp_path / str(ranks), kind, ranks=ranks)
    two, one = (torch.load(tmp_path / ranks / "done.pt") for ranks in ("2", "1"))
    assert (two["world"], one["world"]) == (2, 1)
    assert len(two["losses"]) == 20
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert one["losses"][-1] != one["losses"][0]
    assert two["resumed"] == pytest.approx(two["losses"][10:], rel=1e-6)
    files = [load_file(tmp_path / ranks / "adapter" / "adapter_model.safetensors") for ranks in ("2", "1")]
    assert {name: t.shape for name, t in files[0].items()} == {name: t.shape for name, t in files[1].items()}
    for name, tensor in files[1].items():
        assert torch.allclose(files[0][name], tensor, rtol=1e-3, atol=1e-5), name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(tiny_llama(), tmp_path / "2" / "adapter").eval()
    expected = logits(load_adapter(tiny_llama(), tmp_path / "2" / "adapter").eval(), text())
    torch.testing.assert_close(logits(theirs, text()), expected)
    add, merge = two["refused"]
    assert "is sharded among processes; add or load adapters first, then shard it" in add
    assert "is sharded among processes" in merge


def test_what_deepspeed_partitions_is_refused(tmp_path):
    model = tiny_llama()
    model.lm_head.weight.ds_id = 3  # as ZeRO-3 marks each of its parameters
    with pytest.raises(InputError, match="DeepSpeed has partitioned the parameters"):
        add_lora(model, LoraConfig(r=2))
    model = add_lora(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    layer = record_of(model).layers["model.layers.0.self_attn.q_proj"]
    layer.lora_A["default"].weight.data = torch.empty(0)  # outside of a call
    with pytest.raises(InputError, match=r"is \(0,\), as DeepSpeed leaves parameters in every process; nothing was"):
        save_adapter(model, tmp_path)
