"""transformers' Trainer, unmodified, on a network with adapters: checkpoints hold the adapter and resume from it.

    Trainer                       calls                          which is, on a network with adapters
    saves a PreTrainedModel       model.save_pretrained          replaced on the instance: writes an adapter
    saves any other module        model.state_dict               the adapter's while it trains (AdapterCallback)
    resumes, loads the best       model.load_state_dict          hooked: takes an adapter, from model.safetensors
    the same under FSDP2          model.state_dict               hooked: the adapter's, as its live names have it
    completes an adapter's card   model.create_or_update_model_card   replaced on the instance: adds the footprint
    pushes its folder             the Hub, less what .gitignore names, which is written here

That Trainer calls these methods and reads this file is no public contract of transformers. Everything that depends on
it is here, and tests/lora/test_trainer.py fails where it changes; a subclass of Trainer would have to be used by every
script instead.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_NAME

from hf_tl.architectures import is_in_pieces, is_spread, is_transformers
from hf_tl.card import CardInfo
from hf_tl.errors import InputError
from hf_tl.files import pack_tensors, with_memory_each, write_whole
from hf_tl.hub import CARD, is_hub_name
from hf_tl.lora.adapted import RECORD, accelerator_state, adapter_state_dict, record_of, refuse_fsdp1
from hf_tl.lora.adapter import PREFIX, Adapter, is_finite, write_adapter
from hf_tl.lora.embedding_table import LoraEmbedding
from hf_tl.lora.push import count_base, push_adapter, update_card
from hf_tl.lora.save import adapter_on
from hf_tl.lora.sharded import in_one_process, keep_adapters, missing_tensors


_UNPUSHED = """\
# what stays here when Trainer pushes this folder: the adapter under the name that Trainer resumes from,
# and its arguments, a pickle that holds the token where it was an argument
/.gitignore
/model.safetensors
/training_args.bin
"""


_IN_SHARDS = (
    "with SHARDED_STATE_DICT Trainer writes no adapter into its checkpoints, nothing in save_model, and its processes "
    "may not agree on the best checkpoint; set fsdp_state_dict_type: FULL_STATE_DICT, which gathers the adapters alone"
)


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
        """Checks that there is an adapter, and one that can be saved, before anything is loaded or trained."""
        refuse_fsdp1()
        if _saves_in_shards():
            raise InputError(_IN_SHARDS)
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
        adapters_in_use(network)
        self._release()
        if not isinstance(network, PreTrainedModel) and not is_in_pieces(network):
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
        network = record_of(model).model
        if is_in_pieces(network):  # in every process
            if not isinstance(network, PreTrainedModel):
                save_for_trainer(network, folder)
        elif args.should_save and self._hook is not None and folder.is_dir():
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


def create_loraplus_groups(
    model: nn.Module,
    *,
    lr: float,
    ratio: float = 16.0,
    lr_embedding: float | None = None,
    weight_decay: float = 0.0,
) -> list[dict]:
    """Parameter groups in which every B learns `ratio` times faster than all else (LoRA+, Hayou et al., ICML 2024).

        Trainer(model, args, optimizers=(torch.optim.AdamW(create_loraplus_groups(model, lr=1e-4)), None), ...)

    and Trainer makes its schedule for that optimizer: each group keeps its own share of the learning rate.

    Args:
        model: a network with adapters.
        lr: learning rate of A, of the head and of whatever else trains.
        ratio: learning rate of B over that of A; the paper finds 16 good, from 4 on for easy tasks.
        lr_embedding: learning rate of the adapters of embeddings; None for `lr`.
        weight_decay: of all groups but biases and DoRA's lengths, which have none.

    Returns:
        groups with the keys "params", "lr", "weight_decay" and "name"; empty ones are left out.

    Raises:
        InputError: a learning rate or ratio that is not positive, or nothing trains.
    """
    for name, value in {
        "lr": lr,
        "ratio": ratio,
        "lr_embedding": lr if lr_embedding is None else lr_embedding,
    }.items():
        if not value > 0:
            raise InputError(f"{name} must be above 0, got {value}")
    names: dict[Tensor, str] = {}
    for layer in record_of(model).layers.values():
        for adapter in layer.r:
            for part, parameter in layer.adapter_tensors(adapter):
                group = {"lora_B.weight": "lora_B"}.get(part, "lora_A")
                names[parameter] = "embedding" if isinstance(layer, LoraEmbedding) else group
    rates = {"lora_A": lr, "lora_B": lr * ratio, "embedding": lr_embedding or lr, "other": lr}
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups.setdefault((names.get(parameter, "other"), parameter.dim() > 1), []).append(parameter)
    if not groups:
        raise InputError("nothing in the network trains; choose an adapter with set_adapter first")
    return [
        {
            "params": found,
            "lr": rates[name],
            "weight_decay": weight_decay if decays else 0.0,
            "name": name if decays else f"{name} (no decay)",
        }
        for (name, decays), found in groups.items()
    ]


def follow_trainer(model: nn.Module) -> None:
    """Makes the network save its adapter where Trainer saves a model, and load it where Trainer loads one."""
    record = record_of(model)
    if record.follows_trainer:
        return
    record.follows_trainer = True
    record.hooks.append(model.register_load_state_dict_pre_hook(_take_adapter))
    record.hooks.append(model.register_load_state_dict_post_hook(_miss_nothing))
    record.hooks.append(model.register_state_dict_post_hook(_only_adapter_of_shards))
    record.hooks.append(model.register_forward_pre_hook(_refuse_fsdp1))
    if is_transformers(model):
        # partials, not methods: pickle finds a method by its name in the class, where there is none
        made = {
            "save_pretrained": partial(_save_pretrained, model),
            "push_to_hub": partial(_push_to_hub, model),
            "create_or_update_model_card": partial(_complete_card, model),
        }
        vars(model).update(made)
        record.replaced_methods = tuple(made)


def guard_push(container: nn.Module) -> None:
    """Keeps the folder of a base network off the Hub, where `push_to_hub` of a SentenceTransformer would name it.

    Like the network's own methods, the guard goes by the network's name of the moment, and lets all else pass.
    """
    vars(container)["push_to_hub"] = partial(_push_container, container)


def _push_container(container: Any, *args: Any, **options: Any) -> Any:
    for module in container.modules():
        for config in vars(module)[RECORD].configs.values() if RECORD in vars(module) else ():
            base = config.base_model_name_or_path
            if not is_hub_name(base):
                raise InputError(
                    f"adapter_config.json would name {base!r}, from which this {type(container).__name__} loads its "
                    "network, and nobody else has it; train on a network from the Hub, or "
                    "delete_adapter(model, merge=True) and push it whole"
                )
    return type(container).push_to_hub(container, *args, **options)


def adapters_in_use(model: nn.Module) -> Sequence[str]:
    """The adapters that a checkpoint holds.

    Raises:
        InputError: none.
    """
    active = record_of(model).active
    if not active:
        raise InputError("a checkpoint holds the adapters in use, and there are none; choose some with set_adapter")
    return active


def live_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What training changes, and what an SVD init subtracts, of the adapters in use: names of PEFT's, live values.

    Of several adapters, each name begins with that of its adapter.
    """
    adapters, record = adapters_in_use(model), record_of(model)
    found: dict[str, Tensor] = {}
    for adapter in adapters:
        tensors = adapter_state_dict(model, adapter_name=adapter)
        for name, layer in record.layers.items():
            if adapter in layer.lora_fixed:
                fixed = layer.lora_fixed[adapter].named_buffers()
                tensors |= {f"{PREFIX}{name}.lora_fixed.{part}": tensor for part, tensor in fixed}
        own = f"{adapter}." if len(adapters) > 1 else ""
        found |= {f"{PREFIX}{own}{key.removeprefix(PREFIX)}": tensor for key, tensor in tensors.items()}
    return found


