"""transformers' Trainer, unmodified, on a network with adapters: checkpoints hold the adapter and resume from it.

    Trainer                       calls                          which is, on a network with adapters
    saves a PreTrainedModel       model.save_pretrained          replaced on the instance: writes an adapter
    saves any other module        model.state_dict               the adapter's while it trains (trainer_callback.py)
    resumes, loads the best       model.load_state_dict          hooked: takes an adapter, from model.safetensors
    completes an adapter's card   model.create_or_update_model_card   replaced on the instance: adds the footprint
    pushes its folder             the Hub, less what .gitignore names, which is written here

That Trainer calls these methods and reads this file is no public contract of transformers. Everything that depends on
it is here, and tests/lora/test_trainer.py fails where it changes; a subclass of Trainer would have to be used by every
script instead.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hf_tl.architectures import is_transformers
from hf_tl.card import CardInfo
from hf_tl.errors import InputError
from hf_tl.files import write_whole
from hf_tl.hub import CARD, is_hub_name
from hf_tl.lora.adapted import adapter_state_dict, record_of
from hf_tl.lora.adapter import PREFIX, is_finite, pack, write_adapter
from hf_tl.lora.push import count_base, push_adapter, update_card
from hf_tl.lora.save import adapter_on


_UNPUSHED = """\
# what stays here when Trainer pushes this folder: the adapter under the name that Trainer resumes from,
# and its arguments, a pickle that holds the token where it was an argument
/.gitignore
/model.safetensors
/training_args.bin
"""


def follow_trainer(model: nn.Module) -> None:
    """Makes the network save its adapter where Trainer saves a model, and load it where Trainer loads one."""
    record = record_of(model)
    if record.follows_trainer:
        return
    record.follows_trainer = True
    record.hooks.append(model.register_load_state_dict_pre_hook(_take_adapter))
    record.hooks.append(model.register_load_state_dict_post_hook(_miss_nothing))
    if is_transformers(model):
        # partials, not methods: pickle finds a method by its name in the class, where there is none
        model.__dict__["save_pretrained"] = partial(_save_pretrained, model)
        model.__dict__["push_to_hub"] = partial(_push_to_hub, model)
        model.__dict__["create_or_update_model_card"] = partial(_complete_card, model)


def unfollow_trainer(model: nn.Module) -> None:
    """Makes the network save and load as if it had never had an adapter; its hooks go with its record."""
    for name in ("save_pretrained", "push_to_hub", "create_or_update_model_card"):
        model.__dict__.pop(name, None)


def adapter_in_use(model: nn.Module) -> str:
    """The one adapter that a checkpoint holds.

    Raises:
        InputError: none, or several at once.
    """
    active = record_of(model).active
    if len(active) != 1:
        names = ", ".join(repr(name) for name in active) or "none"
        raise InputError(f"a checkpoint holds one adapter, and {names} are in use; choose one with set_adapter")
    return active[0]


def live_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What training changes, and what an SVD init subtracts, of the adapter in use: names of PEFT's, live values."""
    adapter, record = adapter_in_use(model), record_of(model)
    found = adapter_state_dict(model, adapter_name=adapter)
    for name, layer in record.layers.items():
        if adapter in layer.lora_fixed:
            fixed = layer.lora_fixed[adapter].named_buffers()
            found |= {f"{PREFIX}{name}.lora_fixed.{part}": tensor for part, tensor in fixed}
    return found


def save_for_trainer(model: nn.Module, folder: Path) -> None:
    """Writes the adapter in use as `save_adapter` does, but for a base network that nobody else has.

    Trainer pushes its folders, and adapter_config.json may name a folder of this machine.
    """
    adapter = adapter_on(model, adapter_name=adapter_in_use(model))
    if not is_hub_name(adapter.config["base_model_name_or_path"]):
        adapter = replace(adapter, config={**adapter.config, "base_model_name_or_path": None})
    write_adapter(adapter, folder)


def _save_pretrained(
    model: nn.Module,
    save_directory: str | os.PathLike,
    is_main_process: bool = True,
    state_dict: dict[str, Tensor] | None = None,
    push_to_hub: bool = False,
    **options: object,
) -> None:
    """What `model.save_pretrained` does while the network has an adapter: the adapter is saved, not the network."""
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
    from transformers.utils import SAFE_WEIGHTS_NAME

    if push_to_hub:
        raise InputError("save_pretrained(push_to_hub=True) is not for adapters; use hf_tl.push_adapter(model, ...)")
    if not is_main_process:
        return
    folder = Path(save_directory)
    save_for_trainer(model, folder)
    if folder.name.startswith(f"{PREFIX_CHECKPOINT_DIR}-"):
        # Trainer reads adapter_model.safetensors for PEFT's own class only, for any other model this name
        write_whole(folder / SAFE_WEIGHTS_NAME, pack(live_tensors(model)))
        _write_gitignore(folder.parent)
    elif not (folder / CARD).is_file():
        update_card(folder)  # a card of the library peft, and Trainer has it completed below


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
    if options:
        raise InputError(f"a push of an adapter has no {', '.join(options)}; see hf_tl.push_adapter")
    done = push_adapter(
        model,
        repo_id,
        adapter_name=adapter_in_use(model),
        info=CardInfo(tags=(tags,) if isinstance(tags, str) else tuple(tags or ())),
        message=commit_message or "Add LoRA adapter",
        private=private,
        token=token if isinstance(token, str) else None,
        revision=revision,
    )
    return done.url


def _complete_card(model: nn.Module, output_dir: str | os.PathLike) -> None:
    """What Trainer calls, before it pushes, on a model whose card says that it is an adapter of the library peft."""
    update_card(Path(output_dir), n_base=count_base(model))
    _write_gitignore(Path(output_dir))


def _write_gitignore(folder: Path) -> None:
    if not (folder / ".gitignore").exists():
        (folder / ".gitignore").write_text(_UNPUSHED, encoding="utf-8")


def _take_adapter(model: nn.Module, tensors: MutableMapping[str, Tensor], prefix: str, *details: object) -> None:
    """Before `load_state_dict`: an adapter's tensors go to the adapter in use, all of them or none."""
    if prefix or not any(key.startswith(PREFIX) for key in tensors):
        return
    adapter, live = adapter_in_use(model), live_tensors(model)
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


def _miss_nothing(model: nn.Module, incompatible: Any) -> None:
    """After `load_state_dict`: a network that was given its adapter misses none of its frozen weights."""
    record = record_of(model)
    if record.took_checkpoint:
        record.took_checkpoint = False
        incompatible.missing_keys.clear()
