"""Twenty steps of an adapter whose network two processes shard by FSDP2, or of one process on the whole batch."""

import os
import sys
import warnings
from pathlib import Path

import torch
from peft_zoo import tiny_llama
from torch.nn import functional as F

from hf_tl import InputError, LoraConfig, add_lora, load_adapter, merge_adapter, save_adapter


STEPS = 20


def shard(model, world):
    """What Accelerate's FSDP2 plugin does: each block, and the rest."""
    if world == 1:
        return model
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (world,))
    for block in model.model.layers:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def train(model, steps, *, rank, world):
    """The loss of the whole batch at each step."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    batches = torch.randint(0, 99, (STEPS, 4, 9), generator=torch.Generator().manual_seed(5))
    losses = []
    for step in steps:
        ids = batches[step].chunk(world)[rank]
        logits = model(input_ids=ids).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        value = loss.detach().clone()
        if world > 1:
            torch.distributed.all_reduce(value)
        losses.append(value.item() / world)
    return losses


def main() -> None:
    warnings.simplefilter("ignore")
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    out, config = (
        Path(sys.argv[1]),
        LoraConfig(r=4, target_modules=["q_proj", "down_proj"], use_dora=sys.argv[2] == "dora"),
    )
    torch.set_num_threads(1)
    if world > 1:
        torch.distributed.init_process_group("gloo")
        assert torch.distributed.get_world_size() == world
    torch.manual_seed(1)
    model = shard(add_lora(tiny_llama().train(), config), world)
    losses = train(model, range(STEPS // 2), rank=rank, world=world)
    save_adapter(model, out / "half")
    losses += train(model, range(STEPS // 2, STEPS), rank=rank, world=world)
    save_adapter(model, out / "adapter")
    again = shard(load_adapter(tiny_llama().train(), out / "half", is_trainable=True), world)
    resumed = train(again, range(STEPS // 2, STEPS), rank=rank, world=world)
    refused = []
    for call in (lambda: add_lora(shard(tiny_llama(), world), config), lambda: merge_adapter(model)):
        try:
            call() if world > 1 else None
        except InputError as error:
            refused.append(str(error))
    if rank == 0:
        torch.save({"losses": losses, "resumed": resumed, "world": world, "refused": refused}, out / "done.pt")
    if world > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