def adapter_folders(model: nn.Module, folder: Path) -> dict[str, Path]:
    """Where each of the adapters in use is saved: in the folder; several as PEFT does, each in one of its name."""
    adapters = adapters_in_use(model)
    return {adapter: folder if len(adapters) == 1 else folder / adapter for adapter in adapters}


def save_for_trainer(model: nn.Module, folder: Path, *, values: Mapping[str, Tensor] | None = None) -> None:
    """Writes the adapters in use as `save_adapter` does, but for a base network that nobody else has.

    Trainer pushes its folders, and adapter_config.json may name a folder of this machine.

    Args:
        model: a network with adapters; where it is sharded, every process has to call.
        folder: is made.
        values: as for `adapter_on`.
    """
    for adapter_name, own in adapter_folders(model, folder).items():
        adapter = _for_others(model, adapter_on(model, adapter_name=adapter_name, values=values))
        write = partial(write_adapter, adapter, own)
        write() if values is not None else in_one_process(model, write)


def _for_others(model: nn.Module, adapter: Adapter) -> Adapter:
    """The adapter without the name of a folder that is on this machine alone."""
    base = adapter.config["base_model_name_or_path"]
    if record_of(model).in_container and not is_hub_name(base):
        warnings.warn(
            f"adapter_config.json names {base!r}, a folder of this machine, from which the saved SentenceTransformer "
            "loads its network; before you push it, train on a network from the Hub",
            stacklevel=4,
        )
    elif not is_hub_name(base):
        return replace(adapter, config={**adapter.config, "base_model_name_or_path": None})
    return adapter


