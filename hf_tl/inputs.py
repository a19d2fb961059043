"""Raw inputs -> what processors take: one decoder for text, one for images, one for recordings.

Each reads what it surely understands, and refuses anything else by its type, with the form that is wanted.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from math import gcd
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from hf_tl.errors import in_one_line


MOST_CHANNELS = 32  # of a recording: fifth-order ambisonics have 36, and nobody has fewer samples than that
CHANNELS = (1, 3, 4)  # of an image: grey, colours, colours with transparency
LOUDEST = 16.0  # of float samples, full scale being 1: 24 dB beyond it are headroom, more are integers


def read_text(value: object) -> tuple[str, str | None]:
    """A text and, of a pair such as premise and hypothesis, the second one.

    Args:
        value: a string, or a pair of strings.

    Raises:
        TypeError: anything else, which has no text of its own.
        ValueError: nothing but blanks.
    """
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if len(pair) > 2 or not pair or not all(isinstance(part, str) for part in pair):
        got = ", ".join(type(part).__name__ for part in pair[:3])
        got = f"{type(value).__name__} of ({got})" if isinstance(value, (tuple, list)) else type(value).__name__
        raise TypeError(
            f"the network reads texts: a sample should be a str, or a pair of two, got {got}{_keys_of(value)}"
        )
    if not any(part.strip() for part in pair):
        raise ValueError("the text is empty: there is nothing to read")
    return pair[0], pair[1] if len(pair) == 2 else None


def read_image(value: object, *, mode: Literal["RGB", "L"] = "RGB") -> Image.Image:
    """An upright image of 8 bits per channel.

    Images of 16 bits are divided by 256, float images in [0, 1] multiplied by 255. Transparency is dropped, as image
    networks are trained.

    Args:
        value: a PIL image; the path of a file; the {"bytes", "path"} or the bytes of one; or an array or tensor
            (height, width), (height, width, channels) or (channels, height, width) of uint8, uint16, bool, or float in
            [0, 1].
        mode: PIL's name of what is wanted, "RGB" or "L".

    Raises:
        TypeError: anything else.
        ValueError: values out of range, an image without pixels, or a file that is no image.
    """
    if _is_file(value):
        try:
            value = Image.open(io.BytesIO(_read_bytes(value)))
        except FileNotFoundError as error:
            raise ValueError(f"the network reads images, and there is no file {_name_of(value)!r}") from error
        except UnidentifiedImageError as error:
            raise ValueError(f"{_name_of(value)} is no image that Pillow can read") from error
    value = _array_of(value) if isinstance(value, Tensor) else value
    if isinstance(value, np.ndarray):
        return Image.fromarray(_eight_bits(value)).convert(mode)
    if not isinstance(value, Image.Image):
        raise TypeError(
            f"the network reads images: a sample should be a PIL image, a path, or a numpy array "
            f"(height, width, channels), got {type(value).__name__}{_keys_of(value)}"
        )
    if 0 in value.size:
        raise ValueError(f"the image has no pixels: its size is {value.size}")
    image = ImageOps.exif_transpose(value)
    if image.mode.startswith("I;16"):
        image = Image.fromarray(_eight_bits(np.asarray(image).astype(np.uint16)))
    elif image.mode in ("I", "F"):  # what integers of 32 bits mean, only their values tell
        image = Image.fromarray(_eight_bits(np.asarray(image)))
    return image.convert(mode)


def read_recording(value: object, *, rate: int) -> np.ndarray:
    """The samples of one recording, one channel, (samples,) float32 with full scale 1.

    Integers are scaled by their type; several channels are averaged, whichever of the two axes is theirs.

    Args:
        value: samples at `rate` already, (samples,), (channels, samples) or (samples, channels);
            {"array", "sampling_rate"}; the path of a file; or the {"bytes", "path"} or the bytes of one, WAV or, where
            torchcodec is installed, whatever that reads.
        rate: samples a second.

    Raises:
        TypeError: anything else.
        ValueError: no samples, axes that cannot be told apart, values out of range, or a file that cannot be read.
    """
    if _is_file(value):
        try:
            samples, own = _decode_audio(value)
        except FileNotFoundError as error:
            raise ValueError(f"the network reads recordings, and there is no file {_name_of(value)!r}") from error
    elif isinstance(value, Mapping) and "array" in value and set(value) <= {"array", "sampling_rate", "path"}:
        samples, own = _numbers(value["array"]), _rate(value.get("sampling_rate"), rate)
    else:
        samples, own = _numbers(value), rate
    samples = _full_scale_one(samples)
    if samples.ndim == 2:
        few, many = sorted(samples.shape)
        if few == many or few > MOST_CHANNELS:
            raise ValueError(f"which axis of a recording of shape {samples.shape} is its channels cannot be told")
        samples = samples.mean(axis=samples.shape.index(few))
    if samples.ndim != 1 or not len(samples):
        raise ValueError(
            f"a recording should be (samples,), (channels, samples) or (samples, channels), got shape {samples.shape}"
        )
    return _resample(samples, own, rate)


def _is_file(value: object) -> bool:
    if isinstance(value, Mapping):
        return set(value) <= {"bytes", "path"} and any(value.values())
    return isinstance(value, (str, os.PathLike, bytes, bytearray, memoryview))


def _read_bytes(file: object) -> bytes:
    if isinstance(file, Mapping):
        file = file["path"] if file.get("bytes") is None else file["bytes"]
    return bytes(file) if isinstance(file, (bytes, bytearray, memoryview)) else Path(str(file)).read_bytes()


def _numbers(value: object) -> np.ndarray:
    """The array of samples that something is."""
    try:
        samples = _array_of(value) if isinstance(value, Tensor) else np.asarray(value)
    except ValueError:  # lists of several lengths
        samples = np.asarray(None)
    if isinstance(value, Mapping) or samples.dtype.kind not in "iuf":
        raise TypeError(
            f"the network reads recordings: one should be an array of samples, {{'array', 'sampling_rate'}}, or a "
            f"path, got {type(value).__name__}{_keys_of(value)}"
        )
    if samples.dtype == np.int32 and 0 < (loudest := int(np.abs(samples).max(initial=0))) < 2**16:
        raise ValueError(f"int32 samples up to {loudest} are next to silence, or of 16 bits: give those as int16")
    return samples


def _array_of(value: Tensor) -> np.ndarray:
    """A tensor as an array, of bfloat16 as float32, which numpy has not."""
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy(force=True)


def _rate(given: object, expected: int) -> int:
    if given is None:
        return expected
    if not isinstance(given, (int, float, np.number)) or not given >= 1 or given != int(given):
        raise ValueError(f"a sampling rate should be a whole number of samples a second, got {given!r}")
    return int(given)


def _name_of(file: object) -> str:
    named = file.get("path") if isinstance(file, Mapping) else file
    return str(named) if isinstance(named, (str, os.PathLike)) else "the file"


def _keys_of(value: object) -> str:
    return f" with {sorted(map(str, value))[:5]}" if isinstance(value, Mapping) else ""


def _eight_bits(pixels: np.ndarray) -> np.ndarray:
    """(height, width) or (height, width, channels) uint8."""
    ends = (pixels.shape[0] in CHANNELS, pixels.shape[2] in CHANNELS) if pixels.ndim == 3 else ()
    if all(ends) and ends:
        raise ValueError(f"which axis of an array of shape {pixels.shape} is the image's channels cannot be told")
    if ends == (True, False):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim not in (2, 3) or not pixels.size or not any(ends or (True,)):
        raise ValueError(
            f"an array of pixels should be (height, width), or have 1, 3 or 4 channels in its last axis or its first, "
            f"got shape {pixels.shape}"
        )
    pixels = pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    low, high = pixels.min(), pixels.max()
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == bool:
        return pixels.astype(np.uint8) * 255
    if pixels.dtype == np.uint16 or (pixels.dtype.kind in "iu" and low >= 0 and 255 < high < 2**16):
        return (pixels // 256).astype(np.uint8)
    if pixels.dtype.kind == "f" and low >= 0 and high <= 1:
        return np.rint(pixels * 255).astype(np.uint8)
    raise ValueError(
        f"pixels should be uint8, uint16, or float in [0, 1], got {pixels.dtype} in [{low:g}, {high:g}]; convert them"
    )


def _full_scale_one(samples: np.ndarray) -> np.ndarray:
    """float32, integers divided by the largest of their type."""
    if samples.dtype == np.uint8:  # WAV files of 8 bits are unsigned
        return (samples.astype(np.float32) - 128) / 128
    if samples.dtype.kind == "i" and samples.dtype.itemsize <= 4:
        return samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)
    if not np.isfinite(samples).all():
        raise ValueError("samples should be finite, got NaN or infinity")
    loudest = float(np.abs(samples).max(initial=0))
    if samples.dtype.kind != "f" or loudest > LOUDEST:
        raise ValueError(
            f"samples should be float in [-1, 1], int16, int32 or uint8, got {samples.dtype} up to {loudest:g}; "
            f"divide them by their full scale"
        )
    return samples.astype(np.float32)


def _decode_audio(file: object) -> tuple[np.ndarray, int]:
    """(samples,) or (samples, channels) as the file has them, and the rate."""
    from scipy.io import wavfile

    content = _read_bytes(file)
    try:
        rate, values = wavfile.read(io.BytesIO(content))
    except ValueError as error:
        try:
            from torchcodec.decoders import AudioDecoder
        except ImportError:
            raise ValueError(
                f"{_name_of(file)} is no WAV file, and torchcodec, which reads others, is not installed: "
                f"{in_one_line(error)}"
            ) from error
        decoded = AudioDecoder(content).get_all_samples()
        return decoded.data.numpy(), decoded.sample_rate
    return values, rate


def _resample(values: np.ndarray, own: int, rate: int) -> np.ndarray:
    if own == rate:
        return values
    from scipy.signal import resample_poly

    common = gcd(own, rate)
    return resample_poly(values, rate // common, own // common).astype(np.float32)
