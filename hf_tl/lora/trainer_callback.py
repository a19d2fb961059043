"""AdapterCallback: Trainer's checkpoints of a plain nn.Module hold its adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_tl.lora.adapted import RECORD, record_of
from hf_tl.lora.adapter import with_memory_each
from hf_tl.lora.trainer import adapter_in_use, follow_trainer, live_tensors, save_for_trainer


class AdapterCallback(TrainerCallback):
    """Makes Trainer's checkpoints adapter folders: `Trainer(model, args, callbacks=[AdapterCallback()])`.

    transformers' own models need no callback. A plain nn.Module has no `save_pretrained`: Trainer writes its
    `state_dict()`, which is the adapter alone from the beginning of the training to its end, and the whole network
    before and after. Without the callback its checkpoints hold the frozen weights too, and resume just as well.
    """

    def __init__(self) -> None:
        self._hook: RemovableHandle | None = None

    def on_init_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: Any = None,
        **events: Any,
    ) -> None:
        """Checks that there is an adapter, before anything is loaded or trained."""
        follow_trainer(record_of(model).model)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: Any = None,
        **events: Any,
    ) -> None:
        """From here on, the state dict is the adapter."""
        network = record_of(model).model
        adapter_in_use(network)
        self._release()
        if not isinstance(network, PreTrainedModel):
            self._hook = network.register_state_dict_post_hook(_only_adapter)

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: Any = None,
        **events: Any,
    ) -> None:
        """Completes the folder that Trainer wrote."""
        folder = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if args.should_save and self._hook is not None and folder.is_dir():
            save_for_trainer(model, folder)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **events: Any
    ) -> None:
        """The state dict is that of the whole network again."""
        self._release()

    def _release(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


def _only_adapter(model: nn.Module, tensors: dict[str, Tensor], prefix: str, metadata: object) -> None:
    if not prefix and RECORD in model.__dict__:
        tensors.clear()
        tensors.update(with_memory_each(live_tensors(model)))  # as Trainer saves them
