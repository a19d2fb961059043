"""Dummy inputs: right for the network, the same at every call, drawn from no shared random numbers."""

import pytest
import timm
import torch
import transformers
from lanes import lanes
from torch import nn
from zoo import ZOO

from hf_tl import InputError, list_layers
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


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
QWEN = {
    "text_config": {"vocab_size": 200, "num_key_value_heads": 2, "max_position_embeddings": 64, **SMALL}
    | {"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}},
    "image_token_id": 190,
    "video_token_id": 191,
    "vision_start_token_id": 192,
    "vision_end_token_id": 193,
}
CLAP_AUDIO = {"patch_embeds_hidden_size": 16, "hidden_size": 128, "depths": [1] * 4, "num_attention_heads": [1] * 4}
MORE = {
    "qwen2_vl": lambda: transformers.Qwen2VLForConditionalGeneration(
        transformers.Qwen2VLConfig(
            **QWEN, vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2}
        )
    ),
    "clap": lambda: transformers.ClapModel(
        transformers.ClapConfig(text_config={"vocab_size": 64, **SMALL}, audio_config=CLAP_AUDIO)
    ),
    "clap audio": lambda: transformers.ClapAudioModel(transformers.ClapAudioConfig(**CLAP_AUDIO)),
    "clip text": lambda: transformers.CLIPTextModel(transformers.CLIPTextConfig(vocab_size=64, **SMALL)),
    "perceiver": lambda: transformers.PerceiverForImageClassificationConvProcessing(
        transformers.PerceiverConfig(
            d_latents=16,
            d_model=32,
            num_latents=8,
            num_blocks=1,
            num_self_attends_per_block=1,
            num_self_attention_heads=2,
            num_cross_attention_heads=1,
            image_size=56,
        )
    ),
    "wrapped": lambda: torch.compile(nn.DataParallel(by_name("BertForSequenceClassification"))),
}


@pytest.mark.parametrize("name", lanes(MORE, fast=lambda name: name != "wrapped"))
def test_layers_are_listed_without_an_example(name):
    layers = list_layers(MORE[name]())
    assert any(layer.kind == "block" for layer in layers)
    assert not any("module." in layer.name or "_orig_mod" in layer.name for layer in layers)


def test_a_configuration_that_lacks_what_it_should_have_is_refused(monkeypatch):
    model = MORE["qwen2_vl"]()
    monkeypatch.setattr(type(model.config), "to_dict", lambda self: {"text_config": {}})
    with pytest.raises(InputError, match=r"configuration of Qwen2VL.* does not tell what it reads"):
        dummy_batch(model)


def test_timm_networks_are_read_at_the_size_they_were_trained_at():
    assert dummy_batch(timm.create_model("vit_tiny_patch16_224", img_size=96)).shape == (2, 3, 96, 96)
    assert dummy_batch(timm.create_model("test_resnet", in_chans=1)).shape == (2, 1, 160, 160)


@pytest.mark.parametrize("name", ["tresnet_m", "visformer_tiny", "csatv2"])
def test_what_stands_before_the_first_convolution_of_a_timm_network_is_no_image(name):
    """Pixels folded into channels, a stem before the patch embedding, a cosine transform."""
    with torch.device("meta"):
        model = timm.create_model(name)
    assert dummy_batch(model).shape == (2, *model.pretrained_cfg["input_size"])


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


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def recorder_of_speech():
    encoder = SMALL | {"num_mel_bins": 16, "subsampling_conv_channels": 8}
    return transformers.ParakeetForCTC(transformers.ParakeetCTCConfig(vocab_size=64, encoder_config=encoder))


def reader_of_patches():
    return transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(**SMALL, patch_size=4, num_patches=16))


def reader_of_clips():
    pred = {"pred_hidden_size": 32, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
    config = SMALL | {"hidden_size": 32, "patch_size": 8, "crop_size": 16, "frames_per_clip": 4}
    return transformers.VJEPA2Model(transformers.VJEPA2Config(**config, **pred))


def reader_of_images_and_text():
    text = SMALL | {"num_key_value_heads": 1, "head_dim": 8, "vocab_size": 70}
    vision = SMALL | {"image_size": 16, "patch_size": 4}
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=65
    )
    return transformers.Gemma3ForSequenceClassification(config)


@pytest.mark.parametrize("build", [recorder_of_speech, reader_of_patches, reader_of_clips, reader_of_images_and_text])
def test_what_is_read_in_a_form_of_its_own_runs(build):
    model = build().eval()
    with torch.no_grad():
        model(**dummy_batch(model))


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = by_name("ViTForImageClassification")

    def forward(self, x):
        return self.backbone(pixel_values=x).logits


def test_a_module_around_a_network_reads_what_that_reads():
    assert dummy_batch(Wrapped()).shape == (2, 3, 32, 32)


def test_bros_is_told_where_its_words_stand():
    from transformers import BrosConfig, BrosForTokenClassification

    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 16}
    model = BrosForTokenClassification(BrosConfig(vocab_size=20, **sizes)).eval()
    assert model(**dummy_batch(model)).logits.shape == (2, 8, 2)
