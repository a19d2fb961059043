"""How near the target is to the source: with samples or a saved reference of it, and with neither."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load, save
from torch.nn.modules.batchnorm import _NormBase
from tqdm import tqdm

from hf_tl import plots
from hf_tl.architectures import has_running_statistics
from hf_tl.data import Samples
from hf_tl.embedding.embedding import Embedding
from hf_tl.errors import InputError, in_one_line
from hf_tl.files import parse_json, read_untrusted, write_whole
from hf_tl.intervals import wilson
from hf_tl.models import Network
from hf_tl.trace import evaluating, first_float, forward


KEPT = 1000  # features of the source that a reference holds
PERMUTATIONS = 499
LARGEST_REFERENCE = 2 * 10**9  # bytes
FOLDS = 5


@dataclass(frozen=True)
class Reference:
    """What is kept of a source: enough to measure a distance to it without its samples.

    Attributes:
        features: (at most 1000, n_features) of single samples, drawn at random.
        mean: (n_features,).
        covariance: (n_features, n_features).
        layers: names of the layers that were read.
        network: which read them.
        n_samples: that mean and covariance are of.
    """

    features: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    layers: tuple[str, ...]
    network: str
    n_samples: int

    @classmethod
    def of(cls, embedding: Embedding, *, random_state: int = 0) -> Reference:
        """The reference of source samples.

        Args:
            embedding: raw features of the source, such as of the last layer.
            random_state: decides which samples are kept.
        """
        values = np.asarray(embedding.values, dtype=np.float64)
        kept = np.sort(np.random.default_rng(random_state).permutation(len(values))[:KEPT])
        covariance = np.atleast_2d(np.cov(values, rowvar=False))
        names = tuple(layer.name for layer in embedding.layers)
        return cls(values[kept], values.mean(axis=0), covariance, names, embedding.network, len(values))

    def save(self, path: str | Path) -> Path:
        """Writes a safetensors file."""
        tensors = {
            name: np.ascontiguousarray(vars(self)[name], np.float32) for name in ("features", "mean", "covariance")
        }
        about = {"layers": json.dumps(self.layers), "network": self.network, "n_samples": str(self.n_samples)}
        return write_whole(Path(path), save(tensors, about))

    @classmethod
    def load(cls, path: str | Path) -> Reference:
        """What `save` wrote.

        Raises:
            InputError: a file that is missing or something else.
        """
        try:
            content = read_untrusted(Path(path), largest=LARGEST_REFERENCE)
        except FileNotFoundError as error:
            raise InputError(f"there is no reference {str(path)!r}; write one with --save-reference") from error
        try:
            tensors = load(content)
            size = int.from_bytes(content[:8], "little")
            about = parse_json(content[8 : 8 + size], Path(path))["__metadata__"]
            found = cls(
                features=tensors["features"].astype(np.float64),
                mean=tensors["mean"].astype(np.float64),
                covariance=tensors["covariance"].astype(np.float64),
                layers=tuple(str(name) for name in json.loads(about["layers"])),
                network=str(about["network"]),
                n_samples=int(about["n_samples"]),
            )
            d = len(found.mean)
            if found.features.shape[1:] != (d,) or found.covariance.shape != (d, d) or not len(found.features):
                raise ValueError("shapes that do not fit together")
            if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
                raise ValueError("numbers that are not finite")
        except Exception as error:  # a foreign file can be anything
            raise InputError(f"{str(path)!r} is no reference of hf_tl: {in_one_line(error)}") from error
        return found


@dataclass(frozen=True)
class DomainDistance:
    """How far target features are from source features.

    Attributes:
        proxy_a: 2 (1 - 2 error) of a classifier of source and target, 0 where it cannot tell them apart, 2 where it
            always can (Ben-David et al., Machine Learning 2010, sec. 3.2).
        proxy_a_interval: 95 %, of the error on the samples that it was not trained on.
        mmd: maximum mean discrepancy, squared, unbiased (Gretton et al., JMLR 2012, eq. 3), of features divided by
            their median distance.
        p_value: that of equal distributions, by permutation.
        frechet: distance of two normal distributions, squared (Frechet; Dowson and Landau, 1982).
        n: samples of target and source.
    """

    proxy_a: float
    proxy_a_interval: tuple[float, float]
    mmd: float
    p_value: float
    frechet: float
    n: tuple[int, int]

    def __str__(self) -> str:
        low, high = self.proxy_a_interval
        verdict = "differ" if self.p_value < 0.05 else "cannot be told apart"
        return (
            f"source and target {verdict} (MMD^2 {self.mmd:.4f}, p = {self.p_value:.3f}); proxy-A distance "
            f"{self.proxy_a:.2f} ({low:.2f} .. {high:.2f}) of 2; Frechet distance "
            f"{float(f'{self.frechet:.3g}'):,g}, one number, which few samples make too large; "
            f"{self.n[0]} target and {self.n[1]} source samples"
        )


def compare_domains(target: Embedding, source: Embedding | Reference, *, random_state: int = 0) -> DomainDistance:
    """The distance of target features from source features of the same network and layers.

    Args:
        target: raw features; 1,000 samples of it are used.
        source: features of source samples, or what was kept of them.
        random_state: decides samples, folds and permutations.

    Raises:
        InputError: features of different networks or layers, or too few samples.
    """
    reference = source if isinstance(source, Reference) else Reference.of(source, random_state=random_state)
    names = tuple(layer.name for layer in target.layers)
    if names != reference.layers or target.shape[1] != len(reference.mean):
        raise InputError(
            f"target and source have to be read at the same layers of one network, got {target.shape[1]} features of "
            f"{names[:3]} and {len(reference.mean)} of {reference.layers[:3]}"
        )
    readers = [Path(name).name for name in (target.network, reference.network)]
    if readers[0] != readers[1]:
        raise InputError(f"target and source have to be read by one network, got {readers[0]!r} and {readers[1]!r}")
    own = Reference.of(target, random_state=random_state + 1)
    fewest = min(len(own.features), len(reference.features))
    if fewest < 2 * FOLDS:
        raise InputError(f"a distance takes {2 * FOLDS} samples of each side, got {fewest}")
    proxy, interval = _proxy_a(own.features, reference.features, random_state)
    mmd, p_value = mmd_test(own.features, reference.features, random_state=random_state)
    n = (len(own.features), len(reference.features))
    return DomainDistance(proxy, interval, mmd, p_value, _frechet(own, reference), n)


def plot_domains(
    path: str | Path, target: Embedding, source: Embedding | Reference, *, title: str, random_state: int = 0
) -> Path:
    """Draws target and source samples in the two directions in which both together vary most (PCA).

    Args:
        path: of a PNG, SVG or PDF file.
        target: see `compare_domains`.
        source: see `compare_domains`.
        title: above it.
        random_state: see `compare_domains`.

    Raises:
        InputError: see `compare_domains`.
    """
    distance = compare_domains(target, source, random_state=random_state)
    reference = source if isinstance(source, Reference) else Reference.of(source, random_state=random_state)
    own = Reference.of(target, random_state=random_state + 1).features
    both = np.concatenate([own, reference.features])
    _, sizes, directions = np.linalg.svd(both - both.mean(axis=0), full_matrices=False)
    shown = np.square(sizes[:2]).sum() / np.square(sizes).sum()
    places = (both - both.mean(axis=0)) @ directions[:2].T
    caption = f"{distance}\nthe two directions hold {shown:.0%} of the variance"
    with plots.picture(path, title=title, size=(7, 6), caption=caption) as (panel,):
        plots.points(panel, *places[len(own) :].T, color=plots.ORANGE, marker="s", label="source")
        plots.points(panel, *places[: len(own)].T, color=plots.BLUE, marker="o", label="target")
        plots.axes(panel, x="first principal component", y="second principal component")
        plots.legend(panel)
    return Path(path)


def mmd_test(
    first: np.ndarray, second: np.ndarray, *, n_permutations: int = PERMUTATIONS, random_state: int = 0
) -> tuple[float, float]:
    """Squared MMD with a Gaussian kernel as wide as the median distance, and its p-value by permutation.

    Gretton et al., "A kernel two-sample test", JMLR 2012, eq. 3 and sec. 5.

    Args:
        first: (n, n_features).
        second: (m, n_features).
        n_permutations: of the samples' sides.
        random_state: decides them.
    """
    both = np.concatenate([first, second]).astype(np.float64)
    squares = np.square(both).sum(axis=1)
    apart = np.maximum(squares[:, None] + squares - 2 * both @ both.T, 0.0)
    median = np.median(apart[np.triu_indices(len(both), 1)])
    kernel = np.exp(-apart / (median if median > 0 else 1.0))
    np.fill_diagonal(kernel, 0.0)
    generator, n, m = np.random.default_rng(random_state), len(first), len(second)
    sides = np.zeros((len(both), n_permutations + 1))
    sides[:n, 0] = 1.0
    for k in range(n_permutations):
        sides[generator.permutation(len(both))[:n], k + 1] = 1.0
    products = kernel @ sides
    within = (sides * products).sum(axis=0)
    across = products.sum(axis=0) - within
    others = kernel.sum() - within - 2 * across
    found = within / (n * (n - 1)) + others / (m * (m - 1)) - 2 * across / (n * m)
    return float(found[0]), float((1 + np.count_nonzero(found[1:] >= found[0] - 1e-12)) / (n_permutations + 1))


@dataclass(frozen=True)
class SourceSigns:
    """What a pre-trained network itself tells of its source.

    Attributes:
        mean_shift: by how many standard deviations of the source the mean of a channel differs, averaged; by name of
            the normalisation, whose running statistics are the source's. Empty for a network without any.
        norm_ratio: L2 norm of the inputs of that normalisation, after its statistics, against that of the source,
            which is 1; by its name.
        entropy: of the source head's probabilities, over that of guessing: 0 sure, 1 no idea; None without a head.
        n_samples: that were read.
    """

    mean_shift: dict[str, float]
    norm_ratio: dict[str, float]
    entropy: float | None
    n_samples: int

    def plot(self, path: str | Path, *, title: str) -> Path:
        """Draws both against the depth of the normalisations.

        Args:
            path: of a PNG, SVG or PDF file.
            title: above it.

        Raises:
            InputError: a network without running statistics.
        """
        if not self.mean_shift:
            raise InputError("there is nothing to draw: the network has no running statistics of its source")
        caption = f"{len(self.mean_shift)} normalisations with running statistics, {self.n_samples} samples"
        with plots.picture(path, title=title, size=(10, 4), n_panels=2, caption=caption) as panels:
            for panel, values, color, same, y in (
                (panels[0], self.mean_shift, plots.BLUE, 0.0, "shift of a channel's mean / source's deviation"),
                (panels[1], self.norm_ratio, plots.ORANGE, 1.0, "norm of the normalised channels, source's = 1"),
            ):
                plots.curve(panel, range(len(values)), list(values.values()), color=color, marker="o")
                plots.level(panel, same)
                plots.axes(panel, x="normalisation, from data to task (dashed: the source)", y=y, whole=True)
        return Path(path)

    def __str__(self) -> str:
        said = []
        if self.mean_shift:
            names = list(self.mean_shift)
            third = max(1, len(names) // 3)
            parts = [names[:third], names[third : 2 * third] or names[-1:], names[2 * third :] or names[-1:]]
            shifts = [float(np.mean([self.mean_shift[name] for name in part])) for part in parts]
            norms = [float(np.mean([self.norm_ratio[name] for name in part])) for part in parts]
            said.append(
                "channels are shifted by {:.2f} / {:.2f} / {:.2f} standard deviations of the source ".format(*shifts)
                + "in the lower / middle / upper third of the network, norms are {:.2f} / {:.2f} / {:.2f} ".format(
                    *norms
                )
                + "of the source's"
            )
        else:
            said.append("the network has no running statistics of its source")
        if self.entropy is not None:
            said.append(f"the source head's uncertainty is {self.entropy:.2f} of that of guessing")
        return "; ".join(said) + f" ({self.n_samples} samples)"


def read_source_signs(
    network: Network, inputs: Samples | Sequence[object], *, batch_size: int = 32, progress: bool = True
) -> SourceSigns:
    """Reads running statistics and head of a network against what target samples make of them.

    Args:
        network: from `load_network`, with the head of its source where it has one.
        inputs: raw inputs of the target.
        batch_size: samples a forward pass.
        progress: whether a progress bar is drawn.

    Raises:
        InputError: no inputs.
    """
    if not len(inputs):
        raise InputError("there are no samples to read")
    norms = {name: part for name, part in network.model.named_modules() if isinstance(part, _NormBase)}
    norms = {name: part for name, part in norms.items() if has_running_statistics(part)}
    sums: dict[str, list[torch.Tensor]] = {}
    counts: dict[str, int] = {}
    entropies: list[torch.Tensor] = []

    def watch(name: str, module: _NormBase, args: tuple) -> None:
        if module.running_mean is None or module.running_var is None:
            return
        x = args[0].detach().double().transpose(0, 1).flatten(1)
        mean, variance = (buffer.double()[:, None] for buffer in (module.running_mean, module.running_var))
        x = (x - mean) / (variance + module.eps).sqrt()
        first, second = x.sum(dim=1), x.square().sum(dim=1)
        held = sums.setdefault(name, [torch.zeros_like(first), torch.zeros_like(second)])
        held[0] += first
        held[1] += second
        counts[name] = counts.get(name, 0) + x.shape[1]

    hooks = [
        part.register_forward_pre_hook(lambda module, args, name=name: watch(name, module, args))
        for name, part in norms.items()
    ]
    try:
        with evaluating(network.model), torch.no_grad():
            starts = range(0, len(inputs), batch_size)
            for start in tqdm(starts, desc="source signs", unit="batch", disable=not progress):
                batch = network.prepare([inputs[i] for i in range(start, min(start + batch_size, len(inputs)))])
                output = first_float(forward(network.model, batch))
                if output is not None and output.ndim == 2 and output.shape[1] > 1:
                    logs = output.double().log_softmax(dim=-1)
                    entropies.append(-(logs.exp() * logs).sum(dim=-1) / np.log(output.shape[1]))
    finally:
        for hook in hooks:
            hook.remove()
    shift = {name: float((held[0] / counts[name]).abs().mean()) for name, held in sums.items()}
    ratio = {name: float((held[1] / counts[name]).mean().sqrt()) for name, held in sums.items()}
    entropy = float(torch.cat(entropies).mean()) if entropies and _has_head(network.model) else None
    return SourceSigns(shift, ratio, entropy, len(inputs))


def _has_head(model: torch.nn.Module) -> bool:
    """Whether its output is one number a class of the source."""
    from hf_tl.architectures import classifiers, is_transformers

    if is_transformers(model):
        return model.config.architectures is not None and type(model).__name__.endswith("Classification")
    return any(isinstance(part, torch.nn.Linear) for part in classifiers(model))


def _proxy_a(target: np.ndarray, source: np.ndarray, random_state: int) -> tuple[float, tuple[float, float]]:
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    n = min(len(target), len(source))
    values = np.concatenate([target[:n], source[:n]])
    sides = np.repeat([0, 1], n)
    wrong = 0
    for train, test in StratifiedKFold(FOLDS, shuffle=True, random_state=random_state).split(values, sides):
        head = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=np.logspace(-1, 6, 15)))
        wrong += int((head.fit(values[train], sides[train]).predict(values[test]) != sides[test]).sum())
    low, high = wilson(wrong, 2 * n)
    distance = [2 * (1 - 2 * error) for error in (wrong / (2 * n), high, low)]
    return distance[0], (distance[1], distance[2])


def _frechet(first: Reference, second: Reference) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2); the root's trace is the sum of roots of the eigenvalues."""
    from scipy.linalg import eigh, eigvalsh

    own, vectors = eigh(first.covariance)  # sqrtm is lost where there are fewer samples than features
    root = (vectors * np.sqrt(np.maximum(own, 0))) @ vectors.T
    values = eigvalsh(root @ second.covariance @ root)
    trace = np.trace(first.covariance) + np.trace(second.covariance) - 2 * np.sqrt(np.maximum(values, 0)).sum()
    return float(np.square(first.mean - second.mean).sum() + trace)
