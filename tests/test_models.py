"""A name -> a network with its preparation of inputs."""

import json

import pytest
import torch
from PIL import Image
from transformers import AutoConfig

from hf_tl import InputError, Network, load_network
from hf_tl.checkpoint import name_outputs
from hf_tl.embedding.anatomy import find_taps
from hf_tl.example import dummy_batch


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_a_timm_folder(timm_folder, prefix):
    network = load_network(f"{prefix}{timm_folder}", image_size=48)
    assert network.modality == "image"
    assert not network.model.training
    batch = network.prepare([Image.new("L", (80, 60)), Image.new("RGBA", (50, 90))])
    assert batch.shape == (2, 3, 48, 48)


def test_weights_are_those_of_the_folder(timm_folder):
    first, second = (load_network(str(timm_folder)).model.state_dict() for _ in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_transformers_text_folder_leaves_out_what_is_not_in_its_checkpoint(text_folder):
    network = load_network(str(text_folder))
    assert network.modality == "text"
    assert "pooler.dense" in network.untrained
    batch = network.prepare(["the film was very very good", "dull"])
    assert batch["input_ids"].shape == (2, 8)
    assert batch["attention_mask"].sum(dim=1).tolist() == [8, 3]
    _, left_out = find_taps(network, batch, activation="after")
    assert left_out == {"pooler.dense": "its weights are not in the checkpoint"}


@pytest.mark.filterwarnings("ignore:1 of 1 texts of a batch")
def test_text_longer_than_the_network_is_cut(text_folder):
    assert load_network(str(text_folder)).prepare(["film " * 100])["input_ids"].shape == (1, 32)


def test_a_transformers_image_folder(tmp_path):
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    ViTForImageClassification(config).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    network = load_network(str(tmp_path))
    assert network.prepare([Image.new("L", (50, 40))])["pixel_values"].shape == (1, 3, 32, 32)
    taps, left_out = find_taps(network, dummy_batch(network.model), activation="after", selection="conv")
    assert taps[0].name == "embeddings.patch_embeddings.projection"
    assert "pooler.dense" in left_out


def test_a_size_that_the_network_cannot_take_is_said_before_any_work(timm_folder, tmp_path):
    import timm

    timm.models.save_for_hf(timm.create_model("test_vit"), tmp_path, safe_serialization=True)
    network = load_network(str(tmp_path), image_size=64)  # timm resamples the positions of a ViT
    assert network.prepare([Image.new("RGB", (50, 50))]).shape == (1, 3, 64, 64)
    find_taps(network, dummy_batch(network.model), activation="after")


def test_an_encoder_decoder_is_read_as_its_encoder(tmp_path, text_folder):
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

    T5ForConditionalGeneration(
        T5Config(vocab_size=14, d_model=16, d_ff=32, d_kv=8, num_layers=2, num_heads=2)
    ).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(text_folder).save_pretrained(tmp_path)
    network = load_network(str(tmp_path))
    taps, _ = find_taps(network, network.prepare(["good film", "bad"]), activation="after")
    assert not any("decoder" in tap.name for tap in taps)
    assert len(taps) == 2 * 3 + 1 + 1  # attention, hidden layer and block, the final norm, and "last"


def test_an_image_encoder_that_cannot_be_loaded_by_itself_is_taken_from_the_whole(tmp_path):
    from transformers import AltCLIPConfig, AltCLIPModel, CLIPImageProcessor

    part = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    vision, text = {**part, "image_size": 32, "patch_size": 8}, {**part, "vocab_size": 40, "project_dim": 8}
    model = AltCLIPModel(AltCLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()
    model.save_pretrained(tmp_path)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    network = load_network(str(tmp_path))
    assert network.modality == "image"
    batch = network.prepare([Image.new("RGB", (50, 40), "red")])
    expected = model.vision_model(**batch).last_hidden_state
    assert torch.allclose(network.model(**batch).last_hidden_state, expected, atol=1e-6)


def test_of_clip_the_image_encoder_is_read_with_its_weights(tmp_path):
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    part = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    vision, text = {**part, "image_size": 32, "patch_size": 8}, {**part, "vocab_size": 40}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()
    model.save_pretrained(tmp_path)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    network = load_network(str(tmp_path))
    assert (network.modality, network.untrained) == ("image", frozenset())
    batch = network.prepare([Image.new("RGB", (50, 40), "red")])
    expected = model.vision_model(**batch).last_hidden_state
    assert torch.allclose(network.model(**batch).last_hidden_state, expected, atol=1e-6)
    same = load_network(str(tmp_path), image_size=32).prepare([Image.new("RGB", (50, 40), "red")])
    assert torch.equal(same["pixel_values"], batch["pixel_values"])


def test_of_two_networks_side_by_side_that_of_images_is_read(tmp_path):
    import transformers as T

    part = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    vision, text = T.ViTConfig(image_size=32, patch_size=8, **part), T.BertConfig(vocab_size=20, **part)
    config = T.VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=8)
    T.VisionTextDualEncoderModel(config).save_pretrained(tmp_path)
    T.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    network = load_network(str(tmp_path))
    assert (network.modality, type(network.model)) == ("image", T.ViTModel)


PART = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
WORDS = {"vocab_size": 20, **PART}
IMAGES = {"image_size": 32, "patch_size": 8, **PART}


def save_image_processor(folder):
    import transformers as T

    T.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


def test_what_a_part_reads_is_in_its_signature_not_in_its_class(tmp_path):
    import transformers as T

    model = T.OwlViTForObjectDetection(T.OwlViTConfig(text_config=WORDS, vision_config=IMAGES, projection_dim=8))
    model.save_pretrained(tmp_path)  # whose image encoder inherits main_input_name = "input_ids"
    save_image_processor(tmp_path)
    network = load_network(str(tmp_path))
    assert network.modality == "image"
    batch = network.prepare([Image.new("RGB", (50, 40), "red")])
    expected = model.eval().owlvit.vision_model(**batch).last_hidden_state
    assert torch.allclose(network.model(**batch).last_hidden_state, expected, atol=1e-6)


def test_an_encoder_and_a_decoder_put_together_are_read_as_the_encoder(tmp_path):
    import transformers as T

    decoder = T.BertConfig(**WORDS, is_decoder=True, add_cross_attention=True)
    config = T.VisionEncoderDecoderConfig.from_encoder_decoder_configs(T.ViTConfig(**IMAGES), decoder)
    model = T.VisionEncoderDecoderModel(config).eval()
    model.save_pretrained(tmp_path)
    save_image_processor(tmp_path)
    network = load_network(str(tmp_path))
    assert (network.modality, network.untrained) == ("image", frozenset())
    batch = network.prepare([Image.new("RGB", (50, 40), "red")])
    expected = model.encoder(**batch).last_hidden_state
    assert torch.allclose(network.model(**batch).last_hidden_state, expected, atol=1e-6)


def test_of_an_encoder_of_texts_and_sounds_that_of_sounds_is_read(tmp_path):
    import transformers as T

    sound = {"spec_size": 64, "num_mel_bins": 64, "window_size": 2, "patch_embeds_hidden_size": 8, "depths": [1, 1]}
    sound |= {"num_attention_heads": [1, 2], "hidden_size": 16, "patch_size": 4, "patch_stride": [4, 4]}
    T.ClapModel(T.ClapConfig(text_config=WORDS, audio_config=sound, projection_dim=8)).save_pretrained(tmp_path)
    T.ClapFeatureExtractor(feature_size=64).save_pretrained(tmp_path)
    network = load_network(str(tmp_path))
    assert (network.modality, type(network.model)) == ("audio", T.ClapAudioModel)


def test_a_network_that_reads_images_and_texts_together_only_is_refused_as_it_is_loaded(tmp_path):
    import transformers as T

    T.ViltModel(T.ViltConfig(**WORDS, image_size=32, patch_size=8)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="input_ids and pixel_values together"):
        load_network(str(tmp_path))


def test_a_network_that_no_auto_class_knows_is_refused_with_the_class_that_loads_it(tmp_path):
    import transformers as T

    T.SiglipTextModel(T.SiglipTextConfig(**WORDS)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"load it by its class, SiglipTextModel.from_pretrained"):
        load_network(str(tmp_path))


def test_a_part_of_a_network_of_videos_is_refused_by_name(tmp_path):
    import transformers as T

    clip = {**IMAGES, "num_frames": 2, "mit_hidden_size": 16, "mit_num_hidden_layers": 1, "mit_num_attention_heads": 2}
    T.XCLIPModel(T.XCLIPConfig(text_config=WORDS, vision_config=clip, projection_dim=8)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="reads videos"):
        load_network(str(tmp_path))


def test_a_network_of_videos_is_refused_by_name(tmp_path):
    from transformers import TimesformerConfig, TimesformerModel, VideoMAEImageProcessor

    part = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    TimesformerModel(TimesformerConfig(image_size=32, patch_size=8, num_frames=2, **part)).save_pretrained(tmp_path)
    VideoMAEImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="reads videos, which this version does not feed by name"):
        load_network(str(tmp_path))


