"""Learning rates layer by layer, without the optimizer, its scheduler or its checkpoints knowing of them.

The groups of the optimizer are split while it takes its step, and whole again after it. So every scheduler works on
the groups that it was made for, a checkpoint holds the groups that the script made, and a plain Trainer resumes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hf_tl.layers import Layer
from hf_tl.policies.plan import Plan


class LayerRates:
    """Hooks around the steps of an optimizer.

    Attributes:
        plan: what holds now; only its rates matter here.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        plan: Plan,
        *,
        relative: bool = False,
        pull: float = 0.0,
        anchors: Mapping[int, Tensor] | None = None,
    ):
        self.plan, self.relative, self.pull, self.anchors = plan, relative, pull, anchors or {}
        self._parts: list[tuple[dict[str, Any], dict[str, Any]]] = []  # each with the group that it is part of
        self._groups: list[dict[str, Any]] = []
        self._handles = [
            optimizer.register_step_pre_hook(self._split),
            optimizer.register_step_post_hook(self._join),
        ]

    def remove(self) -> None:
        """Takes the hooks away."""
        for handle in self._handles:
            handle.remove()

    def _split(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        if self._groups:  # the step before failed on its way
            optimizer.param_groups[:] = self._groups
        if self.pull:
            self._pull(optimizer)
        relative = relative_gradients(self.plan) if self.relative else {}
        self._groups, self._parts = list(optimizer.param_groups), []
        for group in self._groups:
            by_rate: dict[float, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                setting = self.plan.trained.get(id(parameter))
                rate = setting.rate * relative.get(setting.layer, 1.0) if setting is not None else 1.0
                by_rate.setdefault(rate, []).append(parameter)
            for rate, members in by_rate.items():
                self._parts.append((group, {**group, "params": members, "lr": group["lr"] * rate}))
        optimizer.param_groups[:] = [part for _, part in self._parts]

    def _join(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        for group, part in self._parts:  # what an optimizer counts in its groups is kept
            group.update({key: value for key, value in part.items() if key not in ("params", "lr")})
        if self._groups:
            optimizer.param_groups[:] = self._groups
        self._groups, self._parts = [], []

    def _pull(self, optimizer: Optimizer) -> None:
        for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
            anchor = self.anchors.get(id(parameter))
            if anchor is not None and parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - anchor.to(parameter), alpha=self.pull)


def relative_gradients(plan: Plan) -> dict[Layer, float]:
    """Gradient norm over weight norm of each layer that trains, relative to the largest (Lee et al., ICLR 2023, 4)."""
    ratios = {}
    for setting in plan.settings:
        tuned = [(p, p.grad) for p in setting.layer.parameters() if id(p) in plan.trained and p.grad is not None]
        if tuned:
            gradient = torch.stack([grad.detach().float().norm() for _, grad in tuned]).norm()
            weight = torch.stack([parameter.detach().float().norm() for parameter, _ in tuned]).norm()
            ratios[setting.layer] = (gradient / weight.clamp_min(1e-12)).item()
    largest = max(ratios.values(), default=0.0)
    return {layer: ratio / largest for layer, ratio in ratios.items()} if largest > 0 else {}


def group_parameters(
    model: nn.Module, plans: Sequence[Plan], *, lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Groups for an optimizer: parameters that train in any phase, by their rate; one-dimensional ones do not decay.

    The rate is that of the first phase in which a parameter trains.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        setting = next((plan.trained[id(parameter)] for plan in plans if id(parameter) in plan.trained), None)
        if setting is not None:
            decay = weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((lr * setting.rate, decay), []).append(parameter)
    return [{"params": members, "lr": rate, "weight_decay": decay} for (rate, decay), members in groups.items()]
