"""A recording -> its samples."""

import io

import numpy as np
import pytest
from scipy.io import wavfile

from hf_tl.inputs import read_recording


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint8, np.float32])
def test_recordings_are_heard_the_same_in_every_form(dtype):
    tone = 0.5 * np.sin(2 * np.pi * 50 * np.arange(800) / 8000).astype(np.float32)
    scale = {np.int16: 2**15, np.int32: 2**31, np.uint8: 128, np.float32: 1}[dtype]
    kept = (tone.astype(np.float64) * scale + (128 if dtype is np.uint8 else 0)).astype(dtype)
    file = io.BytesIO()
    wavfile.write(file, 8000, np.stack([kept, kept], axis=1))
    heard = read_recording({"bytes": file.getvalue(), "path": "a.wav"}, rate=8000)
    np.testing.assert_allclose(heard, tone, atol=0.01)
    np.testing.assert_array_equal(read_recording(tone, rate=8000), tone)
    half = read_recording({"array": tone, "sampling_rate": 8000}, rate=4000)
    np.testing.assert_allclose(half[20:-20], tone[::2][20:-20], atol=0.01)


def test_what_cannot_be_heard():
    with pytest.raises(ValueError, match=r"x.mp3 is no WAV file, and torchcodec"):
        read_recording({"bytes": b"no", "path": "x.mp3"}, rate=8000)
    with pytest.raises(ValueError, match=r"should be \(samples,\)"):
        read_recording(np.zeros((0,)), rate=8000)
