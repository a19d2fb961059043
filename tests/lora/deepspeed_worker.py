"""Adapters that DeepSpeed's ZeRO takes over, in a loop and by Trainer: `deepspeed_worker.py FOLDER STAGE`."""

import json
import os
import sys
import warnings
from pathlib import Path
from unittest.mock import patch

import accelerate_worker
import deepspeed
import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType

from hf_tl import save_adapter


class Engine:
    """What `accelerate_worker.loop` asks of an Accelerator and an optimizer, of DeepSpeed's engine."""

    num_processes = 2

    def __init__(self, engine):
        self.engine, self.process_index = engine, torch.distributed.get_rank()
        self.backward, self.step = engine.backward, engine.step

    def zero_grad(self):
        pass

    def reduce(self, value, how):
        torch.distributed.all_reduce(value)
        return value / 2


def main() -> None:
    out, stage = Path(sys.argv[1]), int(sys.argv[2])
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ.pop("ACCELERATE_USE_CPU", None)
    zero = {"stage": stage} | ({"stage3_param_persistence_threshold": 0} if stage == 3 else {})  # small ones too
    config = {"zero_optimization": zero, "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    deepspeed.init_distributed("gloo")
    made = accelerate_worker.network()
    sizes = {"train_micro_batch_size_per_gpu": 2, "train_batch_size": 4}
    optimizer = accelerate_worker.optimizer_of(made)
    engine = Engine(deepspeed.initialize(model=made, optimizer=optimizer, config=config | sizes)[0])
    losses = accelerate_worker.loop(engine.engine, engine, range(accelerate_worker.STEPS), accelerator=engine)
    empty = sum(not parameter.numel() for parameter in made.parameters())
    save_adapter(made, out / "loop")
    config |= dict.fromkeys(("train_micro_batch_size_per_gpu", "train_batch_size", "gradient_clipping"), "auto")
    if stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    done = accelerate_worker.by_trainer(out, deepspeed=config)
    if torch.distributed.get_rank() == 0:
        (out / "found-0.json").write_text(json.dumps({"loop": {"loss": losses, "empty": empty}, **done}))


if __name__ == "__main__":
    on_processor = patch.object(PartialState, "_prepare_backend", lambda *_: ("gloo", DistributedType.MULTI_GPU))
    with on_processor, patch.dict(os.environ, {"ACCELERATE_TORCH_DEVICE": "cpu"}):
        main()
