"""A policy in one line of a training script: `Trainer(..., callbacks=[PolicyCallback("freeze: ..50%")])`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, cast

from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import send_to_device
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_tl.errors import DummyInputError, InputError, in_one_line
from hf_tl.policies.applied import AppliedPolicy, checkpoint_functions
from hf_tl.policies.plan import DryRun
from hf_tl.policies.policy import Policy
from hf_tl.policies.prefix_cache import PrefixCache
from hf_tl.trace import Batch
from hf_tl.training import is_sharded, preserving_seeds, uses_fsdp


KEY = "hf_tl.policy"  # its place in a checkpoint's trainer_state.json; no class is called so, and Trainer leaves it


class PolicyCallback(TrainerCallback):
    """Freezes, tunes and reinitialises the layers of the model of a Trainer.

    Give it to the Trainer as it is built, a new one for each Trainer. Everything else, the arguments, the optimizer,
    the scheduler, resuming from a checkpoint, stays as it was. Layers are reinitialised as training begins, so that a
    Trainer that only evaluates or predicts does so with the model that it was given; under DeepSpeed alone, as the
    Trainer is built.

    Args:
        policy: or its text.
        seed: of reinitialised layers; that of the policy by default.
        example: what the model is called with; see `list_layers`. By default a dummy input, and where none can be
            made, the first samples of the Trainer's dataset: then the policy is at work from `train` on, and the
            optimizer holds the frozen parameters too, without moving them.
        blocks: names of the modules that are its blocks, if they are not found; see `list_layers`.
        build: makes a new model, for reinitialised layers; see `reinit_layers`.
        cache: keeps the activations of the frozen layers from epoch to epoch; none by default.

    Attributes:
        applied: the policy at work, once the Trainer is built; where there is no dummy input, once it trains.
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
        self.policy = policy if seed is None else replace(policy, seed=seed)
        self.example, self.blocks, self.build, self.cache = example, blocks, build, cache
        self.applied: AppliedPolicy | None = None
        self._postponed: DummyInputError | None = None
        self._lr = 1.0

    def dry_run(self) -> DryRun:
        """What happens to which layer when, for the model and the learning rate of the Trainer."""
        if self.applied is None:
            raise self._postponed or InputError("the callback belongs to no Trainer yet; use policy.dry_run(model)")
        return DryRun(self.applied.layers, tuple(self.applied.plans), self._lr)

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Takes what never trains out of the optimizer to come."""
        if self.applied is not None or self._postponed is not None:
            raise InputError("the PolicyCallback belongs to another Trainer; make a new one for each Trainer")
        if KEY in _kept(state):
            raise InputError("a Trainer takes one PolicyCallback; give it one of Policy(...) + Policy(...)")
        self._lr = args.learning_rate
        try:
            self.applied = self._apply(args, kwargs["model"], self.example)
        except DummyInputError as error:
            if is_sharded(args):  # later, parameters are in pieces
                raise
            self._postponed = error
            _kept(state)[KEY] = None
            return
        own = self.policy.statements(self.applied.layers)
        if args.resume_from_checkpoint:  # where it stands in the arguments, before torch sees other parameters
            check_statements(read_statements(args.resume_from_checkpoint), own)
        _kept(state)[KEY] = own
        self.applied.start(reinit=bool(args.deepspeed))  # whose parameters are in pieces that only it can write

    def _apply(self, args: TrainingArguments, model: nn.Module, example: Batch | None) -> AppliedPolicy:
        applied = self.policy.apply(model, example=example, blocks=self.blocks, build=self.build, start=False)
        _refuse_unsupported(args, applied)
        return applied

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Reinitialises, unless a checkpoint is resumed; enters the phase that holds, then not always the first."""
        model, optimizer, loader = kwargs["model"], kwargs.get("optimizer"), kwargs.get("train_dataloader")
        if self.applied is None and self._postponed is not None:
            example = first_batch(loader, model)
            if example is None:
                raise self._postponed
            self.applied = self._apply(args, model, example)
            self.applied.start(reinit=False)
        applied = self.applied
        if applied is None:
            raise InputError(
                "PolicyCallback came after the Trainer was built, too late for its optimizer; "
                "write Trainer(..., callbacks=[PolicyCallback(...)])"
            )
        if applied.model is not model:
            raise InputError(
                "the Trainer builds another model in train(), by model_init, than the one that the policy holds for; "
                "write Trainer(model=model_init(), ...)"
            )
        self._refuse_changed(model)
        unused = args.ddp_find_unused_parameters or not checkpoint_functions(model)
        if (applied.changes or self._postponed is not None) and args.world_size > 1 and not unused:
            need = "phases need" if self._postponed is None else "a policy without example=... needs"
            raise InputError(
                f"with gradient checkpointing, Trainer does not look for unused parameters under DDP, which {need}; "
                f"set ddp_find_unused_parameters=True, or leave gradient checkpointing out"
            )
        own = self.policy.statements(applied.layers)
        check_statements(_kept(state).get(KEY), own)
        _kept(state)[KEY] = own  # in every checkpoint from now on
        applied.remove()
        if state.global_step == 0:
            applied.reinitialise()
        if isinstance(optimizer, Optimizer) and applied.has_rates:
            applied.attach(optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer)
        if self.cache is not None and isinstance(loader, DataLoader) and isinstance(loader.dataset, Sized):
            applied.use_cache(self.cache, n_samples=len(loader.dataset), ranks=args.world_size)
        self.on_step_begin(args, state, control)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Enters the next phase when its time has come."""
        if self.applied is not None:
            self.applied.advance(step=state.global_step, epoch=state.epoch or 0.0, history=state.log_history)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Takes the hooks away."""
        if self.applied is not None:
            self.applied.remove()

    def _refuse_changed(self, model: nn.Module) -> None:
        """Sees that what trains is still what the policy said as the Trainer was built, or in an earlier `train`."""
        assert self.applied is not None
        expected = self.applied.may_train
        for name, parameter in model.named_parameters():
            if parameter.is_floating_point() and name in expected and parameter.requires_grad != expected[name]:
                now = "trains" if parameter.requires_grad else "is frozen"
                raise InputError(
                    f"{name!r} {now}, which something has changed since the Trainer was built, such as a later "
                    f"PolicyCallback; give one of Policy(...) + Policy(...), and train the Trainer that was built last"
                )


