"""A policy: what is frozen, tuned and reinitialised, layer by layer and phase by phase."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import nn

from hf_tl.architectures import unwrapped
from hf_tl.errors import InputError
from hf_tl.layers import Layers, list_layers
from hf_tl.policies.applied import AppliedPolicy
from hf_tl.policies.grammar import Clause, expand, parse_policy
from hf_tl.policies.phases import (
    Phase,
    PhaseStart,
    Progress,
    Schedule,
    parse_phases,
    phase_at,
    tune_top,
    unfreeze_gradually,
)
from hf_tl.policies.plan import DryRun, Plan, make_plan
from hf_tl.policies.rates import group_parameters
from hf_tl.trace import Batch


@dataclass(frozen=True)
class Policy:
    """What is done with the layers of any network: a pure function of (layers, progress).

    Attributes:
        text: clauses that hold all the time, such as "freeze: ..50%; reinit: -2.., head; lr: decay 0.8"; for the
            language see `hf_tl.policies.grammar`.
        phases: pairs of when a phase begins and the clauses that hold from then on, which are read after those of
            `text`: ("0", "tune: head"), ("2 epochs", "tune: all"), for the moments see `parse_start` in
            `hf_tl.policies.phases`; or a function that makes them for the layers of a network. Only `text` may
            reinitialise.
        seed: of the values of reinitialised layers.
        l2_sp: strength of the pull of tuned layers back to where they started (L2-SP, Li et al., ICML 2018): the
            gradient of l2_sp / 2 * ||w - w0||^2 is added. Reinitialised layers are free of it.
        relative_rates: whether each layer's rate is also scaled by its gradient norm over its weight norm, relative to
            the largest among the layers (Auto-RGN, Lee et al., ICLR 2023), at each step.

    Raises:
        InputError: text that is malformed, phases out of order, a negative strength.
    """

    text: str = ""
    phases: Sequence[tuple[str, str]] | Schedule = ()
    seed: int = 0
    l2_sp: float = 0.0
    relative_rates: bool = False
    clauses: tuple[Clause, ...] = field(init=False, repr=False, compare=False)
    parsed_phases: tuple[Phase, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "clauses", parse_policy(self.text))
        object.__setattr__(self, "parsed_phases", () if callable(self.phases) else parse_phases(self.phases))
        if not self.phases and not self.clauses and not self.l2_sp and not self.relative_rates:
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

    def plans(self, layers: Layers) -> list[Plan]:
        """What is done with each of a network's layers in each phase.

        Raises:
            InputError: a selection that names nothing in this network, a phase in which nothing trains, a layer
                that is reinitialised and never trains, tied parameters that are half frozen.
        """
        phases = self._phases(layers) or (Phase(PhaseStart("0")),)
        common = _expanded(self.clauses, layers)
        plans = []
        for phase in phases:
            own = _expanded(phase.clauses, layers)
            if any(clause.action == "reinit" for clause in own):
                raise InputError(
                    f"phase {phase.start.when!r} reinitialises, which happens once, before training; "
                    f"move 'reinit' to the text of the policy"
                )
            plan = make_plan(phase.start, (*common, *own), layers, single=len(phases) == 1)
            if not plan.trained:
                where = f" from {phase.start.when!r} on" if len(phases) > 1 else ""
                names = ", ".join(repr(layer.name) for layer in layers if layer.n_parameters)
                raise InputError(f"nothing trains{where}; leave something to tune, one of {names}")
            plans.append(plan)
        for settings in zip(*(plan.settings for plan in plans), strict=True):
            if settings[0].reinit and not any(setting.trains for setting in settings):
                raise InputError(
                    f"{settings[0].layer.name!r} is both frozen and reinitialised, and would stay random; "
                    f"leave it out of 'freeze', or add it to 'tune'"
                )
        return plans

    def plan(self, layers: Layers, progress: Progress | None = None) -> Plan:
        """What is done with each of a network's layers at this point of its training; no progress is the start."""
        plans = self.plans(layers)
        return plans[phase_at([plan.start for plan in plans], progress or Progress())]

    def statements(self, layers: Layers) -> list[str]:
        """Everything that decides what the policy does to a network, one statement after the other."""
        found = [clause.statement for clause in self.clauses]
        for phase in self._phases(layers):
            when = f"from {phase.start.when}"
            found += [f"{when}: {clause.statement}" for clause in phase.clauses] + [when]
        if any(clause.action == "reinit" for clause in self.clauses):
            found.append(f"seed={self.seed}")
        found += [f"l2_sp={self.l2_sp!r}"] * bool(self.l2_sp)
        found += ["relative_rates=True"] * self.relative_rates
        return found + [f"layer {layer.name!r}" for layer in layers]

    def _phases(self, layers: Layers) -> tuple[Phase, ...]:
        return parse_phases(self.phases(layers)) if callable(self.phases) else self.parsed_phases

    def apply(
        self,
        model: nn.Module,
        *,
        example: Batch | None = None,
        blocks: Sequence[str] | None = None,
        build: Callable[[], nn.Module] | None = None,
        start: bool = True,
    ) -> AppliedPolicy:
        """Puts the policy to work on a network, for a training loop of your own.

        The first phase holds at once; call `advance` of what is returned before each step if there are others.

        Args:
            model: a network, changed in place.
            example: what it is called with; see `list_layers`.
            blocks: names of the modules that are its blocks; see `list_layers`.
            build: makes a new network, for reinitialised layers; see `reinit_layers`.
            start: whether it starts at once; otherwise nothing changes until `start` and `advance` are called.

        Raises:
            InputError: the policy does not fit the network; nothing has changed then.
        """
        model = unwrapped(model)
        layers = list_layers(model, example=example, blocks=blocks)
        applied = AppliedPolicy(
            model,
            layers,
            self.plans(layers),
            seed=self.seed,
            l2_sp=self.l2_sp,
            relative_rates=self.relative_rates,
            build=build,
        )
        if start:
            applied.start()
            applied.advance()
        return applied

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
        plans = self.plans(list_layers(model, example=example, blocks=blocks))
        moving = any([setting.rate for setting in plan.settings] != _rates(plans[0]) for plan in plans)
        if moving or self.relative_rates or self.l2_sp:
            raise InputError(
                "groups cannot hold rates that change with the phase or the gradients, nor L2-SP; "
                "give the optimizer plain groups and call .attach(optimizer) on what apply returned"
            )
        return group_parameters(model, plans, lr=lr, weight_decay=weight_decay)

    def dry_run(
        self,
        model: nn.Module | Layers,
        *,
        lr: float = 1.0,
        example: Batch | None = None,
        blocks: Sequence[str] | None = None,
    ) -> DryRun:
        """What the policy would do, without doing it: `print` it, or `plot` it.

        Args:
            model: a network, or its layers.
            lr: the optimizer's learning rate.
            example: what the network is called with; see `list_layers`.
            blocks: names of the modules that are its blocks; see `list_layers`.
        """
        layers = model if isinstance(model, Layers) else list_layers(model, example=example, blocks=blocks)
        return DryRun(layers, tuple(self.plans(layers)), lr)

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
        return cls(text, partial(unfreeze_gradually, every=every, unit=unit, blocks=blocks))

    @classmethod
    def lp_ft(cls, *, probe: str, rate: float = 1.0, text: str = "") -> Policy:
        """A linear probe, then fine-tuning of everything (LP-FT, Kumar et al., ICLR 2022).

        Args:
            probe: how long only the head trains: "2 epochs", "100 steps" or "plateau eval_loss 2".
            rate: the learning rate of fine-tuning in units of the probe's.
            text: clauses that hold in both phases.
        """
        return cls(text, (("0", "tune: head"), (probe, f"tune: all; lr: x{rate!r}")))

    @classmethod
    def surgical(cls, selection: str) -> Policy:
        """Only the layers of a selection are tuned (surgical fine-tuning, Lee et al., ICLR 2023)."""
        return cls(f"tune: {selection}")

    @classmethod
    def top_k(cls, k: int) -> Policy:
        """The last k blocks, the norm and the head are tuned."""
        if k < 0:
            raise InputError(f"k should be at least 0 blocks, got {k}")
        return cls("", partial(tune_top, k=k))

    @classmethod
    def auto_rgn(cls, text: str = "tune: all") -> Policy:
        """The policy of `text`, each layer at a rate in proportion to its relative gradient norm.

        Auto-RGN (Lee et al., ICLR 2023).
        """
        return cls(text, relative_rates=True)


def _expanded(clauses: Sequence[Clause], layers: Layers) -> tuple[Clause, ...]:
    return tuple(own for clause in clauses for own in (expand(clause, layers) if clause.plugin else (clause,)))


def _rates(plan: Plan) -> list[float]:
    return [setting.rate for setting in plan.settings]
