"""Dummy inputs: batches that a network accepts, from its configuration, and raw inputs for what prepares them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hf_tl.architectures import (
    CONVOLUTIONS,
    TRANSPOSED,
    find_networks,
    inner_network,
    is_fully_connected,
    is_transformers,
    main_input,
    timm_config,
)
from hf_tl.errors import DummyInputError, InputError, in_one_line
from hf_tl.trace import Batch


if TYPE_CHECKING:
    from transformers import PreTrainedModel


TOKENS = 8  # length of a dummy text
SAMPLES = 4000  # length of a dummy recording: a quarter of a second at 16 kHz
SIDE = 64  # of a dummy image, in pixels, where the configuration does not say

_VISION = ("vision_config", "backbone_config", "encoder")


def dummy_batch(model: nn.Module, *, n: int = 2) -> Batch:
    """A batch of `n` dummy inputs, the same at every call, on the network's device and in its dtype.

    Pixels, samples and spectrograms are Gaussian noise; token ids are drawn from the upper half of the vocabulary,
    away from the special ones.

    Raises:
        DummyInputError: a network that does not tell what it reads.
    """
    if n < 1:
        raise InputError(f"n must be at least 1, got {n}")
    model = inner_network(model)
    draw = _Draw(model, n)
    if is_transformers(model):
        try:
            return _for_transformers(model, draw)
        except InputError:
            raise
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # a form of its own
            raise DummyInputError(
                f"the configuration of {type(model).__name__} does not tell what it reads ({in_one_line(error)}); "
                f"give something it can be called with as example=..."
            ) from error
    if timm_config(model):
        return draw.noise(*timm_size(model))
    networks = list(find_networks(model).values())
    return _for_the_network_in(model, networks[0], n) if len(networks) == 1 else _for_first_layer(model, draw)


def dummy_inputs(modality: str, *, n: int = 2) -> list:
    """A list of `n` raw inputs, the same at every call: PIL images, strings, or recordings of a second at 16 kHz.

    Args:
        modality: "image", "text" or "audio".
        n: how many.

    Raises:
        InputError: another modality.
    """
    generator = torch.Generator().manual_seed(0)
    if modality == "image":
        from PIL import Image

        pixels = torch.randint(0, 256, (n, 256, 256, 3), generator=generator, dtype=torch.uint8)
        return [Image.fromarray(image.numpy()) for image in pixels]
    if modality == "text":
        return ["Knowledge of one task serves another."] * n
    if modality == "audio":
        return list(torch.randn(n, 16000, generator=generator).numpy())
    raise InputError(f"there are dummy inputs of modality 'image', 'text' or 'audio', got {modality!r}")


def shapes_of(batch: Batch) -> str:
    """The shapes of a batch, for an error message."""
    if isinstance(batch, Tensor):
        return str(tuple(batch.shape))
    return ", ".join(f"{name} {tuple(value.shape)}" for name, value in batch.items() if isinstance(value, Tensor))


class _Draw:
    """Random tensors of `n` samples from a generator of their own."""

    def __init__(self, model: nn.Module, n: int):
        self.n = n
        self.generator = torch.Generator().manual_seed(0)
        first = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
        self.device, self.dtype = first.device, first.dtype

    def noise(self, *shape: int) -> Tensor:
        """(n, *shape) of the network's floating point type."""
        return torch.randn(self.n, *shape, generator=self.generator).to(self.device, self.dtype)

    def tokens(self, vocabulary: int, length: int = TOKENS) -> Tensor:
        """(n, length) int64."""
        low = vocabulary // 2
        return torch.randint(low, max(vocabulary, low + 1), (self.n, length), generator=self.generator).to(self.device)


def _for_transformers(model: PreTrainedModel, draw: _Draw) -> Batch:
    config = model.config.to_dict()
    reads = inspect.signature(model.forward).parameters
    names = [main_input(model)]
    if "inputs" in names:  # Perceiver, whose heads call their input by what it is
        names = [next((name for name in ("input_ids", "pixel_values") if name in reads), "inputs")]
        config["num_frames"] = None  # of its videos
    if {"input_ids", "input_features"} <= set(reads) and {"text_config", "audio_config"} <= set(config):
        names = ["input_ids", "input_features"]  # CLAP
    both = "text_config" in config or {"vocab_size", "image_size"} <= set(config)
    if both and {"input_ids", "pixel_values"} <= set(reads):
        names = ["input_ids", "pixel_values"]
    if config.get("is_encoder_decoder") and "decoder_input_ids" in reads:
        names.append("decoder_input_ids")
    batch = {}
    for name in names:
        if name not in _MAKERS:
            raise DummyInputError(
                f"{type(model).__name__} reads {name!r}, of which there is no dummy; "
                f"give one that it can be called with as example=..."
            )
        batch[name] = _MAKERS[name](config, draw)
    if "bbox" in reads and "dim_bbox" in config:  # Bros, which has to be told where each word stands
        batch["bbox"] = draw.noise(TOKENS, 4)
    if "image_grid_thw" in reads:
        return batch | _grid_of_patches(config, draw, batch["input_ids"])
    if "spatial_shapes" in reads and "pixel_values" in batch:
        return batch | _patches(config, draw)
    return _with_image_tokens(batch, config) if set(names) == {"input_ids", "pixel_values"} else batch


