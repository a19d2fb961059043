"""Twenty steps of an adapter whose network two processes shard by FSDP2, or of one process on the whole batch."""

import os
import sys
import warnings
from functools import partial
from pathlib import Path

import torch
from peft_zoo import tiny_llama
from torch.nn import functional as F

from hf_tl import InputError, LoraConfig, add_lora, load_adapter, merge_adapter, save_adapter


STEPS = 20
LAYERS = {"r": 4, "target_modules": ["q_proj", "down_proj"]}
TIED = {"tie_word_embeddings": True}
KINDS = {  # what the network is, and the adapter
    "lora": ({}, LAYERS),
    "dora": ({}, {**LAYERS, "use_dora": True}),
    "rows of tied tables": (TIED, {**LAYERS, "trainable_token_indices": [3, 4]}),
    "a tied table": (TIED, {"r": 4, "target_modules": ["embed_tokens", "q_proj"]}),
}


def adapted(kind):
    """The network of a kind with a new adapter, as every process has it."""
    base, config = KINDS[kind]
    torch.manual_seed(1)
    return add_lora(tiny_llama(**base).train(), LoraConfig(**config))


def shard(model, world):
    """What Accelerate's FSDP2 plugin does: each block, and the rest; tables that are tied in one group."""
    if world == 1:
        return model
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (world,))
    for block in model.model.layers:
        fully_shard(block, mesh=mesh)
    if model.config.tie_word_embeddings:
        fully_shard([model.model.embed_tokens, model.lm_head], mesh=mesh)
    return fully_shard(model, mesh=mesh)


def train(model, steps, *, rank=0, world=1):
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


def train_halfway_twice(kind, out, *, rank, world):
    """Losses, those after loading what was saved in the middle, and how another adapter and a merge are refused."""
    model = shard(adapted(kind), world)
    losses = train(model, range(STEPS // 2), rank=rank, world=world)
    save_adapter(model, out / "half")
    losses += train(model, range(STEPS // 2, STEPS), rank=rank, world=world)
    save_adapter(model, out / "adapter")
    base = tiny_llama(**KINDS[kind][0]).train()
    again = shard(load_adapter(base, out / "half", is_trainable=True), world)
    resumed = train(again, range(STEPS // 2, STEPS), rank=rank, world=world)
    refused = []
    for call in (partial(add_lora, shard(tiny_llama(), world), LoraConfig()), partial(merge_adapter, model)):
        try:
            call()
        except InputError as error:
            refused.append(str(error))
    return {"losses": losses, "resumed": resumed, "refused": refused}


def main() -> None:
    warnings.simplefilter("ignore")
    world, rank, out = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"]), Path(sys.argv[1])
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    assert torch.distributed.get_world_size() == world
    found = {kind: train_halfway_twice(kind, out / kind, rank=rank, world=world) for kind in KINDS}
    if rank == 0:
        torch.save(found | {"world": world}, out / "done.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
