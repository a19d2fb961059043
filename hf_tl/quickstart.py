"""A transfer experiment that needs no network connection: digits 0-4 teach a small network, digits 5-9 reuse it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from hf_tl.embedding.embedding import Embedding, LayerColumns
from hf_tl.embedding.full_network import FullNetworkEmbedding
from hf_tl.models import Network
from hf_tl.probes.learning_curve import LearningCurve
from hf_tl.probes.svm import LinearSVM


SHOTS = (1, 2, 5, 10, 20)  # training samples per class
DRAWS = 5
METHODS = ("raw pixels", "from scratch", "last layer", "full network")
CANVAS, DIGIT, NOISE = 32, 16, 0.25  # pixels, pixels, largest background value
SOURCE_COPIES, SOURCE_EPOCHS = 4, 6
SCRATCH_EPOCHS, SCRATCH_STEPS = 40, 60  # at least so many steps, so that batch norm settles
TEST_ROWS = 400


@dataclass(frozen=True)
class Results:
    """What the experiment measured.

    Attributes:
        curve: test accuracy of each method.
        source_accuracy: of the source network on fresh canvases of its own digits.
        n_features: method -> number of features that its classifier reads.
    """

    curve: LearningCurve
    source_accuracy: float
    n_features: dict[str, int]


def run(*, seed: int = 0, shots: Sequence[int] = SHOTS, draws: int = DRAWS, progress: bool = True) -> Results:
    """Trains the source network, then judges four ways to learn the target digits from few samples.

    Args:
        seed: decides the canvases, the initial weights and the draws.
        shots: training samples per class.
        draws: independent draws of the training samples, 2 to 5.
        progress: whether progress bars are drawn.
    """
    from sklearn.datasets import load_digits

    digits, generator = load_digits(), np.random.default_rng(seed)
    source, target = digits.target < 5, digits.target >= 5
    network, source_accuracy = _learn_source(
        digits.images[source], digits.target[source], generator, seed=seed, progress=progress
    )
    canvases, labels = draw_canvases(digits.images[target], generator), digits.target[target] - 5
    reader = FullNetworkEmbedding(network, taps=["auto", "last"], recipe="raw", progress=False)
    raw = reader.activations(list(canvases))  # one pass serves both kinds of features, all sizes and draws
    features = {
        "raw pixels": (FullNetworkEmbedding(recipe="raw"), _pixels(canvases)),
        "last layer": (FullNetworkEmbedding(recipe="l2", taps="last"), raw),
        "full network": (FullNetworkEmbedding(recipe="paper"), raw),
    }
    accuracy = {method: np.zeros((len(shots), draws)) for method in METHODS}
    with tqdm(total=len(shots) * draws, desc="target task, digits 5-9", unit="draw", disable=not progress) as bar:
        for j in range(draws):
            order = np.random.default_rng((seed, j)).permutation(len(labels))
            test, pool = order[:TEST_ROWS], order[TEST_ROWS:]
            for i, n_samples in enumerate(shots):
                rows = np.concatenate([pool[labels[pool] == digit][:n_samples] for digit in range(5)])
                for method, (embedding, values) in features.items():
                    accuracy[method][i, j] = _judge_features(embedding, values, labels, rows, test)
                accuracy["from scratch"][i, j] = _judge_scratch(canvases, labels, rows, test, seed=seed + 1 + j)
                bar.update()
    return Results(
        curve=LearningCurve(tuple(shots), accuracy, chance=1 / 5),
        source_accuracy=source_accuracy,
        n_features={method: embedding.n_features_ for method, (embedding, _) in features.items()},
    )


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


def new_network(seed: int) -> nn.Module:
    """timm's `test_resnet` for one-channel canvases and five classes, freshly initialised; 0.37 million parameters."""
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return timm.create_model("test_resnet", in_chans=1, num_classes=5)


