"""push_adapter: an adapter to the Hub in one commit, with its card: what it changes, what it cost, how to load it."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import nn

from hf_tl.architectures import AutoClass, auto_class_named, auto_class_of_task
from hf_tl.card import (
    CardInfo,
    data_sentence,
    footprint_table,
    in_bytes,
    in_time,
    results_table,
    trainer_seconds,
    write_card,
)
from hf_tl.errors import InputError
from hf_tl.files import leads_out, read_untrusted, write_whole
from hf_tl.hub import CARD, PushResult, check_repo_id, is_hub_name, push_files
from hf_tl.lora.adapted import record_of
from hf_tl.lora.adapter import CONFIG_NAME, TENSORS_NAME, Adapter, read_adapter
from hf_tl.lora.save import class_of, save_adapter


TAGS = ("lora", "hf_tl")
_LARGEST_CARD = 4 * 2**20  # bytes


def push_adapter(
    model: nn.Module | str | Path,
    repo_id: str,
    *,
    adapter_name: str = "default",
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
        adapter_name: which one, of a network.
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
        InputError: nothing that could be pushed, a file that is a link to somewhere else, a network that only this
            machine has, or whatever the Hub objects to: no token, no permission, a malformed name, no connection.
    """
    check_repo_id(repo_id)
    info = info or CardInfo()
    with tempfile.TemporaryDirectory() as made:
        if isinstance(model, nn.Module):
            folder = save_adapter(model, made, adapter_name=adapter_name)
            n_base, kind = count_base(model), class_of(record_of(model).model)
        else:
            folder, n_base, kind = Path(model), None, None
            if info.training_seconds is None:
                info = replace(info, training_seconds=trainer_seconds(folder))
        files = {name: folder / name for name in (CONFIG_NAME, TENSORS_NAME)}
        for path in (*files.values(), folder / CARD):
            _check_link(path)
        adapter = read_adapter(folder)
        changes = _name_base(adapter, base_model, kind=kind)
        if changes:
            adapter = replace(adapter, config={**adapter.config, **changes})
            files[CONFIG_NAME] = _changed_config(folder, changes, Path(made))
        size = files[TENSORS_NAME].stat().st_size

        def card(there: str | None) -> str:
            own = _read_card(folder)
            old = there if own is None else own
            return adapter_card(adapter, info=info, size=size, repo_id=repo_id, n_base=n_base, old=old)

        card(None)  # what is wrong with it is said before anything is sent
        return push_files(
            files,
            repo_id,
            card=card,
            message=message,
            private=private,
            revision=revision,
            token=token,
            dry_run=dry_run,
        )


def update_card(folder: Path, *, n_base: int | None = None) -> None:
    """Completes the README.md in an adapter's folder, or writes one.

    Args:
        folder: what `save_adapter`, PEFT or a Trainer wrote.
        n_base: parameters of the network, where it is at hand.
    """
    info = CardInfo(training_seconds=trainer_seconds(folder))
    size = (folder / TENSORS_NAME).stat().st_size
    adapter = replace(read_adapter(folder), folder=folder.resolve().name)
    text = adapter_card(adapter, info=info, size=size, n_base=n_base, old=_read_card(folder))
    write_whole(folder / CARD, text)


def adapter_card(
    adapter: Adapter,
    *,
    info: CardInfo,
    size: int,
    repo_id: str | None = None,
    n_base: int | None = None,
    old: str | None = None,
) -> str:
    """The text of README.md for an adapter.

    Args:
        adapter: what it describes.
        info: what no file can know.
        size: of the file of tensors, in bytes.
        repo_id: where others will find it; None where that is not known yet.
        n_base: parameters of the network, where it is at hand.
        old: a card to complete.

    Raises:
        InputError: results without a task, an old card that cannot be read.
    """
    base, auto = _hub_base(adapter), _auto_class(adapter)
    named = f"[{base}](https://huggingface.co/{base})" if base else "a network without a name on the Hub"
    ranks = Counter(update.rank for update in adapter.updates.values())
    spread = ", ".join(f"rank {rank} in {n} layers" for rank, n in sorted(ranks.items()))
    opening = (
        f"A low-rank adapter (LoRA, Hu et al., ICLR 2022) of {named}: {spread}. The network itself is not in here, "
        f"it stays as it is.\n{data_sentence(info)}\n"
    )
    body = opening + results_table(info) + footprint_table(_footprint(adapter, info, size, n_base))
    body += _how_to_load(adapter, base, auto, repo_id or "PATH_OR_HUB_ID_OF_THIS")
    return write_card(
        old,
        title=Path(repo_id or adapter.folder).name,
        body=body,
        info=info,
        metadata={
            "library_name": "peft",
            "base_model": base,
            "base_model_relation": "adapter" if base else None,
            "tags": TAGS,
        },
        task=None if auto is None else auto.pipeline,
    )


def count_base(model: nn.Module) -> int:
    """Parameters of the network without what was added to it."""
    added = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name or ".modules_to_save." in name)
    return sum(p.numel() for p in model.parameters()) - added


