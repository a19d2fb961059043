"""What the replications share: handwritten digits of 8 x 8 pixels, a small network, and a loop that obeys a policy."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from hf_tl import Policy


N_BLOCKS = 6


class Block(nn.Module):
    """A convolution and a ReLU: (batch, n_in, height, width) -> (batch, n_out, height / stride, width / stride)."""

    def __init__(self, n_in: int, n_out: int, stride: int):
        super().__init__()
        self.convolution = nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x).relu()


class Network(nn.Module):
    """Six blocks and a linear head: (batch, 1, 8, 8) -> (batch, n_classes)."""

    def __init__(self, n_classes: int, *, width: int = 16, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        sizes = [1, *[width] * 2, *[2 * width] * (N_BLOCKS - 2)]
        self.blocks = nn.ModuleList(Block(sizes[i], sizes[i + 1], 2 if i in (1, 3) else 1) for i in range(N_BLOCKS))
        self.head = nn.Linear(sizes[-1], n_classes)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


def load() -> tuple[Tensor, Tensor]:
    """All 1,797 digits in [0, 1] and their classes: (rows, 1, 8, 8), (rows,)."""
    data = load_digits()
    return torch.tensor(data.images[:, None] / 16, dtype=torch.float32), torch.tensor(data.target)


def split(labels: Tensor, n_train: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Row numbers: `n_train` of each class, and all others."""
    order = torch.tensor(np.random.default_rng(seed).permutation(len(labels)))
    train = torch.cat([order[labels[order] == k][:n_train] for k in labels.unique()])
    return train, order[~torch.isin(order, train)]


def fit(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int,
    lr: float = 2e-3,
    batch: int = 32,
    seed: int = 0,
    policy: Policy | None = None,
    momentum: float | None = None,
) -> nn.Module:
    """Trains a network under a policy and returns it: by AdamW in one cycle of rates, with `momentum` by plain SGD."""
    applied = (policy or Policy("tune: all")).apply(model, example=images[:2], blocks=["blocks.*"])
    if momentum is None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, total_iters=steps)
    if applied.has_rates:
        applied.attach(optimizer)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for step in range(steps):
        rows = torch.randint(len(images), (batch,), generator=generator)
        applied.advance(step=step)
        nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    applied.remove()
    return model


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of rows that are right."""
    return (model.eval()(images).argmax(1) == labels).float().mean().item()


def noise(images: Tensor, *, seed: int) -> Tensor:
    """Gaussian noise of 0.3."""
    return images + 0.3 * torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))


def turn(images: Tensor, *, degrees: float) -> Tensor:
    """Turned about the centre."""
    angle = np.deg2rad(degrees)
    matrix = torch.tensor([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0]]).float()
    grid = nn.functional.affine_grid(matrix.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return nn.functional.grid_sample(images, grid, align_corners=False)
