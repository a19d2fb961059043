"""A policy at work on a network: with Trainer through `PolicyCallback`, in any other loop by hand."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from hf_tl.architectures import has_running_statistics, inner_network, is_transformers
from hf_tl.errors import InputError
from hf_tl.layers import Layer, Layers
from hf_tl.names import is_inside
from hf_tl.policies.phases import Progress, phase_at
from hf_tl.policies.plan import Plan
from hf_tl.policies.prefix_cache import PrefixCache
from hf_tl.policies.rates import LayerRates
from hf_tl.policies.reinit import draw_values, write_values


class AppliedPolicy:
    """A policy at work on one network.

    Made by `Policy.apply`. Reinitialised layers have their new values; what no phase trains does not require
    gradients; `advance` does the rest.

    Args:
        model: the network.
        layers: of it.
        plans: one for each phase.
        seed: of the fresh values of reinitialised layers.
        l2_sp: weight of the pull towards where the parameters started (L2-SP, Li et al., ICML 2018).
        relative_rates: whether each layer's rate goes with its relative gradient norm (Auto-RGN).
        build: makes a new network; for layers that cannot be reinitialised otherwise.

    Attributes:
        layers: of the network.
        plans: one for each phase.
        phase: the number of the phase that holds; None before the first `advance`.
        reinitialised: names of tensors with fresh values.
        may_train: whether each parameter requires gradients by what the policy has done last.

    Raises:
        InputError: layers that cannot be reinitialised, or quantised weights that would be tuned.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers,
        plans: Sequence[Plan],
        *,
        seed: int = 0,
        l2_sp: float = 0.0,
        relative_rates: bool = False,
        build: Callable[[], nn.Module] | None = None,
    ):
        self.model, self.layers, self.plans = model, layers, plans
        self.l2_sp, self.relative_rates = l2_sp, relative_rates
        self.phase: int | None = None
        self.reinitialised: list[str] = []
        self.may_train: dict[str, bool] = {}
        self._guard: EvalGuard | None = None
        self._rates: LayerRates | None = None
        self._cache: tuple[PrefixCache, int, int] | None = None
        self._anchors: dict[int, Tensor] = {}
        self._unassigned = unassigned_modules(model, layers)
        # by name: FSDP2 puts other parameters under the same names
        self._trained = [
            {name for name, parameter in model.named_parameters() if id(parameter) in plan.trained} for plan in plans
        ]
        for name in self.ever_trained:
            if not (parameter := model.get_parameter(name)).is_floating_point():
                raise InputError(
                    f"{name!r} holds {parameter.dtype}, quantised weights that cannot be tuned; freeze it"
                )
        chosen = [setting.layer for setting in plans[0].settings if setting.reinit]
        self._fresh = draw_values(model, chosen, seed=seed, build=build) if chosen else {}

    @property
    def ever_trained(self) -> set[str]:
        """Names of the parameters that any phase trains."""
        return set().union(*self._trained)

    @property
    def plan(self) -> Plan:
        """What holds now."""
        return self.plans[self.phase or 0]

    @property
    def changes(self) -> bool:
        """Whether what trains differs between phases."""
        return any(names != self._trained[0] for names in self._trained)

    @property
    def has_rates(self) -> bool:
        """Whether steps of the optimizer have to be changed."""
        scaled = any(setting.rate != 1.0 for plan in self.plans for setting in plan.settings)
        return scaled or self.relative_rates or self.l2_sp > 0

    def start(self, *, reinit: bool = True) -> None:
        """Takes gradients away from what no phase trains, and leaves them to all that any phase trains.

        Args:
            reinit: whether layers are reinitialised now; otherwise `reinitialise` does it later.
        """
        ever = self.ever_trained
        for name, parameter in self.model.named_parameters():
            if self.l2_sp and name in ever and name not in self._fresh:
                self._anchors[id(parameter)] = parameter.detach().clone()
        self._require_gradients(ever)
        for warning in dict.fromkeys(warning for plan in self.plans for warning in plan.warnings()):
            warnings.warn(warning, stacklevel=3)
        if reinit:
            self.reinitialise()

    def reinitialise(self) -> None:
        """Gives the reinitialised layers their fresh values, once."""
        if self._fresh:
            write_values(self.model, self._fresh)
            self.reinitialised, self._fresh = list(self._fresh), {}

    def advance(self, *, step: int = 0, epoch: float = 0.0, history: Sequence[Mapping[str, float]] = ()) -> bool:
        """Call it before each step: enters the phase that holds; true if that is another one.

        Args:
            step: optimizer steps that are done.
            epoch: epochs that are done, with their fraction.
            history: evaluations so far, for phases that wait for a plateau; see `Progress`.
        """
        several = len(self.plans) > 1
        now = phase_at([plan.start for plan in self.plans], Progress(step, epoch, history)) if several else 0
        if self._guard is None:
            self._guard = EvalGuard(self.model)
            self.phase = None
        if now == self.phase:
            return False
        self.phase = now
        self._require_gradients(self._trained[now])
        self._guard.modules = eval_modules(self.model, self.plan, self._unassigned)
        if self._rates is not None:
            self._rates.plan = self.plan
        stop_backward(self.model, self.plan)
        self._begin_cache()
        return True

    def _require_gradients(self, names: set[str]) -> None:
        for name, parameter in self.model.named_parameters():
            if parameter.is_floating_point():
                self.may_train[name] = name in names
                parameter.requires_grad_(name in names)
                if name not in names:
                    parameter.grad = None  # an optimizer that has its state would go on moving it

    def attach(self, optimizer: Optimizer) -> None:
        """Gives the optimizer the rates of the layers, and the pull of L2-SP, in each of its steps from now on.

        Its groups may be any; do not use those of `Policy.param_groups`, which have the rates in them.
        """
        if self._rates is not None:
            self._rates.remove()
        self._rates = LayerRates(
            optimizer, self.plan, relative=self.relative_rates, pull=self.l2_sp, anchors=self._anchors
        )

    def use_cache(self, cache: PrefixCache, *, n_samples: int, ranks: int = 1) -> None:
        """Keeps the output of the frozen prefix on each sample, in this and in all later phases.

        Args:
            cache: an own one for each network.
            n_samples: of the training set.
            ranks: processes among which its samples are dealt out anew in each epoch.
        """
        self._cache = (cache, n_samples, ranks)
        if self.phase is not None:
            self._begin_cache()

    def _begin_cache(self) -> None:
        if self._cache is not None:
            cache, n_samples, ranks = self._cache
            cache.begin(self.model, self.plan, n_samples=n_samples, ranks=ranks)

    def remove(self) -> None:
        """Takes all hooks away; what requires gradients stays."""
        if self._guard is not None:
            self._guard.handle.remove()
        if self._rates is not None:
            self._rates.remove()
        if self._cache is not None:
            self._cache[0].end()
        self._guard = self._rates = self._cache = None


