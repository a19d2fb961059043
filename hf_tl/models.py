"""A name -> a pre-trained network and what turns raw inputs into its batches, for transformers and timm alike."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from hf_tl.audio import read_samples
from hf_tl.errors import InputError, in_one_line
from hf_tl.trace import Batch


SECOND = 16000  # samples of made-up recordings


@dataclass(frozen=True)
class Network:
    """A network with its preparation of inputs.

    Attributes:
        model: the network; called with what `prepare` returns.
        prepare: a list of raw inputs (PIL images, strings, recordings, arrays) -> a batch: one tensor, or a mapping
            of tensors passed by keyword; the first dimension of every tensor is the batch.
        modality: what a raw input is: "image", "text", "audio" or "array".
        name: how the user called it.
        untrained: names of modules whose weights are not in the checkpoint and are therefore random.
        image_size: side of the square images that were asked for, in pixels; None for the size of pre-training.
        revision: branch, tag or commit that was asked for.
        processor: transformers' tokenizer, image processor or feature extractor, if `prepare` uses one.
    """

    model: nn.Module
    prepare: Callable[[list], Batch]
    modality: str = "array"
    name: str = "network"
    untrained: frozenset[str] = frozenset()
    image_size: int | None = None
    revision: str | None = None
    processor: object | None = None


def load_network(name: str, *, image_size: int | None = None, revision: str | None = None) -> Network:
    """Loads a pre-trained network and its preparation of inputs, in float32 and eval mode.

    Args:
        name: a Hub id ("timm/resnet50.a1_in1k", "google/vit-base-patch16-224"), a timm model name
            ("resnet50.a1_in1k"), a folder with a config.json and weights, or "local-dir:FOLDER".
        image_size: side of the square images in pixels; None for the size of pre-training.
        revision: branch, tag or commit on the Hub.

    Raises:
        InputError: no such model, or one that this version cannot feed.
    """
    from timm import get_pretrained_cfg, is_model

    if image_size is not None and image_size < 1:
        raise InputError(f"image_size must be at least 1 pixel, got {image_size}")
    source, _, rest = name.partition(":")
    place = rest if source in ("local-dir", "hf-hub") and rest else name
    if os.path.isdir(place):
        config, timm_name = _read_config(Path(place) / "config.json", place), f"local-dir:{place}"
    elif source == "local-dir" or place.startswith((".", "~", os.sep)):
        raise InputError(f"model folder {place!r} does not exist; give a folder with a config.json, or a Hub id")
    elif "/" not in place and is_model(place):
        known = get_pretrained_cfg(place)
        config, timm_name = {"architecture": place, "pretrained_cfg": known.to_dict() if known else {}}, place
    else:
        config = _hub_config(place, revision)
        timm_name = f"hf-hub:{place}" if revision is None else f"hf-hub:{place}@{revision}"
    if "model_type" in config:
        loaded = _from_transformers(name, place, image_size=image_size, revision=revision)
        return replace(loaded, image_size=image_size, revision=revision)
    if "architecture" in config:
        loaded = _from_timm(name, timm_name, config, image_size=image_size)
        return replace(loaded, image_size=image_size, revision=revision)
    raise InputError(
        f"config.json of {name!r} has neither 'model_type' (transformers) nor 'architecture' (timm), but "
        f"{sorted(config)[:5]}; save the model with save_pretrained or timm.models.save_for_hf"
    )


def example_batch(network: Network, *, n: int = 2) -> Batch:
    """A batch of `n` made-up inputs that the network accepts, for looking at its layers without a dataset."""
    if network.modality == "image":
        from PIL import Image

        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (n, 256, 256, 3), generator=generator, dtype=torch.uint8)
        return network.prepare([Image.fromarray(image.numpy()) for image in pixels])
    if network.modality == "text":
        return network.prepare(["Knowledge of one task serves another."] * n)
    if network.modality == "audio":
        return network.prepare(list(torch.randn(n, SECOND, generator=torch.Generator().manual_seed(0)).numpy()))
    raise InputError(f"{network.name} takes arrays of a shape only you know; give an example batch")


def find_preparation(
    model: nn.Module, place: str, *, image_size: int | None = None, revision: str | None = None
) -> tuple[Callable[[list], Batch], object | None, str]:
    """What turns raw inputs into batches of one of transformers' models, its processor, and what it reads.

    Raises:
        InputError: the model reads something else, or comes without a processor.
    """
    makers = {
        "pixel_values": (_image_prepare, "image"),
        "input_ids": (_text_prepare, "text"),
        "input_values": (_audio_prepare, "audio"),
        "input_features": (_audio_prepare, "audio"),
    }
    if model.main_input_name not in makers:
        raise InputError(
            f"{place!r} reads {model.main_input_name!r}; this version feeds images (pixel_values), text (input_ids) "
            f"and audio (input_values, input_features)"
        )
    make, modality = makers[model.main_input_name]
    try:
        prepare, processor = make(model, place, image_size=image_size, revision=revision)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"no processor for {place!r}: {in_one_line(error)}") from error
    return prepare, processor, modality


def _from_timm(name: str, timm_name: str, config: Mapping, *, image_size: int | None) -> Network:
    import timm

    try:
        fixed = config.get("pretrained_cfg", {}).get("fixed_input_size", False)
        resized = {"img_size": image_size} if image_size is not None and fixed else {}
        model = timm.create_model(timm_name, pretrained=True, **resized).eval()
        prepare = _timm_prepare(model, image_size)
    except Exception as error:  # a foreign config can fail timm in any way
        raise InputError(f"timm could not load {name!r}: {in_one_line(error)}") from error
    return Network(model, prepare, modality="image", name=name)


def _timm_prepare(model: nn.Module, image_size: int | None) -> Callable[[list], Tensor]:
    from timm.data import create_transform, resolve_model_data_config

    data = resolve_model_data_config(model)
    if image_size is not None:
        data["input_size"] = (data["input_size"][0], image_size, image_size)
    transform = create_transform(**data, is_training=False)
    mode = "RGB" if data["input_size"][0] == 3 else "L"

    def prepare(images: list) -> Tensor:
        return torch.stack([transform(image.convert(mode)) for image in images])

    return prepare


def _from_transformers(name: str, place: str, *, image_size: int | None, revision: str | None) -> Network:
    from transformers import AutoModel

    try:
        model, loading = AutoModel.from_pretrained(
            place, revision=revision or "main", dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # a foreign config can fail transformers in any way
        raise InputError(f"transformers could not load {name!r}: {in_one_line(error)}") from error
    untrained = frozenset(key.rpartition(".")[0] for key in loading["missing_keys"])
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    prepare, processor, modality = find_preparation(model, place, image_size=image_size, revision=revision)
    return Network(model.eval(), prepare, modality=modality, name=name, untrained=untrained, processor=processor)


def _image_prepare(
    model: nn.Module, place: str, *, image_size: int | None, revision: str | None
) -> tuple[Callable, object]:
    from transformers import AutoImageProcessor, TimmWrapperPreTrainedModel

    if isinstance(model, TimmWrapperPreTrainedModel):
        return _timm_prepare(model.timm_model, image_size), None  # its processor cannot be saved
    processor = AutoImageProcessor.from_pretrained(place, revision=revision or "main")
    resized = {}
    if image_size is not None:
        square = {"height": image_size, "width": image_size}
        resized = {"size": square, "crop_size": square}

    def prepare(images: list) -> Batch:
        return dict(processor([image.convert("RGB") for image in images], return_tensors="pt", **resized))

    return prepare, processor


def _text_prepare(
    model: nn.Module, place: str, *, image_size: int | None, revision: str | None
) -> tuple[Callable, object]:
    from transformers import AutoTokenizer

    if image_size is not None:
        raise InputError(f"image_size={image_size} was given, but {place!r} reads text")
    tokenizer = AutoTokenizer.from_pretrained(place, revision=revision or "main")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    positions = model.config.to_dict().get("max_position_embeddings") or 512
    length = min(tokenizer.model_max_length, positions, 512)
    accepted = set(tokenizer.model_input_names)

    def prepare(texts: list) -> Batch:
        batch = tokenizer([str(text) for text in texts], padding=True, truncation=True, max_length=length)
        batch = batch.convert_to_tensors("pt")
        return {key: value for key, value in batch.items() if key in accepted}

    return prepare, tokenizer


def _audio_prepare(
    model: nn.Module, place: str, *, image_size: int | None, revision: str | None
) -> tuple[Callable, object]:
    from transformers import AutoFeatureExtractor

    if image_size is not None:
        raise InputError(f"image_size={image_size} was given, but {place!r} reads audio")
    extractor = AutoFeatureExtractor.from_pretrained(place, revision=revision or "main")
    rate = extractor.sampling_rate
    # spectrograms come in the one length that the network takes, samples in that of the longest recording
    padding = {"padding": True} if "padding_value" in extractor.to_dict() and _takes_samples(model) else {}

    def prepare(recordings: list) -> Batch:
        samples = [read_samples(recording, rate=rate) for recording in recordings]
        return dict(extractor(samples, sampling_rate=rate, return_tensors="pt", **padding))

    return prepare, extractor


def _takes_samples(model: nn.Module) -> bool:
    return model.main_input_name == "input_values" and "num_mel_bins" not in model.config.to_dict()


def _hub_config(name: str, revision: str | None) -> dict:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.constants import HF_HUB_OFFLINE

    try:
        return _read_config(Path(hf_hub_download(name, "config.json", revision=revision)), name)
    except (OSError, ValueError) as error:  # every error of the Hub is an OSError, of a malformed id a ValueError
        if isinstance(error, InputError):
            raise
        state = "the Hub is switched off by HF_HUB_OFFLINE=1" if HF_HUB_OFFLINE else "the Hub did not give it"
        raise InputError(
            f"model {name!r} is not a folder, not a timm model name and not in the local Hub cache, and {state}; "
            f"check the spelling, or download it first with: hf download {name}"
        ) from error


def _read_config(path: Path, name: str) -> dict:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"folder {name!r} has no config.json; expected a saved transformers or timm model") from error
    except ValueError as error:
        raise InputError(f"config.json of {name!r} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"config.json of {name!r} should hold an object, got {type(config).__name__}")
    return config
