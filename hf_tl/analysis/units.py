"""What single units of a network see: the images that excite them most, and images made to do so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from hf_tl.analysis.contact_sheet import Strip, write_contact_sheet
from hf_tl.architectures import is_convolution, timm_config
from hf_tl.data import Samples
from hf_tl.embedding.embedding import Embedding
from hf_tl.errors import InputError
from hf_tl.example import dummy_batch
from hf_tl.inputs import read_image
from hf_tl.names import closest
from hf_tl.probes.grid_search import check_groups
from hf_tl.trace import evaluating, forward


STEPS, RATE, JITTER, BLUR_EVERY = 96, 0.3, 6, 4
SMOOTH, FINEST = 2.5, 0.8  # pixels by which the first and the last gradients are blurred
DECAY = 0.01  # of the image a step, Yosinski's L2 decay


def draw_top_images(
    path: str | Path,
    embedding: Embedding,
    samples: Samples,
    *,
    layer: str,
    units: Sequence[int] = (),
    top: int = 9,
    groups: np.ndarray | None = None,
    title: str = "",
) -> Path:
    """Writes a sheet of the images that excite each unit most, a row a unit; nothing is optimised, nothing assumed.

    Args:
        path: of a PNG file.
        embedding: raw features of the samples, pooled over positions.
        samples: the images, as they were read.
        layer: one of the embedding's.
        units: channels of the layer; the eight that vary most, relative to their mean, by default.
        top: images a unit.
        groups: (n_samples,) of samples of one number, such as copies (`twin_groups`), a unit shows one.
        title: of the sheet, such as the names of the dataset and the network; by default what the embedding knows.

    Raises:
        InputError: a layer or a unit that the embedding does not have.
    """
    names = [one.name for one in embedding.layers]
    if layer not in names:
        raise InputError(f"layer {layer!r} is none of the {len(names)} that were read; {closest(layer, names)}")
    span = embedding.layers[names.index(layer)]
    values = np.asarray(embedding.values[:, span.start : span.stop], dtype=np.float64)
    if not units:
        lively = values.std(axis=0) / (np.abs(values.mean(axis=0)) + 1e-9)
        units = np.sort(np.argsort(-lively)[:8]).tolist()
    wrong = [unit for unit in units if not 0 <= unit < values.shape[1]]
    if wrong:
        raise InputError(f"layer {layer!r} has units 0 .. {values.shape[1] - 1}, got {wrong[0]}")
    strips = []
    groups = check_groups(groups, len(samples))
    own = np.arange(len(values)) if groups is None else groups[embedding.indices]
    for unit in units:
        order = np.argsort(-values[:, unit])
        order = order[np.sort(np.unique(own[order], return_index=True)[1])][:top]
        images = [read_image(samples[int(embedding.indices[i])]) for i in order]
        first, last = values[order[0], unit], values[order[-1], unit]
        strips.append(Strip(f"unit {unit}: mean activation {first:.3g} to {last:.3g}", images))
    named = title or f"{samples.name} samples, {Path(embedding.network).name}"
    return write_contact_sheet(path, strips, title=f"{named}: the images that excite units of {layer} most")


def maximise_units(
    model: nn.Module,
    layer: str,
    units: Sequence[int],
    *,
    side: int = 128,
    n_steps: int = STEPS,
    random_state: int = 0,
) -> list[Image.Image]:
    """Images made to excite units: gradient ascent with jitter, blur and decay of the image.

    Yosinski et al., "Understanding neural networks through deep visualization", ICML workshop 2015, sec. 3; gradients
    are blurred, too, from coarse to fine. What comes out is one of many images that do, and depends on all that.

    Args:
        model: a network that reads images as one tensor, or as `pixel_values`; it stays as it is.
        layer: name of a module with an output of (batch, channels, height, width) or (batch, tokens, channels).
        units: channels of it.
        side: pixels of the images, where the network does not fix them.
        n_steps: of the ascent.
        random_state: decides the start and the jitter.

    Raises:
        InputError: no such module, or one whose output is none of the two.
    """
    modules = dict(model.named_modules())
    if layer not in modules:
        raise InputError(f"the network has no module {layer!r}; {closest(layer, list(modules))}")
    example = dummy_batch(model, n=1)
    pixels = example if isinstance(example, Tensor) else example.get("pixel_values")
    if pixels is None or pixels.ndim != 4:
        raise InputError(f"{type(model).__name__} reads no images, for which alone units can be maximised")
    n_channels, fixed = pixels.shape[1], _has_fixed_size(model)
    height, width = pixels.shape[2:] if fixed else (side, side)
    device, dtype = pixels.device, pixels.dtype
    generator = torch.Generator().manual_seed(random_state)
    image = (0.1 * torch.randn(len(units), n_channels, height, width, generator=generator)).to(device, dtype)
    held: list[Tensor] = []
    hook = modules[layer].register_forward_hook(lambda module, args, output: held.append(_first(output)))
    rows = torch.arange(len(units))
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with evaluating(model), torch.enable_grad():
            for parameter, _ in flags:
                parameter.requires_grad_(False)
            for step in range(n_steps):
                shift = torch.randint(-JITTER, JITTER + 1, (2,), generator=generator).tolist()
                seen = torch.roll(image, shift, dims=(2, 3)).requires_grad_()
                held.clear()
                forward(model, seen if isinstance(example, Tensor) else {**example, "pixel_values": seen})
                values = _unit_values(held[0], modules[layer], layer)
                if max(units) >= values.shape[1]:
                    raise InputError(f"layer {layer!r} has units 0 .. {values.shape[1] - 1}, got {max(units)}")
                (gradient,) = torch.autograd.grad(values[rows, list(units)].sum(), seen)
                blur = SMOOTH + (FINEST - SMOOTH) * step / n_steps  # or the finest patterns take over
                gradient = gaussian_blur(gradient, [9, 9], [blur, blur])
                gradient = gradient / gradient.flatten(1).std(dim=1).clamp_min(1e-12)[:, None, None, None]
                image = (1 - DECAY) * torch.roll(seen.detach() + RATE * gradient, [-s for s in shift], dims=(2, 3))
                if step % BLUR_EVERY == 0 and step < n_steps - BLUR_EVERY:
                    image = gaussian_blur(image, [3, 3], [0.5, 0.5])
    finally:
        hook.remove()
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
    return [_as_image(one) for one in image.float().cpu()]


def draw_maximised_units(
    path: str | Path,
    networks: dict[str, nn.Module],
    layer: str,
    units: Sequence[int],
    *,
    side: int = 128,
    n_steps: int = STEPS,
    title: str = "",
) -> Path:
    """Writes a sheet of images that excite units of a layer, one a network beside one another: before and after.

    Args:
        path: of a PNG file.
        networks: name -> network, such as {"before": ..., "after": ...}.
        layer: see `maximise_units`.
        units: channels.
        side: see `maximise_units`.
        n_steps: see `maximise_units`.
        title: of the sheet, such as the names of the network and of the dataset it was trained on.
    """
    made = [maximise_units(model, layer, units, side=side, n_steps=n_steps) for model in networks.values()]
    strips = [Strip(f"unit {unit}", [images[i] for images in made]) for i, unit in enumerate(units)]
    named = f"{title}: images made to excite units of {layer}" if title else f"images made to excite units of {layer}"
    sides = f", {' | '.join(networks)}" if len(networks) > 1 else ""
    return write_contact_sheet(path, strips, title=f"{named}{sides}", columns=4 if len(networks) < 3 else 2)


def _has_fixed_size(model: nn.Module) -> bool:
    """Whether position embeddings or the like tie the network to one size."""
    return bool(timm_config(model).get("fixed_input_size")) or not any(
        is_convolution(module) and "norm" not in name for name, module in list(model.named_modules())[-40:]
    )


def _first(output: object) -> Tensor:
    value = output[0] if isinstance(output, (tuple, list)) else output
    if not isinstance(value, Tensor):
        raise InputError(f"expected a module whose output is a tensor, got {type(value).__name__}")
    return value


def _unit_values(output: Tensor, module: nn.Module, layer: str) -> Tensor:
    """(batch, channels): a channel's mean over positions."""
    if output.ndim == 4:
        return output.mean(dim=(2, 3))
    if output.ndim == 3:
        return output.mean(dim=1)
    if output.ndim == 2:
        return output
    raise InputError(f"the output of {layer!r} has shape {tuple(output.shape)}; expected channels and positions")


def _as_image(pixels: Tensor) -> Image.Image:
    """Three standard deviations around the mean as 0 .. 255."""
    pixels = (pixels - pixels.mean()) / pixels.std().clamp_min(1e-12)
    shown = ((pixels / 6 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(shown if shown.shape[2] == 3 else shown[:, :, 0])