def test_a_processor_without_a_size_takes_none(tmp_path):
    from transformers import Siglip2ImageProcessor, Siglip2VisionConfig, Siglip2VisionModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    Siglip2VisionModel(Siglip2VisionConfig(num_patches=16, patch_size=8, **sizes)).save_pretrained(tmp_path)
    Siglip2ImageProcessor(patch_size=8, max_num_patches=16).save_pretrained(tmp_path)
    assert load_network(str(tmp_path)).prepare([Image.new("RGB", (40, 90))])["pixel_values"].shape == (1, 16, 192)
    with pytest.raises(InputError, match="image_size=32 was given, but the processor has no size of images; leave it"):
        load_network(str(tmp_path), image_size=32)


@pytest.mark.parametrize("size", [{"shortest_edge": 224}, {"height": 224, "width": 224}])
def test_a_size_is_given_as_the_processor_has_it(size):
    from hf_tl.preparation import _sizes

    assert _sizes({"size": size}, 96) == {"size": dict.fromkeys(size, 96)}
    cropped = {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True}
    assert _sizes(cropped, 112) == {"size": {"shortest_edge": 128}, "crop_size": {"height": 112, "width": 112}}


def test_channels_that_no_image_has_are_refused(tmp_path):
    import timm

    model = timm.create_model("test_resnet", in_chans=4)
    timm.models.save_for_hf(model, tmp_path, model_args={"in_chans": 4}, safe_serialization=True)
    with pytest.raises(InputError, match=r"reads images of 4 channels; .* Network\(model, prepare\)"):
        load_network(str(tmp_path))


