"""Architectures: what kind of network or module something is, and which of transformers' loaders gives it."""

import pytest
import timm
import transformers
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from hf_tl import architectures
from hf_tl.architectures import AUTO_CLASSES, auto_class_for, auto_class_named, auto_class_of_task, classifiers_for
from hf_tl.layers import head_names


def test_networks_are_known_by_their_library():
    bert = transformers.BertForSequenceClassification(
        transformers.BertConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=32
        )
    )
    resnet = timm.create_model("test_resnet", num_classes=3)
    assert [architectures.is_transformers(model) for model in (bert, resnet, nn.Linear(2, 2))] == [True, False, False]
    assert [architectures.is_timm(model) for model in (bert, resnet, nn.Linear(2, 2))] == [False, True, False]
    assert architectures.base_model(bert) is bert.bert
    assert architectures.base_model_name(bert) == "bert"
    assert architectures.base_model_name(bert.bert) == ""
    assert architectures.base_model(resnet) is resnet
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    dino = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**sizes, image_size=32, patch_size=16))
    assert architectures.base_model(dino) is dino  # not dino.model, its encoder
    assert head_names(dino) == ()
    assert architectures.classifiers(resnet) == [resnet.fc]
    assert architectures.classifiers(bert) == []
    assert len(architectures.classifiers(timm.create_model("deit_tiny_distilled_patch16_224"))) == 2
    assert architectures.timm_config(resnet)["architecture"] == "test_resnet"
    assert not architectures.timm_config(bert)
    assert architectures.find_output_embeddings(bert) is None
    assert architectures.find_output_embeddings(resnet) is None


def test_modules_are_known_by_what_they_compute():
    assert architectures.is_convolution(nn.ConvTranspose2d(1, 1, 1))
    assert architectures.is_fully_connected(Conv1D(3, 2))
    assert architectures.is_conv1d(Conv1D(3, 2))
    assert not architectures.is_conv1d(nn.Conv1d(1, 1, 1))
    assert architectures.is_checkpointed(GradientCheckpointingLayer())
    assert architectures.has_running_statistics(nn.BatchNorm1d(2))
    assert not architectures.has_running_statistics(nn.BatchNorm1d(2, track_running_stats=False))
    assert architectures.is_norm(nn.LayerNorm(2))
    assert not architectures.is_norm(nn.Sequential(nn.Linear(2, 2)))
    network = nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3), nn.Linear(5, 4))
    assert architectures.n_linear(network) == 2
    assert architectures.n_parameters(network) == 9 + 6 + 24


def test_the_layer_below_an_adapter_counts():
    class Adapted(nn.Module):
        def __init__(self):
            super().__init__()
            self.base_layer = nn.Linear(2, 2)

    assert architectures.is_fully_connected(Adapted())
    assert not architectures.is_convolution(Adapted())


# one for each loader; all would take a minute
KINDS = ("Bert", "T5", "ViT", "Segformer", "Detr", "Wav2Vec2", "Whisper", "Llava")


@pytest.mark.parametrize("auto", AUTO_CLASSES, ids=lambda auto: auto.name)
def test_every_loader_is_there_and_gives_its_classes(auto):
    assert issubclass(auto.load(), transformers.AutoModel.__mro__[1])
    if not auto.mapping:
        return
    table = getattr(transformers, auto.mapping)
    config = next(kind for kind in (getattr(transformers, f"{name}Config") for name in KINDS) if kind in table)
    assert auto.classes(config()) == (table[config] if isinstance(table[config], tuple) else (table[config],))


@pytest.mark.parametrize(
    ("config", "class_name", "task_type", "expected"),
    [
        (transformers.BertConfig(), "BertForSequenceClassification", None, "AutoModelForSequenceClassification"),
        (transformers.BertConfig(), "BertModel", None, "AutoModel"),
        (transformers.BertConfig(), None, "TOKEN_CLS", "AutoModelForTokenClassification"),
        (transformers.BertConfig(), "BertForMaskedLM", "NO_SUCH", "AutoModelForMaskedLM"),
        (transformers.Wav2Vec2Config(), "Wav2Vec2ForSequenceClassification", None, "AutoModelForAudioClassification"),
        (transformers.ViTConfig(), "ViTForImageClassification", None, "AutoModelForImageClassification"),
        (transformers.GPT2Config(), "GPT2LMHeadModel", None, "AutoModelForCausalLM"),
        (transformers.LlavaConfig(), "LlavaForConditionalGeneration", None, "AutoModelForImageTextToText"),
        (transformers.T5Config(), "T5ForConditionalGeneration", None, "AutoModelForSeq2SeqLM"),
        (transformers.WhisperConfig(), "WhisperForConditionalGeneration", None, "AutoModelForSpeechSeq2Seq"),
    ],
)
def test_the_loader_of_a_class(config, class_name, task_type, expected):
    assert auto_class_for(config, class_name=class_name, task_type=task_type).name == expected


def test_a_loader_by_name_alone():
    assert auto_class_named("BertForTokenClassification").pipeline == "token-classification"
    assert auto_class_named("GPT2LMHeadModel").name == "AutoModelForCausalLM"
    assert auto_class_named("BertModel").name == "AutoModel"
    assert auto_class_named("os.system") is None
    assert auto_class_of_task("SEQ_CLS").has_labels
    assert auto_class_of_task("") is None


def test_classifiers_by_what_a_network_reads():
    assert [auto.modality for auto in classifiers_for(transformers.Wav2Vec2Config())] == ["audio"]
    assert [auto.modality for auto in classifiers_for(transformers.ViTConfig())] == ["image"]
    assert [auto.modality for auto in classifiers_for(transformers.T5Config())] == ["text"]
    assert list(classifiers_for(transformers.CLIPTextConfig())) == []
