"""The network that an adapter was trained on, from a name that the user gave, with a batch that it accepts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from torch import nn

from hf_tl.errors import InputError, in_one_line
from hf_tl.lora.adapter import Adapter
from hf_tl.trace import Batch


TASKS = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "FEATURE_EXTRACTION": "AutoModel",
}
_MAPPINGS = {  # where transformers lists the classes that each of these loads
    "AutoModelForSequenceClassification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
    "AutoModelForImageClassification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",
    "AutoModelForTokenClassification": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING",
    "AutoModelForQuestionAnswering": "MODEL_FOR_QUESTION_ANSWERING_MAPPING",
    "AutoModelForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING",
    "AutoModelForSeq2SeqLM": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
    "AutoModelForMaskedLM": "MODEL_FOR_MASKED_LM_MAPPING",
}
_WRAPPED = "timm_model."  # where transformers' wrapper of a timm network keeps it
WITH_LABELS = tuple(name for name in _MAPPINGS if name.endswith("Classification"))


def load_base(name: str, adapter: Adapter, *, dtype: torch.dtype | str = torch.float32) -> nn.Module:
    """The network with the head that the adapter fits, in eval mode.

    The user's `name` decides what is loaded; of the adapter's file only the task, the size of its head, whether its
    layers lie in transformers' wrapper of a timm network, and the name of the class count, the latter as a choice
    among the classes that transformers lists for the network.

    Args:
        name: a Hub id or folder of transformers or timm, or a timm model name.
        adapter: what `read_adapter` returned.
        dtype: of the weights; "auto" for that of the file.

    Raises:
        InputError: no such network.
    """
    torch.manual_seed(0)  # a head that is in neither file is random, and the same each time
    n_labels = n_labels_of(adapter)
    try:
        if not _is_timm(name):
            model = _from_transformers(name, adapter, n_labels, dtype)
        elif any(layer.startswith(_WRAPPED) for layer in adapter.updates):
            place = name if "/" in name or os.path.isdir(name) else f"timm/{name}"
            model = _from_transformers(place, adapter, n_labels, dtype)
        else:
            model = _from_timm(name, n_labels)
    except Exception as error:  # a foreign config can fail these libraries in any way
        raise InputError(f"network {name!r} cannot be loaded: {in_one_line(error)}") from error
    return model.eval()


def made_up_batch(model: nn.Module, *, rows: int = 2) -> Batch:
    """Random tokens or pixels, the same each time, that the network accepts.

    Raises:
        InputError: a network that reads something else.
    """
    from transformers import PreTrainedModel

    generator = torch.Generator().manual_seed(0)
    if not isinstance(model, PreTrainedModel):
        size = tuple(model.pretrained_cfg["input_size"])
        return torch.randn(rows, *size, generator=generator)
    config = model.config.to_dict()
    if model.main_input_name == "pixel_values":
        size = config.get("image_size") or 224
        if "pretrained_cfg" in config and "input_size" in (config["pretrained_cfg"] or {}):
            size = config["pretrained_cfg"]["input_size"][1]
        height, width = (size, size) if isinstance(size, int) else size
        return {"pixel_values": torch.randn(rows, config.get("num_channels") or 3, height, width, generator=generator)}
    if model.main_input_name == "input_ids":
        length = min(16, config.get("max_position_embeddings") or 16)
        tokens = torch.randint(1, config["vocab_size"], (rows, length), generator=generator)
        batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        return {**batch, "decoder_input_ids": tokens[:, :4]} if model.config.is_encoder_decoder else batch
    raise InputError(f"{type(model).__name__} reads {model.main_input_name!r}; only tokens and pixels can be made up")


def _is_timm(name: str) -> bool:
    if os.path.isdir(name):
        path = Path(name) / "config.json"
        config = json.loads(path.read_text()) if path.is_file() else {}
        return "architecture" in config and "model_type" not in config
    from timm import is_model

    return name.startswith("timm/") or ("/" not in name and is_model(name))


def _from_timm(name: str, n_labels: int | None) -> nn.Module:
    import timm

    place = f"local-dir:{name}" if os.path.isdir(name) else f"hf-hub:{name}" if "/" in name else name
    return timm.create_model(place, pretrained=True, **({} if n_labels is None else {"num_classes": n_labels}))


def _from_transformers(name: str, adapter: Adapter, n_labels: int | None, dtype: torch.dtype | str) -> nn.Module:
    import transformers

    config = transformers.AutoConfig.from_pretrained(name)
    mapping = adapter.config.get("auto_mapping") or {}
    kind = mapping.get("base_model_class") or next(iter(config.architectures or ()), None)
    auto = TASKS.get(adapter.config.get("task_type") or "") or _auto_class(config, kind)
    labels = {"num_labels": n_labels} if n_labels is not None and auto in WITH_LABELS else {}
    return getattr(transformers, auto).from_pretrained(name, dtype=dtype, ignore_mismatched_sizes=True, **labels)


def _auto_class(config: object, kind: object) -> str:
    """The loader among transformers' own that gives a class of this name for this network."""
    import transformers

    for auto, mapping in _MAPPINGS.items():
        found = getattr(transformers, mapping).get(type(config), None)
        classes = found if isinstance(found, tuple) else (found,)
        if any(known is not None and known.__name__ == kind for known in classes):
            return auto
    return "AutoModel"


def n_labels_of(adapter: Adapter) -> int | None:
    """Rows of the last matrix among the modules that come whole: the head's outputs."""
    wanted = adapter.config.get("modules_to_save") or ()
    matrices = [
        tensor.shape[0]
        for key, tensor in adapter.others.items()
        if tensor.ndim == 2 and any(f"{entry}." in f"{key}." for entry in wanted)
    ]
    return matrices[-1] if matrices else None


def save_network(model: nn.Module, folder: Path, adapter: Adapter) -> None:
    """Writes the whole network as its own library loads it."""
    from transformers import PreTrainedModel

    if isinstance(model, PreTrainedModel):
        model.save_pretrained(folder)
        return
    from timm.models import save_for_hf

    labels = n_labels_of(adapter)
    config = {} if labels is None else {"num_classes": labels}
    save_for_hf(model, folder, model_config=config, safe_serialization=True)