def _save_pretrained(
    model: nn.Module,
    save_directory: str | os.PathLike,
    is_main_process: bool = True,
    state_dict: dict[str, Tensor] | None = None,
    push_to_hub: bool = False,
    **options: object,
) -> None:
    """What `model.save_pretrained` does while the network has an adapter: the adapter is saved, not the network."""
    if push_to_hub:
        raise InputError("save_pretrained(push_to_hub=True) is not for adapters; use hf_tl.push_adapter(model, ...)")
    spread = is_in_pieces(model)
    if spread and state_dict is None:
        raise InputError(
            "the adapter is spread over processes with its network; call hf_tl.save_adapter in every process, or "
            "save_pretrained with state_dict=accelerator.get_state_dict(model)"
        )
    if not is_main_process:
        return
    folder = Path(save_directory)
    save_for_trainer(model, folder, values=state_dict if spread else None)
    if folder.name.startswith(f"{PREFIX_CHECKPOINT_DIR}-"):
        if not spread:  # else Trainer resumes from what FSDP or DeepSpeed saves
            # it reads adapter_model.safetensors for PEFT's own class only, for any other model this name
            write_whole(folder / SAFE_WEIGHTS_NAME, pack_tensors(live_tensors(model)))
        _write_gitignore(folder.parent)
        return
    base = next(iter(record_of(model).configs.values())).base_model_name_or_path
    if not is_hub_name(base) and not record_of(model).in_container:
        warnings.warn(
            f"{save_directory} holds the adapter and no name of its network, which was "
            f"{'made here' if base is None else f'loaded from {base!r} on this machine'}: from_pretrained cannot load "
            "it; call load_adapter(network, folder), and write with save_adapter to keep the name of a folder",
            stacklevel=3,
        )
    for own in adapter_folders(model, folder).values():
        if not (own / CARD).is_file():
            update_card(own)  # a card of the library peft, and Trainer has it completed below


def _push_to_hub(
    model: nn.Module,
    repo_id: str,
    *,
    commit_message: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    tags: str | Sequence[str] | None = None,
    **options: object,
) -> str:
    """What `model.push_to_hub` does while the network has an adapter: `push_adapter`."""
    adapters = adapters_in_use(model)
    if len(adapters) > 1:
        raise InputError(f"a repository holds one adapter, and {', '.join(adapters)} are in use; choose one of them")
    if options:
        raise InputError(f"a push of an adapter has no {', '.join(options)}; see hf_tl.push_adapter")
    done = push_adapter(
        model,
        repo_id,
        adapter_name=adapters[0],
        info=CardInfo(tags=(tags,) if isinstance(tags, str) else tuple(tags or ())),
        message=commit_message or "Add LoRA adapter",
        private=private,
        token=token if isinstance(token, str) else None,
        revision=revision,
    )
    return done.url


def _complete_card(model: nn.Module, output_dir: str | os.PathLike) -> None:
    """What Trainer calls, before it pushes, on a model whose card says that it is an adapter of the library peft."""
    for folder in adapter_folders(model, Path(output_dir)).values():
        _leave_out_folders(folder / CARD, model)
        update_card(folder, n_base=count_base(model))
    _write_gitignore(Path(output_dir))


