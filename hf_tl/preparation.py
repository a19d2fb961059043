"""What turns raw inputs into batches of a pre-trained network, as it was trained on them."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from hf_tl.architectures import MODALITIES, is_transformers, main_input, reads_videos, timm_config
from hf_tl.errors import InputError, in_one_line
from hf_tl.example import timm_size
from hf_tl.inputs import read_image, read_recording, read_text
from hf_tl.trace import Batch


if TYPE_CHECKING:
    from transformers import PreTrainedModel

Prepare = Callable[[list], Batch]
LONGEST_TEXT = 512  # tokens, where nobody asks for more


def find_preparation(
    model: nn.Module,
    place: str,
    *,
    name: str,
    image_size: int | None = None,
    max_length: int | None = None,
    revision: str | None = None,
) -> tuple[Prepare, Any, str]:
    """What turns raw inputs into batches, the processor of transformers that it uses, if any, and what it reads.

    Args:
        model: one of timm, or of transformers.
        place: folder or Hub id of its processor.
        name: of the network, for messages.
        image_size: side of the square images in pixels; None for the size of pre-training.
        max_length: tokens of a text that are read; None for as many as there are positions, `LONGEST_TEXT` at most.
        revision: branch, tag or commit on the Hub.

    Raises:
        InputError: the model reads something else, comes without a processor, or does not take an option.
    """
    from transformers import TimmWrapperPreTrainedModel

    read = main_input(model) if is_transformers(model) else "pixel_values"
    modality = MODALITIES.get(read)
    if modality is None:
        raise InputError(
            f"{name!r} reads {read!r}; this version feeds images (pixel_values), text (input_ids) and audio "
            f"(input_values, input_features)"
        )
    if is_transformers(model) and reads_videos(model):
        raise InputError(
            f"{name!r} reads videos, which this version does not feed by name: give Network(model, prepare)"
        )
    for option, value, of in (("image_size", image_size, "image"), ("max_length", max_length, "text")):
        if value is not None and modality != of:
            raise InputError(f"{option}={value} was given, but {name!r} reads {modality}")
    files = {"pretrained_model_name_or_path": place, "revision": revision or "main"}
    try:
        if isinstance(model, TimmWrapperPreTrainedModel):  # whose own processor cannot be saved: it is in config.json
            settings = model.config.to_dict()["pretrained_cfg"]
            if image_size is not None:
                n_channels = (settings.get("input_size") or [3])[0]
                settings = {**settings, "input_size": [n_channels, image_size, image_size]}
                model.config.pretrained_cfg = settings
            return _for_timm(model.get_submodule("timm_model"), name, image_size, settings), None, modality
        if not is_transformers(model):
            return _for_timm(model, name, image_size, timm_config(model)), None, modality
        processor = _load_processor(modality, files, image_size)
        return _with_processor(model, processor, modality, name, max_length), processor, modality
    except InputError:
        raise
    except Exception as error:  # a foreign processor can fail in any way
        raise InputError(f"no processor for {name!r}: {in_one_line(error)}") from error


def preparation_with(model: nn.Module, processor: Any, *, name: str, max_length: int | None = None) -> Prepare:
    """What turns raw inputs into batches with a processor that is at hand, such as a Trainer's `processing_class`.

    Args:
        model: a network of transformers.
        processor: its tokenizer, image processor or feature extractor.
        name: of the network, for messages.
        max_length: tokens of a text that are read.

    Raises:
        InputError: a network of another make, or one that reads something else.
    """
    modality = MODALITIES.get(main_input(model)) if is_transformers(model) else None
    if modality is None or processor is None:
        raise InputError(
            f"{name!r} needs a processor to read raw inputs; give the network that load_network returned, or "
            f"Network(model, prepare)"
        )
    return _with_processor(model, processor, modality, name, max_length)


def _load_processor(modality: str, files: Mapping[str, str], image_size: int | None) -> Any:
    from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoTokenizer

    auto: Any = {"image": AutoImageProcessor, "text": AutoTokenizer, "audio": AutoFeatureExtractor}[modality]
    processor = auto.from_pretrained(**files)
    if image_size is None:
        return processor
    # in the processor itself, so that whoever saves it saves the size
    return auto.from_pretrained(**files, **_sizes(processor.to_dict(), image_size))


def _with_processor(
    model: Any, processor: Any, modality: str, name: str, max_length: int | None
) -> _ForImages | _ForTexts | _ForRecordings:
    if modality == "image":
        return _ForImages(processor, _mode(model.config.to_dict().get("num_channels") or 3, name))
    if modality == "text":
        return _for_texts(model, processor, name, max_length)
    return _for_recordings(model, processor, name)


def _for_timm(model: nn.Module, name: str, image_size: int | None, settings: Mapping[str, Any]) -> _ForTimm:
    from timm.data import create_transform, resolve_data_config

    data = resolve_data_config(pretrained_cfg=dict(settings), model=model)
    if image_size is not None:
        data["input_size"] = (data["input_size"][0], image_size, image_size)
    mode = _mode(timm_size(model)[0], name)  # not of `data`: a configuration that timm < 1.0.30 saved may always say 3
    return _ForTimm(create_transform(**data, is_training=False), mode)


@dataclass(frozen=True)
class _ForTimm:
    """Images -> (batch, channels, height, width). A class, as what follows: worker processes get a copy."""

    transform: Callable[[Any], Tensor]
    mode: Literal["RGB", "L"]

    def __call__(self, images: list) -> Tensor:
        return torch.stack([self.transform(read_image(image, mode=self.mode)) for image in images])


@dataclass(frozen=True)
class _ForImages:
    """Images -> what an image processor of transformers makes of them."""

    processor: Any
    mode: Literal["RGB", "L"]

    def __call__(self, images: list) -> Batch:
        images = [read_image(image, mode=self.mode) for image in images]
        return dict(self.processor(images, return_tensors="pt"))


def _mode(n_channels: int, name: str) -> Literal["RGB", "L"]:
    if n_channels not in (1, 3):
        raise InputError(
            f"{name!r} reads images of {n_channels} channels; colours (3) and grey (1) are known, so prepare them "
            f"yourself: Network(model, prepare)"
        )
    return "RGB" if n_channels == 3 else "L"


def _sizes(settings: Mapping[str, Any], image_size: int) -> dict[str, dict[str, int]]:
    """A processor's sizes for images of another side: all by one factor, so that the same margins are cut off."""
    if not settings.get("size"):
        raise InputError(f"image_size={image_size} was given, but the processor has no size of images; leave it out")
    sizes = {"size": settings["size"]}
    if settings.get("do_center_crop") and settings.get("crop_size"):
        sizes["crop_size"] = settings["crop_size"]
    own = sizes.get("crop_size") or sizes["size"]
    side = own.get("shortest_edge") or min(own["height"], own["width"])
    return {
        name: {edge: round(length * image_size / side) for edge, length in size.items() if length}
        for name, size in sizes.items()
    }


