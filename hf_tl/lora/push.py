"""push_adapter: an adapter with its model card to the Hub, in one commit."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from torch import nn

from hf_tl.card import CardInfo, trainer_seconds
from hf_tl.errors import InputError
from hf_tl.hub import CARD, PushResult, check_repo_id, is_hub_name, push_files
from hf_tl.lora.adapter import read_adapter
from hf_tl.lora.adapter_card import adapter_card, count_base
from hf_tl.lora.adapter_config import CONFIG_NAME
from hf_tl.lora.adapter_file import TENSORS_NAME
from hf_tl.lora.record import record_of
from hf_tl.lora.saving import save_adapter


def push_adapter(
    model: nn.Module | str | Path,
    repo_id: str,
    *,
    adapter: str = "default",
    base_model: str | None = None,
    info: CardInfo | None = None,
    private: bool | None = None,
    revision: str | None = None,
    message: str = "Add LoRA adapter",
    token: str | None = None,
    dry_run: bool = False,
) -> PushResult:
    """Puts an adapter on the Hub: adapter_config.json, adapter_model.safetensors and a model card, in one commit.

    Whoever has `load_adapter`, PEFT or transformers loads it by the repository's name; the network stays where it
    is. A card that is there already, in the folder or in the repository, keeps what people wrote into it.

    Args:
        model: a network with adapters, or the folder of a saved one. Of a folder nothing else is pushed.
        repo_id: "user/name"; a model repository that is made where there is none.
        adapter: which one, of a network.
        base_model: the Hub id of the network, where it was loaded from a folder that nobody else has.
        info: datasets, results, training time: what the card says and no file knows.
        private: whether a repository that is made is private; None for the default of its owner.
        revision: the branch, which is made where there is none; None for main.
        message: of the commit.
        token: None for HF_TOKEN or what `hf auth login` stored. It is never written and never printed.
        dry_run: whether to say what would be pushed, and send nothing.

    Returns:
        What was pushed where.

    Raises:
        InputError: nothing that could be pushed, a network that only this machine has, or whatever the Hub objects
            to: no token, no permission, a malformed name, no connection.
    """
    check_repo_id(repo_id)
    info = info or CardInfo()
    with tempfile.TemporaryDirectory() as made:
        if isinstance(model, nn.Module):
            folder = save_adapter(model, made, adapter=adapter)
            n_base, kind = count_base(model), type(record_of(model).model)
        else:
            folder, n_base, kind = Path(model), None, None
            read_adapter(folder)
            if info.training_seconds is None:
                info = replace(info, training_seconds=trainer_seconds(folder))
        folder = _with_base(folder, base_model, Path(made), kind=kind)
        own = folder / CARD

        def card(there: str | None) -> str:
            old = own.read_text(encoding="utf-8") if own.is_file() else there
            return adapter_card(folder, info=info, repo_id=repo_id, n_base=n_base, old=old)

        card(None)  # what is wrong with it is said before anything is sent
        return push_files(
            {name: folder / name for name in (CONFIG_NAME, TENSORS_NAME)},
            repo_id,
            card=card,
            message=message,
            private=private,
            revision=revision,
            token=token,
            dry_run=dry_run,
        )


def _with_base(folder: Path, base_model: str | None, made: Path, *, kind: type | None) -> Path:
    """A folder whose configuration names a network that others can have: the same, or a copy in `made`.

    Raises:
        InputError: it names a folder of this machine, or what is to be named is no Hub id.
    """
    config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    base = config.get("base_model_name_or_path")
    if base_model is None:
        if base is None or is_hub_name(base):
            return folder
        raise InputError(
            f"the adapter was trained on the network in the folder {base!r}, which nobody else has; say which one on "
            f"the Hub that is, base_model='user/name'"
        )
    if not is_hub_name(base_model):
        raise InputError(f"base_model should be the Hub id of a network, 'user/name', got {base_model!r}")
    for name in (TENSORS_NAME, CARD):
        if folder != made and (folder / name).is_file():
            shutil.copyfile(folder / name, made / name)
    config["base_model_name_or_path"] = base_model
    if kind is not None and config.get("task_type") is None:  # from which PEFT knows the class of a named network
        config["auto_mapping"] = {"base_model_class": kind.__name__, "parent_library": kind.__module__}
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
    (made / CONFIG_NAME).write_text(f"{text}\n", encoding="utf-8")
    return made
