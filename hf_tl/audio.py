"""A recording -> its samples, at the rate that a network was trained on."""

from __future__ import annotations

import io
from collections.abc import Mapping
from math import gcd

import numpy as np

from hf_tl.errors import in_one_line


def read_samples(recording: object, *, rate: int) -> np.ndarray:
    """The samples of one recording, one channel, (samples,) float32.

    Args:
        recording: samples at `rate` already, (samples,) or (channels, samples); {"array", "sampling_rate"}; or the
            {"bytes", "path"} of a file, WAV or, where torchcodec is installed, whatever that reads.
        rate: samples a second.

    Raises:
        ValueError: nothing that can be heard: no samples, or a file that cannot be read.
    """
    if isinstance(recording, Mapping) and "array" in recording:
        found, own = np.asarray(recording["array"]), int(recording.get("sampling_rate") or rate)
    elif isinstance(recording, Mapping):
        found, own = _decode(recording)
    else:
        found, own = np.asarray(recording), rate
    found = found.astype(np.float32)
    if found.ndim == 2:
        found = found.mean(axis=0)
    if found.ndim != 1 or not len(found):
        raise ValueError(f"a recording should be (samples,) or (channels, samples), got shape {found.shape}")
    return _resample(found, own, rate)


def _decode(file: Mapping) -> tuple[np.ndarray, int]:
    """(channels, samples) in [-1, 1], and the rate."""
    from scipy.io import wavfile

    content = file.get("bytes")
    if content is None:
        with open(file["path"], "rb") as opened:
            content = opened.read()
    try:
        rate, values = wavfile.read(io.BytesIO(content))
    except ValueError as error:
        try:
            from torchcodec.decoders import AudioDecoder
        except ImportError:
            name = file.get("path") or "the recording"
            raise ValueError(
                f"{name} is no WAV file, and torchcodec, which reads others, is not installed: {in_one_line(error)}"
            ) from error
        decoded = AudioDecoder(content).get_all_samples()
        return decoded.data.numpy(), decoded.sample_rate
    if values.dtype == np.uint8:
        values = (values.astype(np.float32) - 128) / 128
    elif values.dtype.kind == "i":
        values = values / np.float32(-int(np.iinfo(values.dtype).min))
    return np.atleast_2d(values.T), rate


def _resample(values: np.ndarray, own: int, rate: int) -> np.ndarray:
    if own == rate:
        return values
    from scipy.signal import resample_poly

    common = gcd(own, rate)
    return resample_poly(values, rate // common, own // common).astype(np.float32)
