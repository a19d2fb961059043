"""Dummy inputs: right for the network, the same at every call, drawn from no shared random numbers."""

import pytest
import timm
import torch
from torch import nn
from zoo import ZOO

from hf_tl import InputError
from hf_tl.example import dummy_batch, dummy_inputs, shapes_of


def by_name(name):
    return next(specimen for specimen in ZOO if specimen.name == name).model()


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("BertForSequenceClassification", "input_ids (3, 8)"),
        ("ViTForImageClassification", "pixel_values (3, 3, 32, 32)"),
        ("VideoMAEForVideoClassification", "pixel_values (3, 4, 3, 32, 32)"),
        ("CLIPModel", "input_ids (3, 8), pixel_values (3, 3, 32, 32)"),
        ("T5ForConditionalGeneration", "input_ids (3, 8), decoder_input_ids (3, 8)"),
        ("WhisperForConditionalGeneration", "input_features (3, 8, 100), decoder_input_ids (3, 8)"),
        ("Wav2Vec2ForSequenceClassification", "input_values (3, 4000)"),
        ("ASTForAudioClassification", "input_values (3, 64, 16)"),
        ("TimmWrapperForImageClassification", "pixel_values (3, 3, 64, 64)"),
    ],
)
def test_the_configuration_says_what_is_read(name, shapes):
    state = torch.get_rng_state()
    batch = dummy_batch(by_name(name), n=3)
    assert shapes_of(batch) == shapes
    assert torch.equal(torch.get_rng_state(), state)
    again = dummy_batch(by_name(name), n=3)
    assert all(torch.equal(batch[key], again[key]) for key in batch)


def test_timm_networks_are_read_at_the_size_they_were_trained_at():
    assert dummy_batch(timm.create_model("vit_tiny_patch16_224", img_size=96)).shape == (2, 3, 96, 96)
    assert dummy_batch(timm.create_model("test_resnet", in_chans=1)).shape == (2, 1, 160, 160)


def test_plain_modules_are_read_at_their_first_layer():
    assert dummy_batch(nn.Sequential(nn.Linear(7, 2))).shape == (2, 7)
    assert dummy_batch(nn.Sequential(nn.Conv1d(2, 3, 3), nn.Flatten())).shape == (2, 2, 64)
    tokens = dummy_batch(nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 2)))
    assert tokens.dtype == torch.int64
    assert int(tokens.max()) < 10


def test_a_batch_has_the_type_of_the_network():
    assert dummy_batch(nn.Linear(3, 2).to(torch.bfloat16)).dtype == torch.bfloat16


def test_a_network_that_does_not_tell_what_it_reads_is_refused():
    with pytest.raises(InputError, match=r"LSTM does not tell what it reads; give something .* example="):
        dummy_batch(nn.LSTM(3, 2))
    with pytest.raises(InputError, match="n must be at least 1, got 0"):
        dummy_batch(nn.Linear(3, 2), n=0)


def test_raw_inputs_are_the_same_at_every_call():
    assert [image.size for image in dummy_inputs("image")] == [(256, 256)] * 2
    assert dummy_inputs("image") == dummy_inputs("image")
    assert [recording.shape for recording in dummy_inputs("audio", n=3)] == [(16000,)] * 3
    assert len(dummy_inputs("text", n=1)) == 1
    with pytest.raises(InputError, match="modality 'image', 'text' or 'audio', got 'array'"):
        dummy_inputs("array")