def _leave_out_folders(card: Path, model: nn.Module) -> None:
    """Takes folders of this machine out of a card, where Trainer names a base network by one that is there no more."""
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    said = text
    for config in record_of(model).configs.values():
        base = config.base_model_name_or_path
        if base is not None and not is_hub_name(base):
            said = re.sub(rf"(?m)^base_model: *['\"]?{re.escape(base)}['\"]? *\n", "", said)
            said = said.replace(f"[{base}](https://huggingface.co/{base})", "a network without a name on the Hub")
    if said != text:
        write_whole(card, said)


def _write_gitignore(folder: Path) -> None:
    if not (folder / ".gitignore").exists():
        write_whole(folder / ".gitignore", _UNPUSHED)


def _take_adapter(model: nn.Module, tensors: MutableMapping[str, Tensor], prefix: str, *details: object) -> None:
    """Before `load_state_dict`: an adapter's tensors go to the adapter in use, all of them or none."""
    if prefix:
        return
    if is_spread(model):
        _take_shards(model, tensors)
    if not any(key.startswith(PREFIX) for key in tensors):
        return
    adapter, live = ", ".join(adapters_in_use(model)), live_tensors(model)
    both = [key for key in live if key in tensors]
    problems = {
        "missing": sorted(live.keys() - tensors.keys()),
        "unexpected": sorted(tensors.keys() - live.keys()),
        "of another shape": [key for key in both if tensors[key].shape != live[key].shape],
        "NaN or too large": [key for key in both if not is_finite(tensors[key].to(live[key].dtype))],
    }
    for what, found in problems.items():
        if found:
            raise InputError(
                f"the checkpoint does not fit adapter {adapter!r}: {len(found)} tensors are {what}, "
                f"the first {found[0]!r}; build the model with the settings of the checkpoint's adapter_config.json"
            )
    with torch.no_grad():
        for key, tensor in live.items():
            tensor.copy_(tensors[key])
    tensors.clear()
    record_of(model).took_checkpoint = True


def _take_shards(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Checks what `_only_adapter_of_shards` left of a state dict, which torch has spread over the processes again."""
    missing = missing_tensors(tensors, record_of(model))
    if missing:
        raise InputError(
            f"the checkpoint does not fit: {len(missing)} tensors of the adapters are missing, the first "
            f"{missing[0]!r}; build the model with the settings of the checkpoint's adapter_config.json"
        )
    record_of(model).took_checkpoint = missing is not None


def _miss_nothing(model: nn.Module, incompatible: Any) -> None:
    """After `load_state_dict`: a network that was given its adapter misses none of its frozen weights."""
    record = record_of(model)
    if record.took_checkpoint:
        record.took_checkpoint = False
        incompatible.missing_keys.clear()


def _only_adapter(model: nn.Module, tensors: dict[str, Tensor], prefix: str, metadata: object) -> None:
    if not prefix and RECORD in model.__dict__:
        tensors.clear()
        tensors.update(with_memory_each(live_tensors(model)))  # as Trainer saves them


def _only_adapter_of_shards(model: nn.Module, tensors: dict[str, Tensor], prefix: str, metadata: object) -> None:
    """What FSDP gathers and saves: of a network that is sharded, and not on the way there, the adapters alone."""
    if prefix:
        return
    if not is_spread(model):
        if _saves_in_shards():  # Accelerate is about to shard it, for a Trainer or for a loop, in which all is well
            warnings.warn(_IN_SHARDS, stacklevel=2)
    elif not any(p.is_meta for p in model.parameters()):
        keep_adapters(tensors, record_of(model))


def _saves_in_shards() -> bool:
    """Whether Accelerate, and so Trainer, saves each process's part of a network for itself."""
    plugin = accelerator_state().get("fsdp_plugin")
    return plugin is not None and "SHARDED_STATE_DICT" in str(plugin.state_dict_type)


def _refuse_fsdp1(model: nn.Module, inputs: object) -> None:
    if not torch.compiler.is_compiling():
        refuse_fsdp1()
