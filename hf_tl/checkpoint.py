"""A network as files that its own library loads: weights as safetensors, and its processor beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from hf_tl.architectures import is_timm, is_transformers, timm_config
from hf_tl.errors import InputError
from hf_tl.files import pack_tensors, write_json, write_whole, writing_to
from hf_tl.models import Network, load_processor


def save_network(
    network: Network,
    folder: str | Path,
    *,
    class_names: Sequence[str] = (),
    state_dict: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes a network with its processor: `load_network(folder)` and `transformers.pipeline` read what it reads.

    Args:
        network: of transformers or timm.
        folder: is made.
        class_names: of the outputs; a network of transformers has them in its configuration.
        state_dict: values to write instead of its own.

    Raises:
        InputError: a network of another make.
    """
    model = network.model
    save_model(
        model,
        folder,
        n_labels=model.num_classes if is_timm(model) else None,
        image_size=network.image_size,
        class_names=class_names,
        state_dict=state_dict,
    )
    if network.processor is not None:
        network.processor.save_pretrained(folder)


def save_model(
    model: nn.Module,
    folder: str | Path,
    *,
    n_labels: int | None = None,
    image_size: int | None = None,
    class_names: Sequence[str] = (),
    state_dict: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes a network of transformers or timm as its own library loads it.

    Args:
        model: with nothing of an adapter in it.
        folder: is made.
        n_labels: outputs of the head of timm's, where they are not those of its architecture.
        image_size: of timm's network, side of its square images, where it is not that of pre-training.
        class_names: of the outputs of timm's network.
        state_dict: values to write instead of its own.

    Raises:
        InputError: a network of another make, which no library could load.
    """
    if is_transformers(model):
        model.save_pretrained(folder, state_dict=None if state_dict is None else dict(state_dict))
        return
    known = timm_config(model)
    if not known:
        raise InputError(
            f"a {type(model).__name__} is neither a network of transformers nor of timm, and no file says how to "
            f"build it; save its state_dict yourself"
        )
    from timm.models import save_for_hf

    config = {} if n_labels is None else {"num_classes": n_labels}
    with writing_to(folder):
        save_for_hf(model, str(folder), model_config=config, safe_serialization=True)
    if state_dict is not None:
        write_whole(Path(folder, "model.safetensors"), pack_tensors(state_dict))
    path = Path(folder, "config.json")
    said = json.loads(path.read_text(encoding="utf-8"))
    if class_names:
        said["label_names"] = list(class_names)
    if image_size is not None:
        settings = said["pretrained_cfg"]
        settings["input_size"] = [(known.get("input_size") or [3])[0], image_size, image_size]
        settings.pop("test_input_size", None)
        if known.get("fixed_input_size"):
            said.setdefault("model_args", {})["img_size"] = image_size
    write_json(path, said)


def name_outputs(model: nn.Module, names: Sequence[str] = ()) -> tuple[str, ...]:
    """The names of a classifier's outputs, empty where nobody named them.

    Args:
        model: a network; one of transformers keeps them in its configuration.
        names: those to give them, in their order.

    Raises:
        InputError: another number of names than of outputs.
    """
    names = tuple(map(str, names))
    n_outputs = model.config.num_labels if is_transformers(model) else model.num_classes if is_timm(model) else None
    if names and n_outputs not in (None, len(names)):
        raise InputError(f"the network has {n_outputs} outputs, but there are {len(names)} names: {list(names)}")
    if not is_transformers(model):
        return names
    if names:
        vars(model.config).pop("label_names", None)  # timm's, which transformers would save in their place
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: number for number, name in enumerate(names)}
    own = tuple(str(name) for _, name in sorted((model.config.id2label or {}).items()))
    return () if own == tuple(f"LABEL_{i}" for i in range(len(own))) else own


def save_processor(name: str, folder: str | Path, *, model: nn.Module) -> None:
    """Copies the tokenizer, image processor or feature extractor of a network that is named.

    Args:
        name: as for `load_network`.
        folder: that of the network.
        model: what it is for; a network of timm keeps all of it in its config.json.

    Raises:
        InputError: no processor for it.
    """
    processor = load_processor(name, model=model)
    if processor is not None:
        processor.save_pretrained(folder)


def can_reload(model: nn.Module) -> bool:
    """Whether `load_network` without classes gives the same network from what `save_network` writes of it.

    It does not of a module of one's own, of a network with a head of transformers', or of a part of a network, such as
    the encoder of an encoder-decoder.
    """
    if not is_transformers(model):
        return is_timm(model)
    from transformers import MODEL_MAPPING

    found = MODEL_MAPPING.get(type(model.config), ())
    return type(model) in (found if isinstance(found, tuple) else (found,))
