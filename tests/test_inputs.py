"""Raw inputs are read rightly, or refused by their type."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import wavfile

from hf_tl.inputs import read_image, read_recording, read_text


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


@pytest.mark.parametrize("shape", [(2, 800), (800, 2)])
def test_channels_are_averaged_on_whichever_axis_they_are(shape):
    mono = np.random.default_rng(0).normal(scale=0.1, size=800).astype(np.float32)
    stereo = np.stack([mono, mono], axis=shape.index(2))
    for given in (stereo, {"array": stereo, "sampling_rate": 8000}):
        np.testing.assert_allclose(read_recording(given, rate=8000), mono, rtol=1e-6)


def test_integer_samples_are_those_of_the_file():
    samples = (np.random.default_rng(0).normal(size=800) * 3000).astype(np.int16)
    file = io.BytesIO()
    wavfile.write(file, 8000, samples)
    expected = read_recording({"bytes": file.getvalue(), "path": None}, rate=8000)
    np.testing.assert_array_equal(read_recording(samples, rate=8000), expected)
    np.testing.assert_array_equal(expected, samples / np.float32(2**15))
    with pytest.raises(ValueError, match=r"got float64 up to .*; divide them by their full scale"):
        read_recording(samples.astype(float), rate=8000)


def test_bytes_of_a_file_are_a_file_in_every_form():
    samples, file = (np.random.default_rng(0).normal(size=80) * 3000).astype(np.int16), io.BytesIO()
    wavfile.write(file, 8000, samples)
    for content in (file.getvalue(), bytearray(file.getvalue()), memoryview(file.getvalue())):
        np.testing.assert_array_equal(read_recording(content, rate=8000), samples / np.float32(2**15))
    picture = io.BytesIO()
    Image.new("RGB", (4, 3), "red").save(picture, "PNG")
    assert read_image(bytearray(picture.getvalue())).size == (4, 3)


def test_tensors_of_bfloat16_are_read_as_float32():
    half = torch.linspace(-0.5, 0.5, 80).bfloat16()
    np.testing.assert_array_equal(read_recording(half, rate=8000), half.float())
    np.testing.assert_array_equal(read_image(torch.ones(3, 4, 5).bfloat16()), np.full((4, 5, 3), 255))


def test_integers_of_32_bits_that_hold_16_are_refused():
    with pytest.raises(ValueError, match="int32 samples up to 12000 are next to silence, or of 16 bits"):
        read_recording(np.array([12000, -7], np.int32), rate=8000)


@pytest.mark.parametrize("value", [{"text": "a"}, object(), ["a"], None])
def test_what_is_no_recording(value):
    with pytest.raises(TypeError, match="the network reads recordings: one should be an array"):
        read_recording(value, rate=8000)


DEEP = np.random.default_rng(0).integers(0, 2**16, (8, 9)).astype(np.uint16)


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(DEEP),
        Image.fromarray(DEEP.astype(np.int32)),
        Image.fromarray((DEEP // 256 / 255).astype(np.float32)),
        DEEP,
        DEEP[:, :, None],
        (DEEP // 256).astype(np.uint8),
        Image.fromarray((DEEP // 256).astype(np.uint8)),
        np.stack([DEEP // 256] * 3, axis=2).astype(np.uint8),
        Image.fromarray(np.stack([DEEP // 256] * 3, axis=2).astype(np.uint8)).convert("RGBA"),
    ],
    ids=["I;16", "I", "F", "uint16", "one channel", "uint8", "L", "RGB array", "RGBA"],
)
def test_an_image_is_the_same_in_every_form(image):
    expected = np.stack([DEEP // 256] * 3, axis=2)
    np.testing.assert_array_equal(np.asarray(read_image(image)), expected)


def test_an_image_by_its_path_is_upright(tmp_path):
    image = Image.new("RGB", (4, 2))
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image.save(tmp_path / "a.jpg", exif=exif)
    assert read_image(str(tmp_path / "a.jpg")).size == (2, 4)
    assert read_image({"bytes": (tmp_path / "a.jpg").read_bytes(), "path": None}).size == (2, 4)


def test_a_file_that_is_not_there():
    with pytest.raises(ValueError, match="the network reads images, and there is no file 'a film'"):
        read_image("a film")
    with pytest.raises(ValueError, match="the network reads recordings, and there is no file 'a film'"):
        read_recording("a film", rate=8000)


def test_what_is_no_image():
    for value in ({"label": 1}, 3, None):
        with pytest.raises(TypeError, match="the network reads images: a sample should be a PIL image"):
            read_image(value)
    for value in (np.full((4, 4), 200.0), np.full((4, 4), 7), Image.fromarray(np.full((4, 4), 200.0, np.float32))):
        with pytest.raises(ValueError, match=r"pixels should be uint8, uint16, or float in \[0, 1\], got"):
            read_image(value)
    with pytest.raises(ValueError, match=r"got shape \(5, 8, 8\)"):
        read_image(np.zeros((5, 8, 8), np.uint8))
    with pytest.raises(ValueError, match=r"which axis of an array of shape \(3, 8, 4\) is the image's channels"):
        read_image(np.zeros((3, 8, 4), np.uint8))


def test_channels_of_an_image_are_found_on_either_side():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    for value in (pixels.transpose(2, 0, 1), torch.from_numpy(pixels), torch.from_numpy(pixels).permute(2, 0, 1)):
        np.testing.assert_array_equal(np.asarray(read_image(value)), pixels)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    np.testing.assert_array_equal(np.asarray(read_image(file.getvalue())), pixels)


@pytest.mark.parametrize("rate", [0, -8000, float("nan"), 8000.5, "8 kHz"])
def test_a_rate_is_a_number_of_samples_a_second(rate):
    with pytest.raises(ValueError, match="a sampling rate should be a whole number of samples a second, got"):
        read_recording({"array": np.zeros(80, np.float32), "sampling_rate": rate}, rate=8000)


def test_samples_that_are_no_numbers():
    with pytest.raises(ValueError, match="samples should be finite, got NaN or infinity"):
        read_recording(np.array([0, np.nan], np.float32), rate=8000)
    for value in ({"array": np.zeros(80), "sample_rate": 8000}, (np.zeros(80), 8000)):
        with pytest.raises(TypeError, match="the network reads recordings: one should be an array"):
            read_recording(value, rate=8000)


def test_texts_and_pairs():
    assert read_text("a film") == ("a film", None)
    assert read_text(["premise", "hypothesis"]) == ("premise", "hypothesis")
    for value, got in (
        ({"text": "a"}, r"dict with \['text'\]"),
        (float("nan"), "float"),
        (("a", 1), r"tuple of \(str, int\)"),
    ):
        with pytest.raises(
            TypeError, match=f"the network reads texts: a sample should be a str, or a pair of two, got {got}"
        ):
            read_text(value)
    with pytest.raises(ValueError, match="the text is empty"):
        read_text(" ")
