"""The squared hinge loss for more samples than a Gram matrix can hold: Newton steps that read the samples in blocks.

All classes and all values of C are columns of one problem, so a block of samples is read once for all of them, on a
CPU or an accelerator alike. With X the samples that end in a 1 (the intercept), a column's weights w minimise

    1/2 |w|^2 + 1/2 sum_i curvature_i max(0, 1 - y_i x_i w)^2,   curvature_i = 2 C weight_i.

For the samples within the margin, S, the loss is a quadratic with Hessian I + X_S^T curvature X_S; its minimum is
found by conjugate gradients, one pass over the samples a step, and S is looked up again (finite Newton: Keerthi,
DeCoste, "A Modified Finite Newton Method for Fast Solution of Large Scale Linear SVMs", JMLR 6, 2005). Two things keep
the passes few: the problem is solved on an eighth of the samples first, and the leading directions of a part of the
samples are solved for exactly in every step.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor
from tqdm import tqdm

from hf_tl.probes.gram import ROWS_AT_ONCE, Matrix, read_rows


BLOCK = 2**24  # numbers of X on the device at once
SMALL = 2**24  # numbers of X up to which everything is float64
SAMPLE, DIRECTIONS = 2048, 128
COARSER, FEWEST = 8, 8192  # a level has an eighth of the samples, while that is so many
CERTIFIED = 1e-3  # duality gap that a solution may have, however small its decrement is
FORCING = 0.05  # how far a Newton system is solved
STEPS = 60  # conjugate gradient steps of one system
PATIENCE = 3  # steps that may increase the objective before it is searched along them


@dataclass(frozen=True)
class Columns:
    """The problems to be solved together.

    Attributes:
        signs: (samples, columns) int8 in {-1, 1}.
        negative: (n_columns,) 2 C times the class weight of samples with sign -1.
        positive: (n_columns,) likewise with sign 1.
        weights: (n_samples,) of the samples, 0 for samples that do not count.
    """

    signs: np.ndarray
    negative: np.ndarray
    positive: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class Weights:
    """The solutions.

    Attributes:
        coef: (columns, n_features) float64.
        intercept: (columns,) float64.
        passes: how often all samples were read, the coarser levels counted by their share.
        decrement: (n_columns,) estimated distance of the objective from its minimum, relative to it.
        gap: (n_columns,) an upper bound of that distance: the duality gap.
    """

    coef: np.ndarray
    intercept: np.ndarray
    passes: float
    decrement: np.ndarray
    gap: np.ndarray


def solve_primal(
    X: Matrix, columns: Columns, *, tol: float = 1e-5, max_iter: int = 1000, device: str = "cpu"
) -> Weights:
    """The SVMs of all columns.

    Args:
        X: (samples, n_features), in memory, memory-mapped or lazy; never converted as a whole.
        columns: signs and weights.
        tol: distance of each objective from its minimum, relative to it, at which to stop.
        max_iter: passes over the samples of a level after which to stop in any case.
        device: where blocks of samples are multiplied.
    """
    reader = _Reader(X, device)
    problem, passes = _solve_level(
        reader, columns, np.arange(X.shape[0]), _Preconditioner(reader), tol=tol, max_iter=max_iter
    )
    weights = problem.weights.double().cpu().numpy()
    decrement, gap = problem.decrement.cpu().numpy(), problem.gap.cpu().numpy()
    return Weights(weights[:-1].T.copy(), weights[-1].copy(), passes, decrement, gap)


def warn_if_unsolved(found: Weights, tol: float) -> None:
    """Warns where a column is farther from its minimum than it should be."""
    solved = (found.decrement <= tol) & (found.gap <= max(tol, CERTIFIED))
    if not solved.all():
        worst = float(np.nanmax(np.where(found.decrement > tol, found.decrement, found.gap)[~solved], initial=0))
        warnings.warn(
            f"after {found.passes:.0f} passes over the samples, {np.count_nonzero(~solved)} of {len(solved)} SVMs are "
            f"not solved to tol={tol:g}, the farthest may be {worst:.2g} of its objective away; choose a smaller C "
            f"(the closer to a hard margin, the slower), standardise the features, or give more max_iter",
            ConvergenceWarning,
            stacklevel=3,
        )


class _Reader:
    """Blocks of samples on the device, with a last column of ones."""

    def __init__(self, X: Matrix, device: str):
        self.X = X
        self.device = device
        self.n_features = X.shape[1] + 1
        self.dtype = torch.float64 if X.shape[0] * X.shape[1] <= SMALL and device == "cpu" else torch.float32
        self.at_once = max(1, BLOCK // self.n_features)

    def blocks(self, samples: np.ndarray) -> Iterator[tuple[slice, Tensor]]:
        for start in range(0, len(samples), self.at_once):
            part = slice(start, min(start + self.at_once, len(samples)))
            yield part, self.read(samples[part])

    def read(self, samples: np.ndarray) -> Tensor:
        """Some samples, ascending: (samples, n_features)."""
        block = torch.ones(len(samples), self.n_features, dtype=self.dtype, device=self.device)
        window = min(self.at_once, ROWS_AT_ONCE)
        for start in range(int(samples[0]), int(samples[-1]) + 1, window):  # scattered ones do not pull in all between
            mine = slice(*np.searchsorted(samples, [start, start + window]).tolist())
            wanted = samples[mine]
            if len(wanted):
                values = read_rows(self.X, slice(int(wanted[0]), int(wanted[-1]) + 1))
                values = values if len(values) == len(wanted) else values[wanted - wanted[0]]
                block[mine, :-1] = torch.from_numpy(np.require(values, requirements=["C", "W"])).to(self.device)
        return block


class _Preconditioner:
    """An inverse of the Hessian that is exact in the leading directions of a part of the samples."""

    def __init__(self, reader: _Reader):
        n_rows = reader.X.shape[0]
        chosen = np.sort(np.random.default_rng(0).permutation(n_rows)[:SAMPLE])
        among = torch.cat([block for _, block in reader.blocks(chosen)])
        _, vectors = torch.linalg.eigh(
            (among.T @ among if reader.n_features < len(among) else among @ among.T).double()
        )
        leading = vectors[:, -DIRECTIONS:].to(reader.dtype)
        if reader.n_features >= len(among):
            leading = among.T @ leading
        self.samples = chosen
        self.share = len(chosen) / n_rows
        self.directions = torch.linalg.qr(leading.double())[0].to(reader.dtype)
        self.coordinates = among @ self.directions
        self.beyond = (among.square().sum(1) - self.coordinates.square().sum(1)).clamp(min=0)
        self.beyond /= max(reader.n_features - self.directions.shape[1], 1)

    def at(self, curvature: Tensor) -> _Inverse:
        """For the curvature (n_part, columns) of that part, 0 beyond the margin."""
        curvature = curvature / self.share
        n_columns, k = curvature.shape[1], self.coordinates.shape[1]
        inner = torch.empty(n_columns, k, k, dtype=curvature.dtype, device=curvature.device)
        for j in range(n_columns):
            inner[j] = self.coordinates.T @ (curvature[:, j, None] * self.coordinates)
        inner.diagonal(dim1=1, dim2=2).add_(1)
        return _Inverse(self.directions, torch.linalg.inv(inner), 1 + self.beyond @ curvature)


@dataclass(frozen=True)
class _Inverse:
    directions: Tensor
    inner: Tensor
    rest: Tensor

    def __call__(self, vectors: Tensor) -> Tensor:
        """(n_features, columns) -> the same."""
        inside = self.directions.T @ vectors
        solved = torch.einsum("cij,jc->ic", self.inner, inside)
        return vectors / self.rest + self.directions @ (solved - inside / self.rest)


def _solve_level(
    reader: _Reader, columns: Columns, samples: np.ndarray, precondition: _Preconditioner, *, tol: float, max_iter: int
) -> tuple[_Problem, float]:
    n_columns, passes = columns.signs.shape[1], 0.0
    if len(samples) >= COARSER * FEWEST:
        fewer = np.sort(np.random.default_rng(len(samples)).permutation(samples)[: len(samples) // COARSER])
        coarse, passes = _solve_level(reader, columns, fewer, precondition, tol=max(tol, 1e-2), max_iter=max_iter)
        weights, passes = coarse.weights, passes / COARSER
    else:
        weights = torch.zeros(reader.n_features, n_columns, dtype=reader.dtype, device=reader.device)
    problem = _Problem(reader, columns, samples, precondition)
    problem.place(weights)
    while problem.live.any() and problem.passes < max_iter:
        problem.step(tol)
    problem.bar.close()
    return problem, passes + problem.passes


class _Problem:
    """The columns on some samples: weights, decision values, and one Newton step for those not yet solved."""

    def __init__(self, reader: _Reader, columns: Columns, samples: np.ndarray, precondition: _Preconditioner):
        self.reader, self.samples, self.precondition = reader, samples, precondition
        device, dtype = reader.device, reader.dtype
        share = len(samples) / reader.X.shape[0]  # fewer samples stand for all
        self.signs = torch.from_numpy(columns.signs[samples]).to(device)
        self.sample_weights = torch.from_numpy(columns.weights[samples] / share).to(device, dtype)
        self.negative = torch.from_numpy(columns.negative).to(device, dtype)
        self.positive = torch.from_numpy(columns.positive).to(device, dtype)
        sample = precondition.samples
        self.sample = (
            torch.from_numpy(columns.signs[sample]).to(device),
            torch.from_numpy(columns.weights[sample]).to(device, dtype),
        )
        n_columns = len(self.negative)
        self.live = torch.ones(n_columns, dtype=torch.bool, device=device)
        self.failures = torch.zeros(n_columns, dtype=torch.long, device=device)
        self.decrement = torch.full((n_columns,), torch.inf, dtype=torch.float64, device=device)
        self.gap = self.decrement.clone()
        self.passes = 0
        title = f"SVM on {len(samples):,} samples"
        self.bar = tqdm(desc=title, unit="pass", disable=len(samples) <= FEWEST, leave=False)

    def place(self, weights: Tensor) -> None:
        """Starts from given weights."""
        self.weights = weights.clone()
        self.values = torch.empty(len(self.samples), weights.shape[1], dtype=weights.dtype, device=weights.device)
        for part, block in self.reader.blocks(self.samples):
            self.values[part] = block @ weights
        self._passed()
        self.objective = self._objective(self.weights, self.values, self._curvature(slice(None)), slice(None))

    def step(self, tol: float) -> None:
        """One Newton step of all columns that are not solved."""
        columns = torch.nonzero(self.live)[:, 0]
        signs, weights, values = self.signs[:, columns], self.weights[:, columns], self.values[:, columns]
        loss = self._curvature(columns)
        slack = 1 - signs * values
        inside = torch.where(slack > 0, loss, 0)
        residual = -weights
        push = inside * signs * slack
        for part, block in self.reader.blocks(self.samples):
            residual += block.T @ push[part]
        self._passed()
        self.gap[columns] = self._gap(columns, residual + weights, push.abs(), slack)
        del push, slack
        inverse = self.precondition.at(self._sample_curvature(columns, weights))
        change, changed_values, gain = self._newton(residual, inside, inverse)
        del inside
        self.decrement[columns] = gain.double() / 2 / self.objective[columns].clamp(min=1e-300)
        after = self._objective(weights + change, values + changed_values, loss, columns)
        worse = after > self.objective[columns] * (1 + 1e-6)
        self.failures[columns] += worse.long()
        searched = worse & (self.failures[columns] > PATIENCE)
        length = torch.ones_like(self.negative[columns])
        if searched.any():
            length[searched] = self._search(columns[searched], change[:, searched], changed_values[:, searched])
        self.weights[:, columns] = weights + length * change
        self.values[:, columns] = values + length * changed_values
        self.objective[columns] = self._objective(self.weights[:, columns], self.values[:, columns], loss, columns)
        solved = (self.decrement[columns] <= tol) & (self.gap[columns] <= max(tol, CERTIFIED))
        self.live[columns] = ~solved | worse

    def _passed(self) -> None:
        self.passes += 1
        self.bar.update()

    def _newton(self, residual: Tensor, inside: Tensor, inverse: _Inverse) -> tuple[Tensor, Tensor, Tensor]:
        """Conjugate gradients for the Newton system: the step, what it adds to the values, its gain times 2."""
        change, first = torch.zeros_like(residual), residual.clone()
        added = torch.zeros_like(inside)
        solved = inverse(residual)
        direction, length = solved.clone(), (residual * solved).sum(0)
        goal = FORCING**2 * length
        for _ in range(STEPS):
            product, seen = direction.clone(), torch.empty_like(inside)
            for part, block in self.reader.blocks(self.samples):
                seen[part] = block @ direction
                product += block.T @ (inside[part] * seen[part])
            self._passed()
            ratio = length / (direction * product).sum(0).clamp(min=1e-30)
            change += ratio * direction
            added += ratio * seen
            residual = residual - ratio * product
            solved = inverse(residual)
            after = (residual * solved).sum(0)
            if bool((after <= goal).all()):
                break
            direction = solved + after / length.clamp(min=1e-30) * direction
            length = after
        return change, added, (change * first).sum(0).clamp(min=0)

    def _curvature(self, columns: Tensor | slice) -> Tensor:
        factor = torch.where(self.signs[:, columns] > 0, self.positive[columns], self.negative[columns])
        return factor * self.sample_weights[:, None]

    def _sample_curvature(self, columns: Tensor, weights: Tensor) -> Tensor:
        """Of the preconditioner's samples, whose decision values are seen in its directions."""
        signs, sample_weights = self.sample
        signs = signs[:, columns]
        seen = self.precondition.coordinates @ (self.precondition.directions.T @ weights)
        factor = torch.where(signs > 0, self.positive[columns], self.negative[columns]) * sample_weights[:, None]
        return torch.where(signs * seen < 1, factor, 0)

    def _gap(self, columns: Tensor, weights: Tensor, dual: Tensor, slack: Tensor) -> Tensor:
        """The duality gap with the dual coefficients curvature * slack, best scaled; `weights` are theirs."""
        total = dual.sum(0, dtype=torch.float64)
        square = weights.square().sum(0, dtype=torch.float64) + (dual * slack.clamp(min=0)).sum(0, dtype=torch.float64)
        objective = self.objective[columns].clamp(min=1e-300)
        return 1 - total.square() / square.clamp(min=1e-300) / 2 / objective

    def _objective(self, weights: Tensor, values: Tensor, loss: Tensor, columns: Tensor | slice) -> Tensor:
        hinge = (1 - self.signs[:, columns] * values).clamp_(min=0)
        return (weights.square().sum(0, dtype=torch.float64)
                + (loss * hinge.square_()).sum(0, dtype=torch.float64)) / 2  # fmt: skip

    def _search(self, columns: Tensor, change: Tensor, added: Tensor) -> Tensor:
        """The best step length in [0, 1], by bisection on the derivative of the convex objective."""
        signs, values, loss = self.signs[:, columns], self.values[:, columns], self._curvature(columns)
        weights = self.weights[:, columns]
        low, high = torch.zeros_like(self.negative[columns]), torch.ones_like(self.negative[columns])
        for _ in range(30):
            middle = (low + high) / 2
            hinge = (1 - signs * (values + middle * added)).clamp_(min=0)
            slope = ((weights + middle * change) * change).sum(0) - (loss * signs * added * hinge).sum(0)
            low, high = torch.where(slope < 0, middle, low), torch.where(slope < 0, high, middle)
        return (low + high) / 2
