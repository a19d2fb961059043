"""A policy in one line of a training script: `Trainer(..., callbacks=[PolicyCallback("freeze: ..50%")])`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence, Sized
from typing import Protocol, runtime_checkable
from weakref import WeakKeyDictionary, ref

from torch import nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_tl.errors import InputError
from hf_tl.policies.applied import AppliedPolicy
from hf_tl.policies.checkpointing import checkpoints
from hf_tl.policies.dry_run import DryRun
from hf_tl.policies.fingerprint import KEY, check_fingerprint, fingerprint, read_fingerprint
from hf_tl.policies.policy import Policy
from hf_tl.policies.prefix_cache import PrefixCache
from hf_tl.trace import Batch


@runtime_checkable
class _Wrapped(Protocol):
    """accelerate's wrapper of an optimizer."""

    optimizer: Optimizer


@runtime_checkable
class _Loader(Protocol):
    dataset: object


_HOLDERS: WeakKeyDictionary[nn.Module, ref[PolicyCallback]] = WeakKeyDictionary()  # the last to be given each model


class PolicyCallback(TrainerCallback):
    """Freezes, tunes and reinitialises the layers of the model of a Trainer.

    Give it to the Trainer as it is built. Everything else, the arguments, the optimizer, the scheduler, resuming from
    a checkpoint, stays as it was.

    Args:
        policy: or its text.
        seed: of reinitialised layers; that of the policy by default.
        example: what the model is called with, if that cannot be made up; see `list_layers`.
        blocks: names of the modules that are its blocks, if they are not found; see `list_layers`.
        build: makes a new model, for reinitialised layers; see `reinit_layers`.
        cache: keeps the activations of the frozen layers from epoch to epoch; none by default.

    Attributes:
        applied: the policy at work, once the Trainer is built.
    """

    def __init__(
        self,
        policy: Policy | str,
        *,
        seed: int | None = None,
        example: Batch | None = None,
        blocks: Sequence[str] | None = None,
        build: Callable[[], nn.Module] | None = None,
        cache: PrefixCache | None = None,
    ):
        policy = Policy(policy) if isinstance(policy, str) else policy
        if not isinstance(policy, Policy):
            raise InputError(f"a policy should be its text or a Policy, got {type(policy).__name__}")
        if seed is not None:
            policy = Policy(policy.text, policy.phases, seed, policy.l2_sp, policy.relative_rates)
        self.policy, self.example, self.blocks, self.build = policy, example, blocks, build
        self.cache = cache
        self.applied: AppliedPolicy | None = None
        self._lr = 1.0

    def dry_run(self) -> DryRun:
        """What happens to which layer when, for the model and the learning rate of the Trainer."""
        if self.applied is None:
            raise InputError("the callback belongs to no Trainer yet; use policy.dry_run(model)")
        when = [phase.when for phase in self.applied.phases] or ["0"]
        return DryRun(self.applied.layers, tuple(when), tuple(self.applied.plans), self._lr)

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs
    ) -> None:
        """Reinitialises, before a checkpoint is resumed; takes what never trains out of the optimizer to come."""
        self.applied = self.policy.prepare(model, example=self.example, blocks=self.blocks, build=self.build)
        self._refuse(args)
        if args.resume_from_checkpoint:  # where it stands in the arguments, before torch sees other parameters
            check_fingerprint(read_fingerprint(args.resume_from_checkpoint), self._fingerprint())
        self._lr = args.learning_rate
        self.applied.start()
        _HOLDERS[model] = ref(self)  # a callback holds its model, which would never be freed

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        optimizer: Optimizer | _Wrapped | None = None,
        train_dataloader: _Loader | None = None,
        **kwargs,
    ) -> None:
        """Enters the phase that holds, which after a resume need not be the first."""
        if self.applied is None:
            raise InputError(
                "PolicyCallback came after the Trainer was built, too late for its optimizer; "
                "write Trainer(..., callbacks=[PolicyCallback(...)])"
            )
        if self.applied.model is not model:
            raise InputError(
                "the Trainer builds another model in train(), by model_init, than the one that the policy holds for; "
                "write Trainer(model=model_init(), ...)"
            )
        if _HOLDERS[model]() is not self:
            raise InputError(
                "the model has a later PolicyCallback; give a Trainer one of Policy(...) + Policy(...), and train "
                "the Trainer that was built last"
            )
        self._refuse_unused(args)
        own = self._fingerprint()
        check_fingerprint(state.stateful_callbacks.get(KEY), own)
        state.stateful_callbacks[KEY] = own  # in every checkpoint from now on
        self.applied.remove()
        if optimizer is not None and self.applied.has_rates:
            self.applied.attach(optimizer.optimizer if isinstance(optimizer, _Wrapped) else optimizer)
        if self.cache is not None and train_dataloader is not None and isinstance(train_dataloader.dataset, Sized):
            self.applied.use_cache(self.cache, rows=len(train_dataloader.dataset), ranks=args.world_size)
        self._advance(state)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Enters the next phase when its time has come."""
        self._advance(state)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Takes the hooks away."""
        if self.applied is not None:
            self.applied.remove()

    def _fingerprint(self) -> list[str]:
        return fingerprint(
            self.applied.layers,
            text=self.policy.text,
            phases=self.applied.phases,
            seed=self.policy.seed,
            l2_sp=self.policy.l2_sp,
            relative_rates=self.policy.relative_rates,
        )

    def _advance(self, state: TrainerState) -> None:
        self.applied.advance(step=state.global_step, epoch=state.epoch or 0.0, history=state.log_history)

    def _refuse(self, args: TrainingArguments) -> None:
        """What is not supported is said before anything is trained."""
        dynamic = "phases that change what trains" if self.applied.changes else None
        hooked = dynamic or ("rates by layer" if self.applied.has_rates else None)
        if args.deepspeed and hooked:
            raise InputError(
                f"DeepSpeed owns the optimizer and cannot have {hooked}; use a policy of one phase without lr, or DDP"
            )
        if (args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false") == "true") and hooked:
            raise InputError(
                f"FSDP reshapes the parameters and cannot have {hooked}; use a policy of one phase without lr, or DDP"
            )
        fused = str(args.optim).lower()
        if self.applied.has_rates and ("layerwise" in fused or "lomo" in fused):
            raise InputError(
                f"optim={args.optim!s} steps within backward and cannot have rates by layer; use adamw_torch"
            )
        waiting = [phase for phase in self.applied.phases if phase.metric.startswith("eval_")]
        if waiting and args.eval_strategy == "no":
            raise InputError(
                f"phase {waiting[0].when!r} waits for evaluations, and there are none; "
                f"set eval_strategy='epoch', or 'steps' with eval_steps"
            )
        if dynamic and args.ddp_find_unused_parameters is False:
            raise InputError(f"ddp_find_unused_parameters=False cannot have {dynamic}; leave it out, which finds them")

    def _refuse_unused(self, args: TrainingArguments) -> None:
        found = args.ddp_find_unused_parameters or not checkpoints(self.applied.model)
        if self.applied.changes and args.world_size > 1 and not found:
            raise InputError(
                "with gradient checkpointing, Trainer does not look for unused parameters under DDP, which phases "
                "need; set ddp_find_unused_parameters=True, or leave gradient checkpointing out"
            )