def train(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    at_least: int = 0,
    progress: str | None = None,
) -> None:
    """AdamW with one warm-up and cool-down of the learning rate; the network is left in eval mode.

    Args:
        model: trained in place.
        images: (n, 1, 32, 32).
        labels: (n,).
        epochs: passes over the images.
        batch_size: images a step; a smaller remainder is dropped.
        learning_rate: the highest.
        seed: of the order of images.
        at_least: steps to take even where the epochs are over sooner.
        progress: title of a progress bar, None for none.
    """
    generator = torch.Generator().manual_seed(seed)
    batch_size = min(batch_size, len(images))
    per_epoch = len(images) // batch_size
    steps = max(epochs * per_epoch, at_least)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    model.train()
    for step in tqdm(range(steps), desc=progress, unit="step", disable=progress is None):
        if step % per_epoch == 0:
            order = torch.randperm(len(images), generator=generator)
        rows = order[step % per_epoch * batch_size :][:batch_size]
        loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()


def predict(model: nn.Module, images: Tensor) -> np.ndarray:
    """The class of each image: (n, 1, 32, 32) -> (n,)."""
    with torch.inference_mode():
        return torch.cat([model(batch).argmax(dim=1) for batch in images.split(128)]).numpy()


def save(results: Results, folder: Path) -> list[Path]:
    """Writes results.json and learning_curve.png into a folder, which is made; returns the two paths."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "shots": list(results.curve.shots),
        "accuracy": {method: values.round(4).tolist() for method, values in results.curve.accuracy.items()},
        "source_accuracy": round(results.source_accuracy, 4),
        "n_features": results.n_features,
    }
    (folder / "results.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    results.curve.plot(
        folder / "learning_curve.png",
        title="Digits 5-9, from a network trained on digits 0-4",
        note="linear SVM (C=1) on all but 'from scratch'",
    )
    return [folder / "results.json", folder / "learning_curve.png"]


def _learn_source(
    images: np.ndarray, labels: np.ndarray, generator: np.random.Generator, *, seed: int, progress: bool
) -> tuple[Network, float]:
    """A network trained on canvases of some digits, and its accuracy on fresh canvases of the same."""
    model = new_network(seed)
    train(
        model,
        draw_canvases(np.tile(images, (SOURCE_COPIES, 1, 1)), generator),
        torch.from_numpy(np.tile(labels, SOURCE_COPIES)),
        epochs=SOURCE_EPOCHS,
        batch_size=64,
        learning_rate=2e-3,
        seed=seed,
        progress="source task, digits 0-4" if progress else None,
    )
    accuracy = float((predict(model, draw_canvases(images, generator)) == labels).mean())
    return Network(model, torch.stack, name="test_resnet, digits 0-4"), accuracy


def _judge_features(
    embedding: FullNetworkEmbedding, values: Embedding, labels: np.ndarray, rows: np.ndarray, test: np.ndarray
) -> float:
    learnt = embedding.fit_transform(_part(values, rows))  # statistics of the few training rows alone
    probe = LinearSVM().fit(learnt, labels[rows])
    return float(probe.score(embedding.transform(_part(values, test)), labels[test]))


def _judge_scratch(canvases: Tensor, labels: np.ndarray, rows: np.ndarray, test: np.ndarray, *, seed: int) -> float:
    model = new_network(seed)
    train(
        model,
        canvases[rows],
        torch.from_numpy(labels[rows]),
        epochs=SCRATCH_EPOCHS,
        batch_size=25,
        learning_rate=2e-2,
        seed=seed,
        at_least=SCRATCH_STEPS,
    )
    return float((predict(model, canvases[test]) == labels[test]).mean())


def _pixels(canvases: Tensor) -> Embedding:
    values = canvases.flatten(1).numpy()
    return Embedding(values, (LayerColumns("pixels", 0, values.shape[1], 0.0),), np.arange(len(values)))


def _part(embedding: Embedding, rows: np.ndarray) -> Embedding:
    return replace(embedding, values=embedding.values[rows], indices=embedding.indices[rows])
