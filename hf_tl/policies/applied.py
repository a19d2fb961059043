"""A policy at work on a network: with Trainer through `PolicyCallback`, in any other loop by hand."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn
from torch.optim import Optimizer

from hf_tl.errors import InputError
from hf_tl.layers import Layers
from hf_tl.policies.checkpointing import stop_backward
from hf_tl.policies.freezing import EvalGuard, still_modules, stray_modules
from hf_tl.policies.phases import At, Progress, phase_at
from hf_tl.policies.plan import Plan
from hf_tl.policies.prefix_cache import PrefixCache
from hf_tl.policies.rates import LayerRates
from hf_tl.policies.reinit import reinit_layers
from hf_tl.trace import Batch


class AppliedPolicy:
    """A policy at work on one network.

    Made by `Policy.apply`. Reinitialised layers have their new values; what no phase trains does not require
    gradients; `advance` does the rest.

    Args:
        model: the network.
        layers: of it.
        plans: one for each phase.
        phases: when each begins.
        example: what the network is called with.
        seed: of the fresh values of reinitialised layers.
        l2_sp: weight of the pull towards where the parameters started (L2-SP, Li et al., ICML 2018).
        relative_rates: whether each layer's rate goes with its relative gradient norm (Auto-RGN).
        build: makes a new network; for layers that cannot be reinitialised otherwise.

    Attributes:
        layers: of the network.
        plans: one for each phase.
        phase: the number of the phase that holds; None before the first `advance`.
        reinitialised: names of tensors with fresh values.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers,
        *,
        plans: Sequence[Plan],
        phases: Sequence[At],
        example: Batch,
        seed: int = 0,
        l2_sp: float = 0.0,
        relative_rates: bool = False,
        build: Callable[[], nn.Module] | None = None,
    ):
        self.model, self.layers, self.plans, self.phases = model, layers, plans, phases
        self.l2_sp, self.relative_rates = l2_sp, relative_rates
        self.phase: int | None = None
        self._guard: EvalGuard | None = None
        self._rates: LayerRates | None = None
        self._cache: tuple[PrefixCache, int, int] | None = None
        self._seed, self._build = seed, build
        self._anchors: dict[int, Tensor] = {}
        self._strays = stray_modules(model, layers, example)
        # by name: FSDP2 puts other parameters under the same names
        self._trained = [
            {name for name, parameter in model.named_parameters() if id(parameter) in plan.trained}
            for plan in self.plans
        ]
        ever = {own for plan in self.plans for own in plan.trained}
        for name, parameter in model.named_parameters():
            if id(parameter) in ever and not parameter.is_floating_point():
                raise InputError(
                    f"{name!r} holds {parameter.dtype}, quantised weights that cannot be tuned; freeze it"
                )
        self.reinitialised: list[str] = []

    def start(self) -> None:
        """Reinitialises; frees what no phase trains of gradients, and leaves them to all that any phase trains.

        Raises:
            InputError: layers that cannot be reinitialised; nothing has changed then.
        """
        chosen = [setting.layer for setting in self.plans[0].settings if setting.reinit]
        if chosen:
            self.reinitialised = reinit_layers(self.model, chosen, seed=self._seed, build=self._build)
        ever = {own for plan in self.plans for own in plan.trained}
        if self.l2_sp:
            new = {id(parameter) for layer in chosen for parameter in layer.parameters()}
            pulled = [parameter for parameter in self.model.parameters() if id(parameter) in ever - new]
            self._anchors = {id(parameter): parameter.detach().clone() for parameter in pulled}
        for parameter in self.model.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(id(parameter) in ever)
        for warning in dict.fromkeys(warning for plan in self.plans for warning in plan.warnings()):
            warnings.warn(warning, stacklevel=3)

    @property
    def plan(self) -> Plan:
        """What holds now."""
        return self.plans[self.phase or 0]

    @property
    def changes(self) -> bool:
        """Whether what trains differs between phases."""
        return any(set(plan.trained) != set(self.plans[0].trained) for plan in self.plans)

    @property
    def has_rates(self) -> bool:
        """Whether steps of the optimizer have to be changed."""
        scaled = any(setting.rate != 1.0 for plan in self.plans for setting in plan.settings)
        return scaled or self.relative_rates or self.l2_sp > 0

    def advance(self, *, step: int = 0, epoch: float = 0.0, history: Sequence[Mapping] = ()) -> bool:
        """Call it before each step: enters the phase that holds; true if that is another one.

        Args:
            step: optimizer steps that are done.
            epoch: epochs that are done, with their fraction.
            history: evaluations so far, for phases that wait for a plateau; see `Progress`.
        """
        now = phase_at(self.phases, Progress(step, epoch, history)) if self.phases else 0
        if self._guard is None:
            self._guard = EvalGuard(self.model)
            self.phase = None
        if now == self.phase:
            return False
        self.phase = now
        for name, parameter in self.model.named_parameters():
            if parameter.is_floating_point():
                trains = name in self._trained[now]
                parameter.requires_grad_(trains)
                if not trains:
                    parameter.grad = None  # an optimizer that has its state would go on moving it
        self._guard.still = still_modules(self.model, self.plan, self._strays)
        if self._rates is not None:
            self._rates.plan = self.plan
        stop_backward(self.model, self.plan)
        self._begin_cache()
        return True

    def attach(self, optimizer: Optimizer) -> None:
        """Gives the optimizer the rates of the layers, and the pull of L2-SP, in each of its steps from now on.

        Its groups may be any; do not use those of `Policy.param_groups`, which have the rates in them.
        """
        if self._rates is not None:
            self._rates.remove()
        self._rates = LayerRates(
            optimizer,
            self.plan,
            relative=self.relative_rates,
            pull=self.l2_sp,
            anchors=self._anchors,
        )

    def use_cache(self, cache: PrefixCache, *, rows: int, ranks: int = 1) -> None:
        """Keeps what the frozen prefix makes of each row, in this and in all later phases.

        Args:
            cache: an own one for each network.
            rows: of the training set.
            ranks: processes among which its rows are dealt out anew in each epoch.
        """
        self._cache = (cache, rows, ranks)
        if self.phase is not None:
            self._begin_cache()

    def _begin_cache(self) -> None:
        if self._cache is not None:
            cache, rows, ranks = self._cache
            cache.begin(self.model, self.plan, rows=rows, ranks=ranks)

    def remove(self) -> None:
        """Takes all hooks away; what requires gradients stays."""
        if self._guard is not None:
            self._guard.remove()
        if self._rates is not None:
            self._rates.remove()
        if self._cache is not None:
            self._cache[0].end()
        self._guard = self._rates = self._cache = None
