"""transformers' Trainer, unmodified, on a network with adapters: checkpoints hold the adapter and resume from it.

What Trainer does with a model, and what answers it here, all of it public:

    saves a PreTrainedModel       model.save_pretrained(folder)    replaced on the instance: writes an adapter folder
    saves any other module        model.state_dict()               trainer_callback.py, for the time of the training
    resumes, loads the best       reads model.safetensors, then    the same file under the name that Trainer reads;
                                  model.load_state_dict(tensors)   a hook that takes an adapter's names
    pushes to the Hub             everything in its folder; lets   a .gitignore, which the Hub obeys; the metadata
                                  an adapter complete the card     and the footprint of an adapter in the card
    is pushed by its user         model.push_to_hub(name)          replaced on the instance: push_adapter

`add_lora` calls `follow_trainer`, so a PreTrainedModel (transformers' wrapper of timm is one) needs nothing more.
"""

from __future__ import annotations

import os
import types
from collections.abc import MutableMapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from hf_tl.architectures import is_transformers
from hf_tl.card import CardInfo
from hf_tl.errors import InputError
from hf_tl.hub import CARD
from hf_tl.lora.adapter_card import count_base, update_card
from hf_tl.lora.adapter_file import is_finite
from hf_tl.lora.push import push_adapter
from hf_tl.lora.record import PREFIX, RECORD, adapter_state_dict, record_of
from hf_tl.lora.saving import save_adapter


_FOLLOWS = "_hf_tl_follows_trainer"
_UNPUSHED = """\
# what stays here when Trainer pushes this folder: the adapter under the name that Trainer resumes from,
# and its arguments, a pickle that holds the token where it was an argument
/.gitignore
/model.safetensors
/training_args.bin
"""


def follow_trainer(model: nn.Module) -> None:
    """Makes the network save its adapter where Trainer saves a model, and load it where Trainer loads one.

    After `delete_adapter` the network saves and loads as if this had never been called.
    """
    if model.__dict__.get(_FOLLOWS):
        return
    model.__dict__[_FOLLOWS] = True
    model.register_load_state_dict_pre_hook(_take_adapter)
    model.register_load_state_dict_post_hook(_miss_nothing)
    if is_transformers(model):
        # bound to the instance: a copy of the network gets methods of its own
        model.__dict__["save_pretrained"] = types.MethodType(_save_pretrained, model)
        model.__dict__["push_to_hub"] = types.MethodType(_push_to_hub, model)
        model.__dict__["create_or_update_model_card"] = types.MethodType(_complete_card, model)


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


def _save_pretrained(
    model: nn.Module,
    save_directory: str | os.PathLike,
    is_main_process: bool = True,
    state_dict: dict[str, Tensor] | None = None,
    push_to_hub: bool = False,
    **options: object,
) -> None:
    """What `model.save_pretrained` does while the network has an adapter: the adapter is saved, not the network."""
    from safetensors.torch import save_file
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
    from transformers.utils import SAFE_WEIGHTS_NAME

    if RECORD not in model.__dict__:
        plain = {"is_main_process": is_main_process, "state_dict": state_dict, "push_to_hub": push_to_hub}
        type(model).save_pretrained(model, save_directory, **plain, **options)
        return
    if push_to_hub:
        raise InputError("save_pretrained(push_to_hub=True) is not for adapters; use hf_tl.push_adapter(model, ...)")
    if not is_main_process:
        return
    folder = save_adapter(model, save_directory, adapter=adapter_in_use(model))
    if folder.name.startswith(f"{PREFIX_CHECKPOINT_DIR}-"):
        # Trainer reads adapter_model.safetensors for PEFT's own class only, for any other model this name
        tensors = {name: tensor.cpu().contiguous() for name, tensor in live_tensors(model).items()}
        save_file(tensors, folder / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})
        _leave_out(folder.parent)
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
    if RECORD not in model.__dict__:
        asked = {
            "commit_message": commit_message,
            "private": private,
            "token": token,
            "revision": revision,
            "tags": tags,
        }
        asked = {name: value for name, value in asked.items() if value is not None}
        return type(model).push_to_hub(model, repo_id, **asked, **options)
    if options:
        raise InputError(f"a push of an adapter has no {', '.join(options)}; see hf_tl.push_adapter")
    done = push_adapter(
        model,
        repo_id,
        adapter=adapter_in_use(model),
        info=CardInfo(tags=(tags,) if isinstance(tags, str) else tuple(tags or ())),
        message=commit_message or "Add LoRA adapter",
        private=private,
        token=token if isinstance(token, str) else None,
        revision=revision,
    )
    return done.url


def _complete_card(model: nn.Module, output_dir: str | os.PathLike) -> None:
    """What Trainer calls, before it pushes, on a model whose card says that it is an adapter of the library peft."""
    folder = Path(output_dir)
    if RECORD in model.__dict__:
        update_card(folder, n_base=count_base(model))
        _leave_out(folder)


def _leave_out(folder: Path) -> None:
    ignored = folder / ".gitignore"
    if not ignored.exists():
        ignored.write_text(_UNPUSHED, encoding="utf-8")


def _take_adapter(model: nn.Module, tensors: MutableMapping[str, Tensor], prefix: str, *details: object) -> None:
    """Before `load_state_dict`: an adapter's tensors go to the adapter in use, all of them or none."""
    if RECORD not in model.__dict__ or prefix or not any(key.startswith(PREFIX) for key in tensors):
        return
    adapter = adapter_in_use(model)
    live = live_tensors(model)
    missing, unexpected = sorted(live.keys() - tensors.keys()), sorted(tensors.keys() - live.keys())
    wrong = [key for key, tensor in live.items() if key in tensors and tensors[key].shape != tensor.shape]
    bad = [key for key, tensor in tensors.items() if tensor.is_floating_point() and not is_finite(tensor)]
    for found, what in ((missing, "missing"), (unexpected, "unexpected"), (wrong, "of another shape"), (bad, "NaN")):
        if found:
            raise InputError(
                f"the checkpoint does not fit adapter {adapter!r}: {len(found)} tensors are {what}, "
                f"the first {found[0]!r}; build the model with the settings of the checkpoint's adapter_config.json"
            )
    with torch.no_grad():
        for key, tensor in live.items():
            tensor.copy_(tensors[key])
    tensors.clear()
    model.__dict__[_FOLLOWS] = "taken"


def _miss_nothing(model: nn.Module, incompatible: object) -> None:
    """After `load_state_dict`: a network that was given its adapter misses none of its frozen weights."""
    if model.__dict__.get(_FOLLOWS) == "taken":
        model.__dict__[_FOLLOWS] = True
        incompatible.missing_keys.clear()