class EvalGuard:
    """Keeps modules in eval mode as a network begins its forward pass, whatever `train()` did to them.

    A hook on the whole network, because dropout is often a function that reads the mode of the module around it, and
    because Trainer calls `model.train()` within each step, after the last hook of a callback.
    """

    def __init__(self, model: nn.Module):
        self.modules: list[nn.Module] = []
        self.handle: RemovableHandle = model.register_forward_pre_hook(self)

    def __call__(self, model: nn.Module, args: tuple) -> None:
        """As the network begins."""
        for module in self.modules:
            module.training = False


def eval_modules(model: nn.Module, plan: Plan, unassigned: Mapping[Layer, Sequence[nn.Module]]) -> list[nn.Module]:
    """The modules that a plan keeps in eval mode.

    With the modules of frozen layers go those around them that hold no other parameters (an encoder whose layers all
    are frozen, for the sake of layer drop), and the parameterless ones that run right after them.
    """
    stays: dict[nn.Module, bool] = {}
    for setting in plan.settings:
        for root in (*(module for _, module in setting.layer.modules), *unassigned.get(setting.layer, ())):
            for inner in root.modules():
                stays[inner] = setting.norm == "eval" if has_running_statistics(inner) else setting.dropout == "off"
    steady = {id(p) for setting in plan.settings if setting.dropout == "off" for p in setting.layer.parameters()}
    for module in model.modules():
        held = [id(parameter) for parameter in module.parameters()]
        stays.setdefault(module, bool(held) and steady.issuperset(held))
    return [module for module, stay in stays.items() if stay]


def unassigned_modules(model: nn.Module, layers: Layers) -> dict[Layer, list[nn.Module]]:
    """Modules without parameters that run outside all layers (a dropout between two), by the layer before them."""
    parents = {name: layer for layer in layers for name, _ in layer.modules}
    modules = dict(inner_network(model).named_modules())
    before, found = layers[0], dict[Layer, list[nn.Module]]()
    for name in layers.run_order:
        parent = next((layer for own, layer in parents.items() if is_inside(name, [own])), None)
        if parent is not None:
            before = parent
        elif next(modules[name].parameters(), None) is None:
            found.setdefault(before, []).append(modules[name])
    return found


def checkpoint_functions(model: nn.Module) -> list[Callable]:
    """The functions by which parts of a transformers network are checkpointed now."""
    parts = (vars(module) for module in model.modules())  # there is no public way to the function
    return [part["_gradient_checkpointing_func"] for part in parts if part.get("gradient_checkpointing")]


def stop_backward(model: nn.Module, plan: Plan) -> None:
    """Lets backward stop at the lowest layer that trains, also where activations are checkpointed.

    transformers makes the outputs of embeddings require gradients when checkpointing is switched on, so that backward
    runs through every frozen layer. With use_reentrant=False that is needed for nothing.

    Raises:
        InputError: the stem is frozen and checkpointing is reentrant, which would lose all gradients.
    """
    functions = checkpoint_functions(model)
    if not functions or not any(layer.owned for layer in plan.frozen_prefix()):
        return
    if any(isinstance(one, functools.partial) and one.keywords.get("use_reentrant") for one in functions):
        raise InputError(
            "reentrant gradient checkpointing over frozen layers loses gradients; "
            "set gradient_checkpointing_kwargs={'use_reentrant': False}"
        )
    for part in model.modules():
        if is_transformers(part):
            part.disable_input_require_grads()
