"""Adapters that Accelerate's FSDP2 shards, in a loop of one's own, by Trainer and by the recipe.

    accelerate launch --config_file recipes/configs/fsdp2.yaml accelerate_worker.py FOLDER RECIPE_ARGUMENTS...

Accelerate shards on accelerators alone: what it does with them is done here on the processor, over gloo.
"""

import json
import os
import runpy
import sys
import warnings
from pathlib import Path
from unittest.mock import patch

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from peft_zoo import tiny_llama
from transformers import Trainer, TrainingArguments

from hf_tl import InputError, LoraConfig, add_lora, save_adapter
from hf_tl.architectures import is_sharded


STEPS = 20
RECIPES = Path(__file__).parent.parent.parent / "recipes"


def network(dtype=torch.float32, **changes):
    """A tiny Llama, its adapter the same in every process and every time."""
    torch.manual_seed(1)
    model = tiny_llama().to(dtype)
    return add_lora(model, LoraConfig(**{"r": 4, "target_modules": ["q_proj", "down_proj"], **changes}))


def in_halves():
    """A base in half precision whose start is subtracted beside it, adapters and head in float32."""
    return network(torch.bfloat16, init_lora_weights="pissa", modules_to_save=["lm_head"])


def rows():
    return torch.randint(0, 99, (4 * STEPS, 9), generator=torch.Generator().manual_seed(5))


def optimizer_of(model):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)


def loop(model, optimizer, steps, *, accelerator=None):
    """The loss of each step on the four rows of all processes."""
    world, rank = (1, 0) if accelerator is None else (accelerator.num_processes, accelerator.process_index)
    losses = []
    model.train()
    for step in steps:
        ids = rows()[4 * step : 4 * step + 4].chunk(world)[rank]
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward() if accelerator is None else accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item() if accelerator is None else accelerator.reduce(loss.detach(), "mean").item())
    return losses


def trainer(model, folder, *, world=1, **changes):
    """Its best checkpoint is the first of four."""
    settings = {"max_steps": STEPS, "learning_rate": 1e-2, "logging_steps": 1, "report_to": [], "disable_tqdm": True}
    settings |= dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), 4 // world)
    settings |= {"eval_strategy": "steps", "save_steps": 5, "eval_steps": 5, "load_best_model_at_end": True}
    settings |= {"metric_for_best_model": "eval_loss", "greater_is_better": True}
    items = [{"input_ids": row, "labels": row} for row in rows()]
    args = TrainingArguments(str(folder), **{**settings, **changes})
    return Trainer(model, args, train_dataset=items, eval_dataset=items[:8])


def history(done):
    return {
        "loss": [entry["loss"] for entry in done.state.log_history if "loss" in entry],
        "eval_loss": [entry["eval_loss"] for entry in done.state.log_history if "eval_loss" in entry],
        "best": Path(done.state.best_model_checkpoint).name,
    }


def in_a_loop(out):
    """Losses, those after going back to the middle, and what is whole in every process."""
    accelerator, made = Accelerator(), network()
    assert accelerator.is_fsdp2
    assert accelerator.num_processes == 2
    model, optimizer = accelerator.prepare(made, optimizer_of(made))
    losses = loop(model, optimizer, range(STEPS // 2), accelerator=accelerator)
    accelerator.save_state(out / "state")
    losses += loop(model, optimizer, range(STEPS // 2, STEPS), accelerator=accelerator)
    save_adapter(model, out / "loop")
    refused = ""
    (out / "file").touch()
    try:
        save_adapter(model, out / "file")  # in one process; the other hears of it
    except InputError as error:
        refused = str(error)
    accelerator.load_state(out / "state")
    resumed = loop(model, optimizer, range(STEPS // 2, STEPS), accelerator=accelerator)
    whole = [name for name, p in model.named_parameters() if not is_sharded(p)]
    accelerator.free_memory()
    return {"loss": losses, "resumed": resumed, "whole": whole, "refused": [refused, accelerator.process_index]}


def mixed(out):
    """Two dtypes in one group of parameters, with activations that are checkpointed."""
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator, made = Accelerator(), in_halves()
    accelerator.state.fsdp_plugin.activation_checkpointing = True
    model, optimizer = accelerator.prepare(made, optimizer_of(made))
    losses = loop(model, optimizer, range(3), accelerator=accelerator)
    save_adapter(model, out / "mixed")
    accelerator.free_memory()
    return {"loss": losses}


def by_trainer(out, **changes):
    done = trainer(network(), out / "trainer", world=2, **changes)
    done.train()
    done.save_model(str(out / "trainer-end"))
    again = trainer(network(), out / "again", world=2, **changes)
    again.train(resume_from_checkpoint=str(out / "trainer" / "checkpoint-10"))
    return {"trainer": history(done), "again": history(again)}


def main() -> None:
    out = Path(sys.argv[1])
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = {"loop": in_a_loop(out), "mixed": mixed(out), **by_trainer(out)}
    (out / f"found-{torch.distributed.get_rank()}.json").write_text(json.dumps(found))
    os.environ["FSDP_TRANSFORMER_CLS_TO_WRAP"] = "BertLayer"  # as recipes/configs/fsdp2.yaml says
    sys.argv[:2] = ["finetune_lora.py"]
    runpy.run_path(str(RECIPES / "finetune_lora.py"), run_name="__main__")


if __name__ == "__main__":
    on_processor = patch.object(PartialState, "_prepare_backend", lambda *_: ("gloo", DistributedType.MULTI_GPU))
    with on_processor, patch.dict(os.environ, {"ACCELERATE_TORCH_DEVICE": "cpu"}):
        main()
