"""A transfer experiment that needs no network connection: digits 0-4 teach a small network, digits 5-9 reuse it."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from hf_tl.embedding.embedding import Embedding, LayerColumns
from hf_tl.embedding.full_network import FullNetworkEmbedding
from hf_tl.files import write_json
from hf_tl.lora.config import LoraConfig
from hf_tl.lora.inject import add_lora
from hf_tl.models import Network
from hf_tl.probes.gram import Features
from hf_tl.probes.learning_curve import LearningCurve, Prepare, learning_curve


SHOTS = (1, 5, 20)  # training samples per class
DRAWS = 4
METHODS = ("raw pixels", "from scratch", "last layer", "full network", "fine-tuned", "adapters")
CANVAS, DIGIT, NOISE = 32, 16, 0.25  # pixels, pixels, largest background value
SOURCE_COPIES, SOURCE_EPOCHS = 3, 4
SCRATCH_EPOCHS, SCRATCH_STEPS = 20, 40  # at least so many steps, so that batch norm settles
TUNING_STEPS, RANK = 40, 4


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
    """Trains the source network, then evaluates six ways to learn the target digits from few samples.

    Args:
        seed: decides the canvases, the initial weights and the draws.
        shots: training samples per class.
        draws: independent draws of the training and test samples, 2 or more.
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
    activations = replace(reader.activations(list(canvases)), labels=labels)  # one pass for all sizes and draws
    pixels = _pixels(canvases, labels)
    features = {
        "raw pixels": (pixels, FullNetworkEmbedding(recipe="raw")),
        "last layer": (activations, FullNetworkEmbedding(recipe="l2", taps="last")),
        "full network": (activations, FullNetworkEmbedding(recipe="paper")),
    }
    evaluate = partial(learning_curve, shots=shots, n_splits=draws, random_state=seed, progress=progress)
    curves = {
        method: evaluate(raw, head="svm", C=1.0, prepare=_scaled(raw, fne), method=method)
        for method, (raw, fne) in features.items()
    }
    seeds = count(seed + 1)
    trained: dict[str, Callable[[int], nn.Module]] = {
        "from scratch": new_network,
        "fine-tuned": partial(_with_new_head, network.model),
        "adapters": partial(_with_adapters, network.model),
    }
    for method, make in trained.items():
        curves[method] = evaluate(
            pixels,
            head=lambda C, shape, make=make, fresh=method == "from scratch": _Trained(make, next(seeds), fresh=fresh),
            method=method,
        )
    curve = curves[METHODS[0]]
    for method in METHODS[1:]:
        curve = curve.beside(curves[method])
    return Results(curve, source_accuracy, {method: fne.n_features_ for method, (_, fne) in features.items()})


def advice(results: Results) -> str:
    """What the experiment says of its methods, and which command asks the same of one's own data."""
    curve = results.curve
    few, many = (max(METHODS, key=dict(zip(METHODS, means, strict=True)).__getitem__) for means in _ends(curve))
    best = few if few == many else f"{few} with {curve.shots[0]}, {many} with {curve.shots[-1]}"
    return (
        f"Best here: {best} {curve.unit}. On your own samples:\n"
        f"  hf-tl probe MODEL DATA             how good is what a frozen network sees, layer by layer\n"
        f"  hf-tl advise MODEL DATA            or should it be fine-tuned, or adapted\n"
        f"  hf-tl fit MODEL DATA --out FOLDER  a classifier, for hf-tl predict"
    )


def _ends(curve: LearningCurve) -> list[list[float]]:
    """The mean accuracy of each method, with the fewest and with the most samples."""
    return [[float(curve.accuracy[method][i].mean()) for method in METHODS] for i in (0, -1)]


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
    """timm's `test_resnet` for one-channel canvases and five classes, freshly initialised; 0.37 million parameters.

    Channels last, as its steps on a CPU are a fifth faster so.
    """
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return timm.create_model("test_resnet", in_chans=1, num_classes=5).to(memory_format=torch.channels_last)


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
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.01, fused=True)
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
    content = {
        "shots": list(results.curve.shots),
        "accuracy": {method: values.round(4).tolist() for method, values in results.curve.accuracy.items()},
        "source_accuracy": round(results.source_accuracy, 4),
        "n_features": results.n_features,
    }
    write_json(folder / "results.json", content)
    results.curve.plot(
        folder / "learning_curve.png",
        title="Digits 5-9, from a network trained on digits 0-4",
        note="linear SVM (C=1) on pixels and on both embeddings",
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


def _scaled(raw: Embedding, fne: FullNetworkEmbedding) -> Prepare:
    """The features of an embedding, scaled with the statistics of the few training samples alone."""

    def prepare(samples: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        few, many = (
            replace(raw, values=part, indices=np.arange(len(part)), labels=None) for part in (samples, others)
        )
        return np.asarray(fne.fit_transform(few)), np.asarray(fne.transform(many))

    return prepare


def _with_new_head(source: nn.Module, seed: int) -> nn.Module:
    """A copy of the source network whose head starts anew."""
    model = copy.deepcopy(source)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        cast(nn.Linear, model.get_submodule("fc")).reset_parameters()
    return model


def _with_adapters(source: nn.Module, seed: int) -> nn.Module:
    """The same, frozen but for low-rank adapters on every convolution, and the head."""
    model = _with_new_head(source, seed)
    convolutions = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    with torch.random.fork_rng(devices=[]), redirect_stdout(io.StringIO()):
        torch.manual_seed(seed)
        return add_lora(model, LoraConfig(r=RANK, target_modules=convolutions, modules_to_save=["fc"]))


class _Trained:
    """A network that is trained on the few canvases: a head on pixels.

    Args:
        make: a network, from a seed.
        seed: of it, and of the order of canvases.
        fresh: whether its weights are random, which takes longer.
    """

    def __init__(self, make: Callable[[int], nn.Module], seed: int, *, fresh: bool) -> None:
        self.seed, self.fresh, self.network = seed, fresh, make(seed)

    def fit(self, X: Features, y: np.ndarray) -> _Trained:
        train(
            self.network,
            _canvases(X),
            torch.from_numpy(y),
            epochs=SCRATCH_EPOCHS if self.fresh else 1,
            batch_size=25,
            learning_rate=2e-2 if self.fresh else 1e-2,
            seed=self.seed,
            at_least=SCRATCH_STEPS if self.fresh else TUNING_STEPS,
        )
        return self

    def predict(self, X: Features) -> np.ndarray:
        return predict(self.network, _canvases(X))

    def score(self, X: Features, y: np.ndarray) -> float:
        return float((self.predict(X) == y).mean())


def _canvases(pixels: Features) -> Tensor:
    return torch.from_numpy(np.asarray(pixels)).view(-1, 1, CANVAS, CANVAS)


def _pixels(canvases: Tensor, labels: np.ndarray) -> Embedding:
    values = canvases.flatten(1).numpy()
    columns = (LayerColumns("pixels", 0, values.shape[1], 0.0),)
    return Embedding(values, columns, np.arange(len(values)), labels=labels)