def _for_texts(model: PreTrainedModel, tokenizer: Any, name: str, max_length: int | None) -> _ForTexts:
    tokenizer.padding_side = "right"  # positions are counted from the left, and padding is masked on either side
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id  # by which classifiers find the last token of a text
    possible = min([tokenizer.model_max_length, *_limits(model)])
    if max_length is not None and not 0 < max_length <= possible:
        raise InputError(f"max_length should be 1 to the {possible} tokens that {name!r} reads, got {max_length}")
    length = max_length or min(possible, LONGEST_TEXT)
    window = _window(model)
    return _ForTexts(tokenizer, length, length < possible, name, window if window and length % window == 0 else None)


def _window(model: PreTrainedModel) -> int | None:
    """How many tokens local attention takes at a time, to which Longformer pads; None for any other network."""
    window = model.config.to_dict().get("attention_window")
    return max(window) if isinstance(window, (list, tuple)) else window


def _limits(model: PreTrainedModel) -> list[int]:
    """How many tokens a network has positions for; empty where it has as many as one likes."""
    config = model.config.get_text_config().to_dict()
    limits = [config[key] for key in ("max_position_embeddings", "n_positions") if config.get(key)]
    for name, module in model.named_modules():  # RoBERTa's positions begin behind that of padding
        if "position" in name and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            limits.append(module.num_embeddings - module.padding_idx - 1)
    return limits


