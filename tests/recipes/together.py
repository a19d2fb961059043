"""Several recipes in the processes that were started together, and a sharded network: `together.py FILE.json`.

FILE.json holds [[recipe, word, ...], ...] under "recipes" and a path under "sharded".
"""

import json
import runpy
import sys
from pathlib import Path
from unittest.mock import patch

import torch
from torch import nn


def train(model, applied):
    """Three steps; the values of all parameters."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    inputs = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    for step in range(3):
        applied.advance(step=step)
        model(inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: p.full_tensor() if is_sharded(p) else p.detach() for name, p in model.named_parameters()}


def is_sharded(parameter):
    from torch.distributed.tensor import DTensor

    return isinstance(parameter, DTensor)


def network():
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(4)], nn.Linear(8, 2))


def sharded():
    """The largest difference between FSDP2 and one network under a policy of one phase; what is sharded, frozen."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from hf_tl import Policy

    policy, example = Policy("freeze: ..50%"), torch.zeros(2, 8)
    plain = network()
    expected = train(plain, policy.apply(plain, example=example))
    model = network()
    applied = policy.apply(model, example=example, start=False)
    applied.start()
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for layer in model[:-1]:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    found = train(model, applied)
    return {
        "world": torch.distributed.get_world_size(),
        "difference": max((found[name] - expected[name]).abs().max().item() for name in expected),
        "sharded": sum(map(is_sharded, model.parameters())),
        "frozen": sum(not p.requires_grad for p in model.parameters()),
    }


def main():
    order = json.loads(Path(sys.argv[1]).read_text())
    recipes = Path(__file__).parent.parent.parent / "recipes"
    ended = []
    with patch("torch.distributed.destroy_process_group", ended.append):  # each ends it, and the next one needs it
        for name, *words in order["recipes"]:
            sys.argv = [f"{name}.py", *words]
            runpy.run_path(str(recipes / f"{name}.py"), run_name="__main__")
    result = sharded() | {"ended": len(ended)}
    if torch.distributed.get_rank() == 0:
        Path(order["sharded"]).write_text(json.dumps(result))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
