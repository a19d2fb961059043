"""A network and a task that need no network connection: digits 0-4 teach a small network, digits 5-9 are to follow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from hf_tl.files import make_folder


CANVAS, DIGIT, NOISE = 32, 16, 0.25  # pixels, pixels, largest background value
COPIES, EPOCHS, BATCH_SIZE, LEARNING_RATE = 2, 3, 64, 4e-3  # of pre-training; each copy of a digit is a new canvas
SHOTS = 64  # training samples of each class of the task


def draw_canvases(images: np.ndarray, generator: np.random.Generator) -> Tensor:
    """Digits at random places on noisy canvases: (n, 8, 8) in 0..16 -> (n, 1, 32, 32) float32 in 0..1.

    The place is random so that no pixel means the same in two canvases: pixels alone do not solve the task.
    """
    canvases = generator.uniform(0, NOISE, (len(images), CANVAS, CANVAS)).astype(np.float32)
    large = np.kron(images / 16, np.ones((1, DIGIT // 8, DIGIT // 8))).astype(np.float32)
    corners = generator.integers(0, CANVAS - DIGIT + 1, (len(images), 2))
    for canvas, digit, (top, left) in zip(canvases, large, corners, strict=True):
        window = canvas[top : top + DIGIT, left : left + DIGIT]
        np.maximum(window, digit, out=window)
    return torch.from_numpy(canvases)[:, None]


def save_network(folder: Path, *, seed: int) -> float:
    """Trains a small network on canvases of digits 0-4 and saves it as timm saves for the Hub.

    Args:
        folder: is made.
        seed: of canvases and weights.

    Returns:
        Its accuracy on fresh canvases of the same digits.
    """
    import timm
    from sklearn.datasets import load_digits

    digits, generator = load_digits(), np.random.default_rng(seed)
    known = digits.target < 5
    images, labels = digits.images[known], digits.target[known]
    canvases = draw_canvases(np.tile(images, (COPIES, 1, 1)), generator)
    model = new_network(seed)
    _train(model, canvases, torch.from_numpy(np.tile(labels, COPIES)), seed=seed)
    with torch.inference_mode():
        predicted = model(_as_input(draw_canvases(images, generator))).argmax(dim=1).numpy()
    model.to(memory_format=torch.contiguous_format)  # as safetensors wants it
    timm.models.save_for_hf(model, str(folder), safe_serialization=True)
    return float((predicted == labels).mean())


def save_digits(folder: Path, *, seed: int) -> Path:
    """Writes canvases of digits 5-9 as PNG, train/5/0012.png and so on: the first SHOTS of each are for training.

    Args:
        folder: is made.
        seed: of canvases; the digits of both parts are the same for all, so that files of another seed are replaced.
    """
    from PIL import Image
    from sklearn.datasets import load_digits

    digits, generator = load_digits(), np.random.default_rng((seed, 1))
    for label in range(5, 10):
        rows = np.flatnonzero(digits.target == label)
        canvases = draw_canvases(digits.images[rows], generator)[:, 0].numpy()
        for part, which in (("train", slice(SHOTS)), ("test", slice(SHOTS, None))):
            own = make_folder(folder / part / str(label))
            for row, canvas in zip(rows[which], canvases[which], strict=True):
                Image.fromarray((255 * canvas).round().astype(np.uint8)).save(own / f"{row:04d}.png")
    return folder


def new_network(seed: int) -> nn.Module:
    """timm's `test_resnet` for canvases as they are and all ten digits, freshly initialised; 0.37 million parameters.

    Ten outputs, so that its head is not taken for one of any five classes.
    Channels last, as its steps on a CPU are a fifth faster so.
    """
    import timm

    read = {"input_size": (3, CANVAS, CANVAS), "crop_pct": 1.0, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = timm.create_model("test_resnet", num_classes=10, pretrained_cfg_overlay=read)
    return model.to(memory_format=torch.channels_last)


def _train(model: nn.Module, canvases: Tensor, labels: Tensor, *, seed: int) -> None:
    """AdamW with one warm-up and cool-down of the learning rate; the network is left in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    steps = EPOCHS * (len(canvases) // BATCH_SIZE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    model.train()
    for _ in range(EPOCHS):
        order = torch.randperm(len(canvases), generator=generator)
        for rows in order[: len(order) // BATCH_SIZE * BATCH_SIZE].split(BATCH_SIZE):
            loss = nn.functional.cross_entropy(model(_as_input(canvases[rows])), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


def _as_input(canvases: Tensor) -> Tensor:
    """Grey canvases as images of three channels, which timm reads by default."""
    return canvases.expand(-1, 3, -1, -1)
