"""One of two processes that train together: is every rank's network the same after every phase?

torchrun --nproc_per_node 2 tests/policies/ranks.py FOLDER
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from training import bert, trainer
from transformers import TrainerCallback

from hf_tl import Policy, PolicyCallback


POLICIES = {
    "gradual": Policy.gradual(every=2, unit="step", text="reinit: -1, head; lr: decay 0.7"),
    "lp_ft": Policy.lp_ft(probe="3 steps", rate=0.5),
    "plateau": Policy("", [("0", "tune: head"), ("plateau eval_loss 1 max", "tune: all")]),
    "refreeze": Policy("", [("0", "tune: all"), ("2 steps", "tune: head"), ("4 steps", "tune: -2..")]),
}


class Compare(TrainerCallback):
    """After every step: the phase, and the largest difference of any tensor between the ranks."""

    def __init__(self, policy):
        self.policy, self.rows = policy, []

    def on_step_end(self, args, state, control, model, **kwargs):
        worst = 0.0
        for tensor in model.state_dict().values():
            others = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
            dist.all_gather(others, tensor.contiguous())
            worst = max(worst, *((tensor.double() - other.double()).abs().max().item() for other in others))
        self.rows.append([self.policy.applied.phase, worst])


def run(name, folder):
    """The world, and the rows of one policy."""
    model = bert(dropout=0.1)
    torch.manual_seed(int(os.environ["RANK"]))  # ranks draw other numbers, which must not reach the values
    policy = PolicyCallback(POLICIES[name])
    compare = Compare(policy)
    options = {"per_device_train_batch_size": 2, "eval_strategy": "steps", "eval_steps": 1, "weight_decay": 0.1}
    trainer(model, folder, [policy, compare], ddp_backend="gloo", **options).train()
    return {"world": dist.get_world_size(), "rows": compare.rows}


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    found = {name: run(name, folder) for name in POLICIES}
    if dist.get_rank() == 0:
        (folder / "rows.json").write_text(json.dumps(found))
    dist.destroy_process_group()
