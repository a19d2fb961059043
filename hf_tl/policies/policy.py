"""A policy: what is frozen, tuned and reinitialised, layer by layer and phase by phase."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from hf_tl.errors import InputError
from hf_tl.example import dummy_batch
from hf_tl.layers import Layers, list_layers
from hf_tl.policies.applied import AppliedPolicy
from hf_tl.policies.dry_run import DryRun
from hf_tl.policies.grammar import Clause, parse_policy
from hf_tl.policies.phases import At, Progress, check_order, phase_at
from hf_tl.policies.plan import Plan, make_plan
from hf_tl.policies.rates import group_parameters
from hf_tl.policies.schedules import Gradual, Schedule, TopK
from hf_tl.trace import Batch


@dataclass(frozen=True)
class Policy:
    """What is done with the layers of any network: a pure function of (layers, progress).

    Attributes:
        text: clauses that hold all the time, such as "freeze: ..50%; reinit: -2.., head; lr: decay 0.8"; for the
            language see `hf_tl.policies.grammar`.
        phases: clauses that hold for a time, which are read after those of `text`; or a function that makes the
            phases for the layers of a network. Only `text` may reinitialise.
        seed: of the values of reinitialised layers.
        l2_sp: strength of the pull of tuned layers back to where they started (L2-SP, Li et al., ICML 2018): the
            gradient of l2_sp / 2 * ||w - w0||^2 is added. Reinitialised layers are free of it.
        relative_rates: whether each layer's rate is also scaled by its gradient norm over its weight norm, relative to
            the largest among the layers (Auto-RGN, Lee et al., ICLR 2023), at each step.

    Raises:
        InputError: text that is malformed, phases out of order, a negative strength.
    """

    text: str = ""
    phases: Sequence[At] | Schedule = ()
    seed: int = 0
    l2_sp: float = 0.0
    relative_rates: bool = False

    def __post_init__(self):
        parse_policy(self.text)
        if isinstance(self.phases, Sequence) and self.phases:
            check_order(self.phases)
            for phase in self.phases:
                _parse_phase(phase)
        if not self.phases and not self.text.strip() and not self.l2_sp and not self.relative_rates:
            raise InputError("the policy says nothing; write what to freeze, tune or reinit: 'freeze: ..50%'")
        if self.l2_sp < 0:
            raise InputError(f"l2_sp should be at least 0, got {self.l2_sp}")

    def __add__(self, other: Policy) -> Policy:
        """Both: the clauses of one, then those of the other. At most one may have phases."""
        if self.phases and other.phases:
            raise InputError("both policies have phases; at most one of those that are added may")
        seeds = {policy.seed for policy in (self, other) if policy.seed}
        if len(seeds) > 1:
            raise InputError(f"the policies have seeds {self.seed} and {other.seed}; give both the same")
        return Policy(
            "; ".join(text for text in (self.text, other.text) if text.strip()),
            self.phases or other.phases,
            seed=next(iter(seeds), 0),
            l2_sp=self.l2_sp + other.l2_sp,
            relative_rates=self.relative_rates or other.relative_rates,
        )

    def for_layers(self, layers: Layers) -> Policy:
        """The policy with its phases written out for the layers of a network."""
        if isinstance(self.phases, Sequence):
            return self
        return replace(self, phases=tuple(self.phases(layers)))

    def plans(self, layers: Layers) -> list[Plan]:
        """What is done with each of a network's layers in each phase.

        Raises:
            InputError: a selection that names nothing in this network, a phase in which nothing trains, a layer
                that is reinitialised and never trains, tied parameters that are half frozen.
        """
        policy = self.for_layers(layers)
        common = _expanded(parse_policy(policy.text), layers)
        phases = policy.phases or (At("0", ""),)
        plans = [
            make_plan(layers, (*common, *_parse_phase(phase, layers)), alone=len(phases) == 1) for phase in phases
        ]
        for phase, plan in zip(phases, plans, strict=True):
            if not plan.trained:
                where = f" from {phase.when!r} on" if len(phases) > 1 else ""
                names = ", ".join(repr(layer.name) for layer in layers if layer.n_parameters)
                raise InputError(f"nothing trains{where}; leave something to tune, one of {names}")
        for number, setting in enumerate(plans[0].settings):
            if setting.reinit and not any(plan.settings[number].trains for plan in plans):
                raise InputError(
                    f"{setting.layer.name!r} is both frozen and reinitialised, and would stay random; "
                    f"leave it out of 'freeze', or add it to 'tune'"
                )
        return plans

    def plan(self, layers: Layers, progress: Progress | None = None) -> Plan:
        """What is done with each of a network's layers at this point of its training; no progress is the start."""
        policy = self.for_layers(layers)
        return policy.plans(layers)[phase_at(policy.phases, progress or Progress()) if policy.phases else 0]

    def apply(
        self,
        model: nn.Module,
        *,
        example: Batch | None = None,
        blocks: Sequence[str] | None = None,
        build: Callable[[], nn.Module] | None = None,
    ) -> AppliedPolicy:
        """Puts the policy to work on a network, for a training loop of your own.

        The first phase holds at once; call `advance` of what is returned before each step if there are others.

        Args:
            model: a network, changed in place.
            example: what it is called with; see `list_layers`.
            blocks: names of the modules that are its blocks; see `list_layers`.
            build: makes a new network, for reinitialised layers; see `reinit_layers`.

        Raises:
            InputError: the policy does not fit the network; nothing has changed then.
        """
        applied = self.prepare(model, example=example, blocks=blocks, build=build)
        applied.start()
        applied.advance()
        return applied

    def prepare(
        self,
        model: nn.Module,
        *,
        example: Batch | None = None,
        blocks: Sequence[str] | None = None,
        build: Callable[[], nn.Module] | None = None,
    ) -> AppliedPolicy:
        """The same before anything has changed: `start` reinitialises, `advance` enters the phase that holds.

        Args:
            model: a network.
            example: what it is called with; see `list_layers`.
            blocks: names of the modules that are its blocks; see `list_layers`.
            build: makes a new network; for layers that cannot be reinitialised otherwise.
        """
        example = dummy_batch(model, n=1) if example is None else example
        layers = list_layers(model, example=example, blocks=blocks)
        return AppliedPolicy(
            model,
            layers,
            plans=self.plans(layers),
            phases=self.for_layers(layers).phases,
            example=example,
            seed=self.seed,
            l2_sp=self.l2_sp,
            relative_rates=self.relative_rates,
            build=build,
        )

    def param_groups(
        self,
        model: nn.Module,
        *,
        lr: float,
        weight_decay: float = 0.0,
        example: Batch | None = None,
        blocks: Sequence[str] | None = None,
    ) -> list[dict]:
        """Groups for an optimizer with the rates of the policy, which they keep through all phases.

        Args:
            model: a network.
            lr: the rate of a layer that the policy gives no other.
            weight_decay: of parameters with two and more axes.
            example: what the network is called with; see `list_layers`.
            blocks: names of the modules that are its blocks; see `list_layers`.

        Raises:
            InputError: rates that change from phase to phase, or with the gradients.
        """
        layers = list_layers(model, example=example, blocks=blocks)
        plans = self.plans(layers)
        moving = any(len({plan.settings[i].rate for plan in plans}) > 1 for i in range(len(layers)))
        if moving or self.relative_rates or self.l2_sp:
            raise InputError(
                "groups cannot hold rates that change with the phase or the gradients, nor L2-SP; "
                "give the optimizer plain groups and call .attach(optimizer) on what apply returned"
            )
        return group_parameters(model, plans, lr=lr, weight_decay=weight_decay)

    @classmethod
    def gradual(cls, *, every: int = 1, unit: str = "epoch", blocks: int = 1, text: str = "") -> Policy:
        """Gradual unfreezing (ULMFiT, Howard and Ruder, ACL 2018, section 3.3): the head first, then block by block.

        Args:
            every: length of a phase in units.
            unit: "epoch" or "step".
            blocks: how many blocks are added with each phase.
            text: clauses that hold in every phase, such as "lr: decay 0.4".

        Raises:
            InputError: a length below 1, or another unit.
        """
        if unit not in ("epoch", "step"):
            raise InputError(f"unit should be 'epoch' or 'step', got {unit!r}")
        if every < 1 or blocks < 1:
            raise InputError(f"every and blocks should be at least 1, got {every} and {blocks}")
        return cls(text, Gradual(every, unit, blocks))

    @classmethod
    def lp_ft(cls, *, probe: str, rate: float = 1.0, text: str = "") -> Policy:
        """A linear probe, then fine-tuning of everything (LP-FT, Kumar et al., ICLR 2022).

        Args:
            probe: how long the head trains alone: "2 epochs", "100 steps" or "plateau eval_loss 2".
            rate: the learning rate of fine-tuning in units of the probe's.
            text: clauses that hold in both phases.
        """
        return cls(text, (At("0", "tune: head"), At(probe, f"tune: all; lr: x{rate!r}")))

    @classmethod
    def surgical(cls, selection: str) -> Policy:
        """Only the layers of a selection are tuned (surgical fine-tuning, Lee et al., ICLR 2023)."""
        return cls(f"tune: {selection}")

    @classmethod
    def top_k(cls, k: int) -> Policy:
        """The last k blocks, the norm and the head are tuned."""
        if k < 0:
            raise InputError(f"k should be at least 0 blocks, got {k}")
        return cls("", TopK(k))

    @classmethod
    def auto_rgn(cls, text: str = "tune: all") -> Policy:
        """The policy of `text`, each layer at a rate in proportion to its relative gradient norm.

        Auto-RGN (Lee et al., ICLR 2023).
        """
        return cls(text, relative_rates=True)

    def dry_run(
        self,
        model: nn.Module | Layers,
        *,
        lr: float = 1.0,
        example: Batch | None = None,
        blocks: Sequence[str] | None = None,
    ) -> DryRun:
        """What the policy would do, without doing it: `print` it, or `draw` it.

        Args:
            model: a network, or its layers.
            lr: the optimizer's learning rate.
            example: what the network is called with; see `list_layers`.
            blocks: names of the modules that are its blocks; see `list_layers`.
        """
        layers = model if isinstance(model, Layers) else list_layers(model, example=example, blocks=blocks)
        policy = self.for_layers(layers)
        phases = [phase.when for phase in policy.phases] or ["0"]
        return DryRun(layers, tuple(phases), tuple(policy.plans(layers)), lr)


def _expanded(clauses: Sequence[Clause], layers: Layers) -> tuple[Clause, ...]:
    return tuple(own for clause in clauses for own in clause.expanded(layers))


def _parse_phase(phase: At, layers: Layers | None = None) -> tuple[Clause, ...]:
    """The clauses of a phase; for a network, with those that plug-ins make."""
    clauses = parse_policy(phase.text)
    clauses = clauses if layers is None else _expanded(clauses, layers)
    if any(clause.verb == "reinit" for clause in clauses):
        raise InputError(
            f"phase {phase.when!r} reinitialises, which happens once, before training; "
            f"move 'reinit' to the text of the policy"
        )
    return clauses