def _token_ids(config: Mapping[str, Any], draw: _Draw) -> Tensor:
    size = _look_up(config, "vocab_size", ("text_config", "encoder", "text_encoder"), default=32)
    ids = draw.tokens(size)
    end = config.get("eos_token_id")
    if isinstance(end, int) and end < size:
        ids[:, -1] = end  # BART's classifier reads what stands there
    return ids


def _decoder_ids(config: Mapping[str, Any], draw: _Draw) -> Tensor:
    size = _look_up(config, "decoder_vocab_size", (), default=0)
    return draw.tokens(size or _look_up(config, "vocab_size", ("decoder", "text_config"), default=32))


def _with_image_tokens(batch: Mapping[str, Tensor], config: Mapping[str, Any]) -> Batch:
    """In front of the text a token for each feature of an image, where a language model reads them so (LLaVA)."""
    token = next((config[key] for key in ("image_token_id", "image_token_index") if config.get(key) is not None), None)
    if token is None:
        return batch
    vision = config["vision_config"]
    n_features = config.get("mm_tokens_per_image") or (vision["image_size"] // vision["patch_size"]) ** 2
    ids = batch["input_ids"].masked_fill(batch["input_ids"] == token, 0)
    return {**batch, "input_ids": torch.cat([ids.new_full((len(ids), n_features), token), ids], dim=1)}


def _pixels(config: Mapping[str, Any], draw: _Draw) -> Tensor:
    trained = config.get("pretrained_cfg") or {}  # transformers' wrapper of timm
    channels, *sides = trained.get("input_size") or (_look_up(config, "num_channels", _VISION, default=3),)
    if not sides:
        side = _look_up(config, "image_size", _VISION, default=SIDE)
        if isinstance(side, Mapping):
            side = (side["height"], side["width"])
        sides = list(side) if isinstance(side, (list, tuple)) else [side, side]
    frames = config.get("num_frames")
    return draw.noise(*([frames] if frames else []), channels, *sides)


def _patches(config: Mapping[str, Any], draw: _Draw) -> dict[str, Tensor]:
    """An image as SigLIP2 takes it, of any shape: flat patches, which of them are there, rows and columns of them."""
    size = _look_up(config, "patch_size", _VISION, default=16)
    side = math.isqrt(_look_up(config, "num_patches", _VISION, default=256))
    pixels = draw.noise(side**2, size**2 * _look_up(config, "num_channels", _VISION, default=3))
    return {
        "pixel_values": pixels,
        "pixel_attention_mask": torch.ones(draw.n, side**2, dtype=torch.int64, device=draw.device),
        "spatial_shapes": torch.full((draw.n, 2), side, device=draw.device),
    }


def _grid_of_patches(config: Mapping[str, Any], draw: _Draw, ids: Tensor) -> dict[str, Tensor]:
    """An image a sample as Qwen2-VL takes it: the flat patches of all images, grids of them, and a token for each."""
    vision = config["vision_config"]
    merge, size = vision["spatial_merge_size"], vision["patch_size"]
    channels = vision.get("in_channels") or vision.get("in_chans") or 3
    width = channels * vision["temporal_patch_size"] * size**2
    n_patches = (2 * merge) ** 2
    patches = draw.noise(n_patches, width).flatten(0, 1)
    image = ids.new_full((len(ids), n_patches // merge**2), config["image_token_id"])
    started = ids.new_full((len(ids), 1), config["vision_start_token_id"])
    special = [value for key, value in config.items() if key.endswith("token_id") and isinstance(value, int)]
    ids = torch.where(torch.isin(ids, ids.new_tensor(special)), 0, ids)
    return {
        "input_ids": torch.cat([started, image, ids], dim=1),
        "pixel_values": patches,
        "mm_token_type_ids": nn.functional.pad(torch.ones_like(image), (1, ids.shape[1])),  # 1 where an image is
        "image_grid_thw": ids.new_tensor([[1, 2 * merge, 2 * merge]] * len(ids)),
    }


def _clip(config: Mapping[str, Any], draw: _Draw) -> Tensor:
    side = config.get("crop_size") or SIDE
    return draw.noise(config.get("frames_per_clip") or 16, config.get("in_chans") or 3, side, side)


def _samples(config: Mapping[str, Any], draw: _Draw) -> Tensor:
    if "num_mel_bins" in config and "max_length" in config:  # a spectrogram all the same
        return draw.noise(config["max_length"], config["num_mel_bins"])
    return draw.noise(SAMPLES)


def _spectrogram(config: Mapping[str, Any], draw: _Draw) -> Tensor:
    audio = config.get("audio_config") or config
    if "spec_size" in audio:  # CLAP: one channel, frames, and as many of them as make a square image
        return draw.noise(1, audio["spec_size"] ** 2 // audio["num_mel_bins"], audio["num_mel_bins"])
    if "max_source_positions" in config and "num_mel_bins" in config:
        return draw.noise(config["num_mel_bins"], 2 * config["max_source_positions"])
    widths = ("feature_projection_input_dim", "input_feat_per_channel", "num_mel_bins")
    known = (_look_up(config, width, ("encoder_config",), default=0) for width in widths)
    return draw.noise(100, next(filter(None, known), 80))


def _array(config: Mapping[str, Any], draw: _Draw) -> Tensor:
    return draw.noise(TOKENS, config.get("d_model") or 1)


_MAKERS: dict[str, Callable[[Mapping[str, Any], _Draw], Tensor]] = {
    "input_ids": _token_ids,
    "decoder_input_ids": _decoder_ids,
    "pixel_values": _pixels,
    "pixel_values_videos": _clip,
    "input_values": _samples,
    "input_features": _spectrogram,
    "inputs": _array,
}


def _look_up(config: Mapping[str, Any], key: str, inner: tuple[str, ...], *, default: int) -> Any:
    """A setting of one of the configuration's parts or, where none has it, of the configuration."""
    places = [*(config[name] for name in inner if isinstance(config.get(name), Mapping)), config]
    return next((place[key] for place in places if place.get(key) is not None), default)


def timm_size(model: nn.Module) -> tuple[int, ...]:
    """(channels, height, width): of the patch embedding if it insists on a size, else of pre-training."""
    from timm.layers import PatchEmbed, SpaceToDepth

    config = timm_config(model)
    first = next((module for module in model.modules() if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED))), None)
    folds = [module.bs**2 for module in model.modules() if isinstance(module, SpaceToDepth)]  # as TResNet begins
    embed = next((module for module in model.modules() if isinstance(module, PatchEmbed)), None)
    channels, *sides = config.get("input_size") or (3, 224, 224)
    if embed is not None and embed.img_size is not None and embed.proj is first:  # Visformer has a stem before it
        sides = embed.img_size
    if first is not None and config.get("first_conv") != []:  # there is one that reads the image
        channels = first.in_channels * (first.groups if first.in_channels == 1 else 1) // (folds or [1])[0]
    return (channels, *sides)


def _for_the_network_in(model: nn.Module, network: nn.Module, n: int) -> Batch:
    """What the one network in a module reads, under its names where the module knows them."""
    batch = dummy_batch(network, n=n)
    if isinstance(batch, Tensor):
        return batch
    reads = inspect.signature(model.forward).parameters
    by_name = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in reads.values())
    return batch if by_name or set(batch) <= set(reads) else next(iter(batch.values()))


def _for_first_layer(model: nn.Module, draw: _Draw) -> Batch:
    """What the layer that was registered first reads; right for any network that is built in the order of its use."""
    for layer in model.modules():
        if isinstance(layer, nn.Embedding):
            return draw.tokens(layer.num_embeddings)
        if isinstance(layer, nn.Linear):
            return draw.noise(layer.in_features)
        if isinstance(layer, (*CONVOLUTIONS, *TRANSPOSED)):
            axes = layer.weight.ndim - 2
            return draw.noise(layer.in_channels, *([224] * axes if axes == 2 else [SIDE] * axes))
        if is_fully_connected(layer):
            break
    raise DummyInputError(
        f"{type(model).__name__} does not tell what it reads; give something it can be called with as example=..."
    )