def _kept(state: TrainerState) -> dict[str, object]:
    """What callbacks keep in checkpoints; Trainer has made a dictionary of the list that the type promises."""
    return cast(dict[str, object], state.stateful_callbacks)


def read_statements(folder: str | Path) -> object:
    """What a checkpoint of Trainer's holds for `check_statements`; None if it holds nothing, or is none.

    Raises:
        InputError: its trainer_state.json cannot be read.
    """
    path = Path(folder) / "trainer_state.json"
    if not path.is_file():
        return None
    try:
        state = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {in_one_line(error)}; resume from another checkpoint") from error
    held = state.get("stateful_callbacks") if isinstance(state, dict) else None
    return held.get(KEY) if isinstance(held, dict) else None


def check_statements(stored: object, own: Sequence[str]) -> None:
    """Compares the policy of a checkpoint with that of the Trainer that resumes it.

    Args:
        stored: what the checkpoint holds, None if a Trainer without a policy wrote it.
        own: from `Policy.statements`.

    Raises:
        InputError: they differ; the message quotes where.
    """
    if stored is None:
        return
    if not isinstance(stored, list) or not all(isinstance(line, str) for line in stored):
        raise InputError(f"the checkpoint's policy is damaged: {KEY!r} in its trainer_state.json should be a list")
    for there, here in zip_longest(stored, own, fillvalue="nothing"):
        if there != here:
            raise InputError(
                f"the checkpoint was trained under another policy, with {there!r} where this one has {here!r}; resume "
                f"under the same policy, or load the checkpoint with from_pretrained and train anew"
            )


def first_batch(loader: object, model: nn.Module) -> Batch | None:
    """The first two samples of a loader, collated as it collates them; None where its dataset has no length."""
    if not isinstance(loader, DataLoader) or not isinstance(loader.dataset, Sized):
        return None
    with preserving_seeds():
        batch = loader.collate_fn([loader.dataset[i] for i in range(min(2, len(loader.dataset)))])
    batch = dict(batch) if isinstance(batch, Mapping) else batch
    return send_to_device(batch, next(model.parameters()).device)


def _refuse_unsupported(args: TrainingArguments, applied: AppliedPolicy) -> None:
    """What is not supported is said before anything is trained."""
    phases = "phases that change what trains" if applied.changes else ""
    hooked = phases or ("rates by layer" if applied.has_rates else "")
    if args.deepspeed and hooked:
        raise InputError(
            f"DeepSpeed owns the optimizer and cannot have {hooked}; use a policy of one phase without lr, or DDP"
        )
    if uses_fsdp(args) and hooked:
        raise InputError(
            f"FSDP reshapes the parameters and cannot have {hooked}; use a policy of one phase without lr, or DDP"
        )
    optimizer = str(args.optim).lower()
    if applied.has_rates and ("layerwise" in optimizer or "lomo" in optimizer):
        raise InputError(f"optim={args.optim!s} steps within backward and cannot have rates by layer; use adamw_torch")
    waiting = [plan.start for plan in applied.plans if plan.start.metric.startswith("eval_")]
    if waiting and args.eval_strategy == "no":
        raise InputError(
            f"phase {waiting[0].when!r} waits for evaluations, and there are none; "
            f"set eval_strategy='epoch', or 'steps' with eval_steps"
        )
    if phases and args.ddp_find_unused_parameters is False:
        raise InputError(f"ddp_find_unused_parameters=False cannot have {phases}; leave it out, which finds them")
