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
        self.whole: list[dict[str, Any]] | None = None
        self.handles = [
            optimizer.register_step_pre_hook(self._split),
            optimizer.register_step_post_hook(self._join),
        ]

    def remove(self) -> None:
        """Takes the hooks away."""
        for handle in self.handles:
            handle.remove()

    def _split(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        if self.whole is not None:  # the step before failed on its way
            optimizer.param_groups[:] = self.whole
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            if self.pull and parameter.grad is not None and id(parameter) in self.anchors:
                away = parameter.detach() - self.anchors[id(parameter)].to(parameter)
                parameter.grad.add_(away, alpha=self.pull)
        relative = relative_gradients(self.plan) if self.relative else {}
        self.whole = list(optimizer.param_groups)
        parts = []
        for group in self.whole:
            by_rate: dict[float, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                setting = self.plan.trained.get(id(parameter))
                rate = setting.rate * relative.get(setting.layer, 1.0) if setting is not None else 1.0
                by_rate.setdefault(rate, []).append(parameter)
            for rate, members in by_rate.items():
                parts.append({**group, "params": members, "lr": group["lr"] * rate})
        optimizer.param_groups[:] = parts

    def _join(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        if self.whole is None:
            return
        parts = iter(optimizer.param_groups)
        for group in self.whole:
            left = len(group["params"])
            while left:
                part = next(parts)
                left -= len(part["params"])
                kept = {key: value for key, value in part.items() if key not in ("params", "lr")}
                group.update(kept)  # what an optimizer counts in its groups
        optimizer.param_groups[:] = self.whole
        self.whole = None


def relative_gradients(plan: Plan) -> dict[Layer, float]:
    """Gradient norm over weight norm of each layer that trains, relative to the largest (Lee et al., ICLR 2023, 4)."""
    ratios = {}
    for setting in plan.settings:
        tuned = [p for p in setting.layer.parameters() if id(p) in plan.trained and p.grad is not None]
        if tuned:
            gradient = torch.stack([p.grad.detach().float().norm() for p in tuned]).norm()
            weight = torch.stack([p.detach().float().norm() for p in tuned]).norm()
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
