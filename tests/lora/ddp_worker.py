"""Five steps of an adapter under DistributedDataParallel, or in one process on the whole batch."""

import os
import sys

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hf_tl import LoraConfig, add_lora
from hf_tl.lora.adapted import adapter_state_dict


def main() -> None:
    world = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    add_lora(model, LoraConfig(r=4, target_modules=["0", "2"], modules_to_save=["4"]))
    wrapped = model
    if world > 1:
        torch.distributed.init_process_group("gloo")
        assert torch.distributed.get_world_size() == world
        wrapped = DistributedDataParallel(model)
    x, y = torch.randn(8, 8), torch.randn(8, 4)
    mine = slice(rank * 8 // world, (rank + 1) * 8 // world)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(5):
        (wrapped(x[mine]) - y[mine]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    adapter = {name: tensor.clone() for name, tensor in adapter_state_dict(wrapped).items()}
    same = True
    if world > 1:
        for tensor in adapter.values():
            others = [torch.empty_like(tensor) for _ in range(world)]
            torch.distributed.all_gather(others, tensor)
            same = same and all(torch.equal(tensor, other) for other in others)
    if rank == 0:
        torch.save({"adapter": adapter, "world": world, "same on both": same}, sys.argv[1])
    if world > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