@dataclass
class _ForTexts:
    """Texts, or pairs of texts, -> tokens, padded to the longest; the first batch with a text that is cut warns."""

    processor: Any
    max_length: int
    more: bool  # whether the network could read longer ones
    name: str
    multiple: int | None = None  # to which texts are padded, so that the mask tells of all positions
    warned: bool = field(default=False, repr=False)

    def __call__(self, texts: list) -> Batch:
        firsts, seconds = zip(*(read_text(text) for text in texts), strict=True)
        if None in seconds and any(second is not None for second in seconds):
            raise ValueError("single texts and pairs of texts are mixed")
        pairs = [list(firsts), None if None in seconds else list(seconds)]
        batch = self.processor(
            *pairs,
            padding=True,
            truncation=True,
            max_length=self.max_length,
            pad_to_multiple_of=self.multiple,
        )
        lengths = [sum(mask) for mask in batch["attention_mask"]]
        if not all(lengths):
            raise ValueError("the tokenizer finds no token in the text: there is nothing to read")
        if not self.warned and max(lengths) >= self.max_length:
            self._warn(pairs)
        batch = batch.convert_to_tensors("pt")
        return {key: value for key, value in batch.items() if key in self.processor.model_input_names}

    def _warn(self, pairs: list) -> None:
        whole = [len(ids) for ids in self.processor(*pairs, verbose=False)["input_ids"]]
        n_cut = sum(length > self.max_length for length in whole)
        if n_cut:
            self.warned = True
            warnings.warn(
                f"{n_cut} of {len(whole)} texts of a batch have more than {self.max_length} tokens, up to "
                f"{max(whole)}; what is beyond is cut, also from later ones"
                + (f"; load_network({self.name!r}, max_length=...) reads more" if self.more else ""),
                stacklevel=2,
            )


def _for_recordings(model: PreTrainedModel, extractor: Any, name: str) -> _ForRecordings:
    settings, rate = extractor.to_dict(), extractor.sampling_rate
    # spectrograms come in the one length that the network takes, samples in that of the longest recording
    takes_samples = main_input(model) == "input_values" and "num_mel_bins" not in model.config.to_dict()
    asked = inspect.signature(type(extractor).__call__).parameters.get("padding")
    pads = (takes_samples and "padding_value" in settings) or (asked is not None and asked.default is False)
    padding = {"padding": True} if pads else {}
    longest = settings.get("n_samples") or settings.get("nb_max_samples")  # of Whisper and CLAP
    if longest is None and {"max_length", "num_mel_bins"} <= set(settings):
        longest = settings["max_length"] * rate // 100  # of AST, in frames of 10 ms
    return _ForRecordings(extractor, padding, _first_frame(model) if takes_samples else 1, longest, name)


def _first_frame(model: PreTrainedModel) -> int:
    """Samples that a network's convolutions need for one frame, where its configuration tells them."""
    config, n = model.config.to_dict(), 1
    steps = zip(config.get("conv_kernel") or (), config.get("conv_stride") or (), strict=True)
    for kernel, stride in reversed(list(steps)):
        n = (n - 1) * stride + kernel
    return n


@dataclass(frozen=True)
class _ForRecordings:
    """Recordings -> what a feature extractor of transformers makes of them."""

    processor: Any
    options: Mapping[str, Any]
    shortest: int
    longest: int | None
    name: str

    def __call__(self, recordings: list) -> Batch:
        rate = self.processor.sampling_rate
        samples = [read_recording(recording, rate=rate) for recording in recordings]
        if (least := min(map(len, samples))) < self.shortest:
            raise ValueError(
                f"the recording has {least} samples at {rate} Hz, and one frame takes {self.shortest}: there is "
                f"nothing to read"
            )
        if self.longest is not None and any(len(one) > self.longest for one in samples):
            warnings.warn(f"{self.name!r} reads {self.longest / rate:g} s; longer recordings are cut", stacklevel=2)
        return dict(self.processor(samples, sampling_rate=rate, return_tensors="pt", **self.options))