def test_a_text_that_is_cut_is_counted_once(text_folder):
    network = load_network(str(text_folder), max_length=8)
    with pytest.warns(UserWarning, match="1 of 2 texts of a batch have more than 8 tokens, up to 22;.*max_length"):
        assert network.prepare(["film " * 20, "good"])["input_ids"].shape == (2, 8)
    network.prepare(["film " * 20])  # an error, were it to warn again
    with pytest.raises(InputError, match="max_length should be 1 to the 32 tokens"):
        load_network(str(text_folder), max_length=64)
    pair = network.prepare([("good", "bad")])["input_ids"]
    assert pair.shape == (1, 2)  # this tokenizer marks no pairs


def config_only(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    return str(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "nobody/nothing",
            "model 'nobody/nothing' is not a folder.* switched off by HF_HUB_OFFLINE=1; check the spelling",
        ),
        ("no_such_network", "model 'no_such_network' is not a folder"),
        ("a/b/c/d", "model 'a/b/c/d' is not a folder"),
        ("./nowhere", "model folder './nowhere' does not exist"),
        ("local-dir:nowhere", "model folder 'nowhere' does not exist"),
        ("resnet18.a1_in1k", "timm could not load 'resnet18.a1_in1k'"),
    ],
)
def test_a_model_that_is_nowhere(name, message):
    with pytest.raises(InputError, match=message) as caught:
        load_network(name)
    assert "\n" not in str(caught.value)


def test_a_folder_that_holds_no_model(tmp_path):
    with pytest.raises(InputError, match=r"has no config.json; expected a saved transformers or timm model"):
        load_network(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{not json", "is not JSON"),
        ("[1, 2]", "should hold an object, got list"),
        ('{"hidden": 3}', r"neither 'model_type' \(transformers\) nor 'architecture' \(timm\), but \['hidden'\]"),
        ('{"architecture": "no_such_network"}', "timm could not load"),
        ('{"architecture": "resnet18", "pretrained_cfg": {}}', "timm could not load"),
        ('{"model_type": "no_such_type"}', "transformers could not load"),
        (
            json.dumps({"model_type": "bert", "hidden_size": 8, "num_attention_heads": 2}),
            "transformers could not load",
        ),
    ],
)
def test_a_folder_with_a_wrong_config_or_no_weights(tmp_path, content, message):
    with pytest.raises(InputError, match=message) as caught:
        load_network(config_only(tmp_path, content))
    assert "\n" not in str(caught.value)


def test_image_size_must_make_sense(timm_folder, text_folder):
    with pytest.raises(InputError, match="image_size must be at least 1 pixel, got 0"):
        load_network(str(timm_folder), image_size=0)
    with pytest.raises(InputError, match=r"image_size=64 was given, but .* reads text"):
        load_network(str(text_folder), image_size=64)


def test_a_compiled_network_is_the_network_itself():
    model = torch.nn.Linear(2, 2)
    assert Network(torch.compile(model, backend="eager"), torch.stack).model is model


def test_names_of_a_timm_checkpoint_do_not_outlive_its_head(tmp_path):
    """transformers saves a stale `label_names` in place of the new names, and reads those back."""
    import timm

    there = tmp_path / "there"
    model = timm.create_model("test_resnet", num_classes=2)
    config = {"num_classes": 2, "label_names": ["cat", "dog"]}
    timm.models.save_for_hf(model, there, model_config=config, safe_serialization=True)
    network = load_network(str(there), classes=["hot", "cold"])
    network.model.save_pretrained(tmp_path / "own")
    again = load_network(str(tmp_path / "own"), classes=["hot", "cold"])
    assert again.model.config.id2label == {0: "hot", 1: "cold"}
    assert not again.untrained
    assert AutoConfig.from_pretrained(tmp_path / "own").id2label == {0: "hot", 1: "cold"}
    assert name_outputs(again.model, ["new", "old"]) == ("new", "old")
    again.model.save_pretrained(tmp_path / "renamed")
    assert AutoConfig.from_pretrained(tmp_path / "renamed").id2label == {0: "new", 1: "old"}