def _name_base(adapter: Adapter, base_model: str | None, *, kind: Mapping[str, str] | None) -> dict[str, object]:
    """What changes in the configuration so that it names a network that others can have.

    Raises:
        InputError: it names a folder of this machine, or what is to be named is no Hub id.
    """
    base = adapter.config.get("base_model_name_or_path")
    if base_model is None:
        if base is None or is_hub_name(base):
            return {}
        raise InputError(
            f"the adapter was trained on the network in the folder {base!r}, which nobody else has; say which one on "
            f"the Hub that is, base_model='user/name'"
        )
    if not is_hub_name(base_model):
        raise InputError(f"base_model should be the Hub id of a network, 'user/name', got {base_model!r}")
    changes: dict[str, object] = {"base_model_name_or_path": base_model}
    if kind is not None and adapter.config.get("task_type") is None:  # then PEFT asks for the class of a named network
        changes["auto_mapping"] = kind
    return changes


def _changed_config(folder: Path, changes: Mapping[str, object], made: Path) -> Path:
    """A copy of adapter_config.json, in `made`, with other values."""
    config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    text = json.dumps({**config, **changes}, indent=2, sort_keys=True, ensure_ascii=False)
    return write_whole(made / CONFIG_NAME, f"{text}\n")


def _check_link(path: Path) -> None:
    """Raises InputError for a link to what the folder's author may not even have, such as a token of this machine."""
    if leads_out(path):
        raise InputError(f"{str(path)!r} is a link to {os.readlink(path)!r}; put the file itself there")


def _read_card(folder: Path) -> str | None:
    _check_link(folder / CARD)
    try:
        data = read_untrusted(folder / CARD, largest=_LARGEST_CARD)
    except FileNotFoundError:
        return None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{str(folder / CARD)!r} is not a text in UTF-8: {error}") from error


def _hub_base(adapter: Adapter) -> str | None:
    """The Hub id of the network; None where it has none, and for a folder, which only this machine has."""
    base = adapter.config.get("base_model_name_or_path")
    return str(base) if is_hub_name(base) else None


def _auto_class(adapter: Adapter) -> AutoClass | None:
    """transformers' loader of the network; a name from the file is compared with known ones, never looked up."""
    of_task = auto_class_of_task(adapter.settings.task_type)
    mapping = adapter.config.get("auto_mapping")
    if of_task is not None or not isinstance(mapping, Mapping):
        return of_task
    if not str(mapping.get("parent_library")).startswith("transformers."):
        return None
    return auto_class_named(str(mapping.get("base_model_class")))


def _footprint(adapter: Adapter, info: CardInfo, size: int, n_base: int | None) -> Mapping[str, str]:
    n_updates = sum(update.n_parameters for update in adapter.updates.values())
    rows = {"parameters in this file": f"{adapter.n_parameters:,}"}
    if n_base:
        rows["parameters in this file"] += f", {adapter.n_parameters / n_base:.2%} of the network's {n_base:,}"
    rows["of these in low-rank updates"] = f"{n_updates:,}, in {len(adapter.updates)} layers"
    if adapter.others:
        places = sorted({key.rpartition(".")[0] for key in adapter.others})
        shown = ", ".join(f"`{place}`" for place in places[:3]) + (" and others" if len(places) > 3 else "")
        rows["of these in whole modules"] = f"{adapter.n_parameters - n_updates:,}, in {shown}"
    rows["size of the file"] = in_bytes(size)
    if info.training_seconds is not None:
        rows["training time"] = in_time(info.training_seconds)
    return rows


def _how_to_load(adapter: Adapter, base: str | None, auto: AutoClass | None, repo_id: str) -> str:
    library, network, labels = "", "...  # the network that it was trained on", ""
    if auto is not None and base is not None:
        if adapter.n_labels is not None and auto.has_labels:
            labels = f", num_labels={adapter.n_labels}"
        library, network = f"from transformers import {auto.name}\n", f'{auto.name}.from_pretrained("{base}"{labels})'
    elif base is not None and base.startswith("timm/"):
        classes = "" if adapter.n_labels is None else f", num_classes={adapter.n_labels}"
        library, network = "import timm\n", f'timm.create_model("hf-hub:{base}", pretrained=True{classes})'
    text = (
        f"## How to load it\n\nWith hf_tl:\n\n```python\n{library}"
        f"from hf_tl import load_adapter\n\n"
        f'model = {network}\nload_adapter(model, "{repo_id}")\n```\n\n'
        f"With PEFT:\n\n```python\n{library}from peft import PeftModel\n\n"
        f'model = {network}\nmodel = PeftModel.from_pretrained(model, "{repo_id}")\n```\n'
    )
    if auto is not None and base is not None:
        text += (
            f"\nWith transformers alone, network and adapter in one go (5.18 or later: older ones leave a head as it "
            f"was):\n\n```python\n{library}\n"
            f'model = {auto.name}.from_pretrained("{repo_id}"{labels})\n```\n'
        )
    return text
