"""Made-up inputs: right for the network, the same at every call, drawn from no shared random numbers."""

import pytest
import timm
import torch
from torch import nn
from zoo import ZOO

from hf_tl import InputError
from hf_tl.layers.example import example_for, shapes_of


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
    batch = example_for(by_name(name), rows=3)
    assert shapes_of(batch) == shapes
    assert torch.equal(torch.get_rng_state(), state)
    again = example_for(by_name(name), rows=3)
    assert all(torch.equal(batch[key], again[key]) for key in batch)


def test_timm_networks_are_read_at_the_size_they_were_trained_at():
    assert example_for(timm.create_model("vit_tiny_patch16_224", img_size=96)).shape == (1, 3, 96, 96)
    assert example_for(timm.create_model("test_resnet", in_chans=1)).shape == (1, 1, 160, 160)


def test_plain_modules_are_read_at_their_first_layer():
    assert example_for(nn.Sequential(nn.Linear(7, 2))).shape == (1, 7)
    assert example_for(nn.Sequential(nn.Conv1d(2, 3, 3), nn.Flatten())).shape == (1, 2, 64)
    tokens = example_for(nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 2)))
    assert tokens.dtype == torch.int64
    assert int(tokens.max()) < 10


def test_a_batch_has_the_type_of_the_network():
    assert example_for(nn.Linear(3, 2).to(torch.bfloat16)).dtype == torch.bfloat16


def test_what_cannot_be_made_up_is_said():
    with pytest.raises(InputError, match=r"LSTM does not tell what it reads; give something .* example="):
        example_for(nn.LSTM(3, 2))
    with pytest.raises(InputError, match="rows must be at least 1, got 0"):
        example_for(nn.Linear(3, 2), rows=0)
