"""The model card of an adapter: what it changes, what it cost, how to load it."""

from __future__ import annotations

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
from hf_tl.hub import CARD, is_hub_name
from hf_tl.lora.adapter import Adapter, read_adapter
from hf_tl.lora.adapter_file import TENSORS_NAME
from hf_tl.lora.base_network import n_labels_of


TAGS = ("lora", "hf_tl")


def adapter_card(
    folder: Path, *, info: CardInfo, repo_id: str | None = None, n_base: int | None = None, old: str | None = None
) -> str:
    """The text of README.md for what a folder holds.

    Args:
        folder: what `save_adapter`, PEFT or a Trainer wrote.
        info: what no file can know.
        repo_id: where others will find it; None where that is not known yet.
        n_base: parameters of the network, where it is at hand.
        old: a card to complete.

    Raises:
        InputError: files that are no LoRA adapter, results without a task, an old card that cannot be read.
    """
    adapter = read_adapter(folder)
    base = base_of(adapter)
    if info.training_seconds is None:
        info = replace(info, training_seconds=trainer_seconds(folder))
    auto = _auto_class(adapter)
    named = f"[{base}](https://huggingface.co/{base})" if base else "a network without a name on the Hub"
    ranks = Counter(update.rank for update in adapter.updates.values())
    spread = ", ".join(f"rank {rank} in {n} layers" for rank, n in sorted(ranks.items()))
    opening = (
        f"A low-rank adapter (LoRA, Hu et al., ICLR 2022) of {named}: {spread}. The network itself is not in here, "
        f"it stays as it is.\n{data_sentence(info)}\n"
    )
    size = (folder / TENSORS_NAME).stat().st_size
    body = opening + results_table(info) + footprint_table(_footprint(adapter, info, size, n_base))
    body += _how_to_load(adapter, base, auto, repo_id or "PATH_OR_HUB_ID_OF_THIS")
    return write_card(
        old,
        title=Path(repo_id or folder.resolve()).name,
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


def update_card(folder: Path, *, n_base: int | None = None) -> None:
    """Completes the README.md in an adapter's folder, or writes one."""
    path = folder / CARD
    old = path.read_text(encoding="utf-8") if path.is_file() else None
    path.write_text(adapter_card(folder, info=CardInfo(), n_base=n_base, old=old), encoding="utf-8")


def count_base(model: nn.Module) -> int:
    """Parameters of the network without what was added to it."""
    added = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name or ".modules_to_save." in name)
    return sum(p.numel() for p in model.parameters()) - added


def base_of(adapter: Adapter) -> str | None:
    """The Hub id of the network; None where it has none, and for a folder, which only this machine has."""
    base = adapter.config.get("base_model_name_or_path")
    return str(base) if is_hub_name(base) else None


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


def _auto_class(adapter: Adapter) -> AutoClass | None:
    """transformers' loader of the network; a name from the file is compared with known ones, never looked up."""
    auto = auto_class_of_task(adapter.config.get("task_type"))
    mapping = adapter.config.get("auto_mapping") or {}
    if auto is None and str(mapping.get("parent_library") or "").startswith("transformers."):
        auto = auto_class_named(str(mapping.get("base_model_class") or ""))
    return auto


def _how_to_load(adapter: Adapter, base: str | None, auto: AutoClass | None, repo_id: str) -> str:
    n_labels = n_labels_of(adapter)
    if auto is not None and base is not None:
        labels = f", num_labels={n_labels}" if n_labels is not None and auto.has_labels else ""
        library, network = f"from transformers import {auto.name}\n", f'{auto.name}.from_pretrained("{base}"{labels})'
    elif base is not None and base.startswith("timm/"):
        labels = "" if n_labels is None else f", num_classes={n_labels}"
        library, network = "import timm\n", f'timm.create_model("hf-hub:{base}", pretrained=True{labels})'
    else:
        library, network, labels = "", "...  # the network that it was trained on", ""
    text = (
        f"## How to load it\n\nWith hf_tl:\n\n```python\n{library}"
        f"from hf_tl import load_adapter\n\n"
        f'model = {network}\nload_adapter(model, "{repo_id}")\n```\n\n'
        f"With PEFT:\n\n```python\n{library}from peft import PeftModel\n\n"
        f'model = {network}\nmodel = PeftModel.from_pretrained(model, "{repo_id}")\n```\n'
    )
    if auto is not None and base is not None:
        text += (
            f"\nWith transformers alone, network and adapter in one go:\n\n```python\n{library}\n"
            f'model = {auto.name}.from_pretrained("{repo_id}"{labels})\n```\n'
        )
    return text
