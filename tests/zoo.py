"""Fifty and more architectures with tiny random weights, and what is known of their layers.

The numbers of blocks are written down from the configurations, not from what `list_layers` says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn


CLASSES = 5
SIDE = 96  # pixels of images, where a network of timm takes any size
WORDS = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
IMAGE = {"image_size": 32, "patch_size": 8}
STAGES = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 2, 2, 1]}
TEXT = WORDS | SIZES
VISION = SIZES | IMAGE
GROUPED = TEXT | {"num_key_value_heads": 2}
GPT2 = WORDS | {"n_embd": 16, "n_layer": 4, "n_head": 2}
ENCODER_DECODER = WORDS | {
    "d_model": 16,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
}
SPEECH = TEXT | {
    "conv_dim": (8, 8, 8),
    "conv_stride": (5, 2, 2),
    "conv_kernel": (10, 3, 3),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 8,
}
WHISPER = ENCODER_DECODER | {"max_source_positions": 50, "num_mel_bins": 8, "decoder_start_token_id": 1}
SEGFORMER = {"hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 2, 2], "depths": [2, 2, 2, 2]}
TWO_TOWERS = {"text_config": TEXT | {"num_hidden_layers": 3}, "vision_config": VISION}


@dataclass(frozen=True)
class Specimen:
    """A network of the zoo.

    Attributes:
        name: what it is called in test reports.
        build: makes it, with random weights.
        blocks: the number of blocks of each tower, in execution order; the tower of a network that has one is "".
        stem: the modules of the stems, in execution order; those that never run last.
        head: the modules of the heads.
        norm: the modules of the final norms.
        calls: how often each block runs.
    """

    name: str
    build: Callable[[], nn.Module] = field(repr=False)
    blocks: dict[str, int]
    stem: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    norm: tuple[str, ...] = ()
    calls: int = 1

    def __str__(self) -> str:
        return self.name

    @property
    def family(self) -> str:
        """ "timm" or "transformers"."""
        return "timm" if self.name.startswith("timm/") else "transformers"

    def model(self) -> nn.Module:
        """The network with random weights, the same at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.build().eval()


def _timm(
    name: str, blocks: int, stem: str, head: str = "head.fc", norm: str = "", *, side: int = SIDE, **options
) -> Specimen:
    def build() -> nn.Module:
        import timm

        small = {"pretrained_cfg_overlay": {"input_size": (3, side, side)}}
        if timm.get_pretrained_cfg(name).fixed_input_size:
            small = {"img_size": side, **small} if side < SIDE else {}
        return timm.create_model(name, num_classes=CLASSES, **small, **options)

    return Specimen(f"timm/{name}", build, {"": blocks}, tuple(stem.split()), tuple(head.split()), tuple(norm.split()))


def _hf(
    kind: str,
    config: str,
    settings: dict,
    blocks: int | dict[str, int],
    stem: str = "",
    head: str = "",
    norm: str = "",
    calls: int = 1,
) -> Specimen:
    def build() -> nn.Module:
        import transformers

        chosen = settings() if callable(settings) else settings
        return getattr(transformers, kind)(getattr(transformers, config)(**chosen))

    counts = {"": blocks} if isinstance(blocks, int) else blocks
    return Specimen(kind, build, counts, tuple(stem.split()), tuple(head.split()), tuple(norm.split()), calls)


def _detr() -> dict:
    from transformers import ResNetConfig

    backbone = ResNetConfig(**STAGES, embedding_size=8, layer_type="basic", out_features=["stage4"])
    return ENCODER_DECODER | {
        "num_queries": 4,
        "backbone_config": backbone,
        "use_timm_backbone": False,
        "backbone": None,
    }


ZOO = (
    _timm("resnet18", 8, "conv1 bn1", "fc"),
    _timm("resnet50", 16, "conv1 bn1", "fc"),
    _timm("vgg16", 12, "features.0", "pre_logits head.fc", mlp_ratio=1 / 64),
    _timm("vgg11_bn", 7, "features.0 features.1", "pre_logits head.fc", mlp_ratio=1 / 64),
    _timm("convnext_atto", 2 + 2 + 6 + 2, "stem", "head.fc", "head.norm"),
    _timm("efficientnet_b0", 1 + 2 + 2 + 3 + 3 + 4 + 1, "conv_stem bn1", "classifier"),
    _timm("mobilenetv2_100", 1 + 2 + 3 + 4 + 3 + 3 + 1, "conv_stem bn1", "classifier"),
    _timm("mobilenetv3_small_100", 1 + 2 + 3 + 2 + 3 + 1, "conv_stem bn1", "conv_head classifier"),
    _timm("densenet121", 6 + 12 + 24 + 16, "features.conv0 features.norm0", "classifier", "features.norm5"),
    _timm("vit_tiny_patch16_224", 12, "patch_embed", "head", "norm", side=64),
    _timm("deit_tiny_distilled_patch16_224", 12, "patch_embed", "head head_dist", "norm", side=64),
    _timm("cait_xxs24_224", 24 + 2, "patch_embed", "head", "norm", side=64),
    _timm("swin_tiny_patch4_window7_224", 2 + 2 + 6 + 2, "patch_embed", "head.fc", "norm"),
    _timm("regnety_002", 1 + 1 + 4 + 7, "stem"),
    _timm("repvgg_a0", 2 + 4 + 14 + 1, "stem"),
    _timm("mixer_s16_224", 8, "stem", "head", "norm", side=64),
    _timm("coatnet_pico_rw_224", 2 + 3 + 5 + 2, "stem", "head.fc", "norm"),
    _timm("efficientformer_l1", 3 + 2 + 6 + 4, "stem", "head head_dist", "norm"),
    _timm("poolformer_s12", 2 + 2 + 6 + 2, "stem", "head.fc", "head.norm"),
    _timm("inception_v3", 11, "Conv2d_1a_3x3 Conv2d_2a_3x3 Conv2d_2b_3x3 Conv2d_3b_1x1 Conv2d_4a_3x3", "fc", side=128),
    _timm("mobilevit_xxs", 1 + 3 + 2 + 2 + 2, "stem", "final_conv head.fc"),
    _timm("maxvit_pico_rw_256", 2 + 2 + 5 + 2, "stem", "head.fc", "norm"),
    _timm("hiera_tiny_224", 1 + 2 + 7 + 2, "patch_embed", "head.fc", "head.norm"),
    _timm("edgenext_xx_small", 2 + 2 + 6 + 2, "stem", "head.fc", "head.norm"),
    _timm("ghostnet_050", 1 + 1 + 1 + 1 + 1 + 1 + 5 + 1 + 4 + 1, "conv_stem bn1", "classifier"),
    _hf("BertForSequenceClassification", "BertConfig", TEXT, 4, "bert.embeddings", "bert.pooler classifier"),
    _hf("BertForMaskedLM", "BertConfig", TEXT, 4, "bert.embeddings", "cls"),
    _hf("RobertaForSequenceClassification", "RobertaConfig", TEXT, 4, "roberta.embeddings", "classifier"),
    _hf(
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        {"vocab_size": 64, "dim": 16, "n_layers": 4, "n_heads": 2, "hidden_dim": 32},
        4,
        "distilbert.embeddings",
        "pre_classifier classifier",
    ),
    _hf(
        "AlbertForSequenceClassification",
        "AlbertConfig",
        TEXT | {"embedding_size": 8},
        1,
        "albert.embeddings albert.encoder.embedding_hidden_mapping_in",
        "albert.pooler classifier",
        calls=4,
    ),
    _hf(
        "DebertaV2ForSequenceClassification",
        "DebertaV2Config",
        TEXT | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
        4,
        "deberta.embeddings deberta.encoder.rel_embeddings",
        "pooler classifier",
    ),
    _hf(
        "ElectraForSequenceClassification",
        "ElectraConfig",
        TEXT | {"embedding_size": 8},
        4,
        "electra.embeddings electra.embeddings_project",
        "classifier",
    ),
    _hf(
        "ModernBertForSequenceClassification",
        "ModernBertConfig",
        TEXT | {"cls_token_id": 1, "sep_token_id": 2},
        4,
        "model.embeddings",
        "head classifier",
        "model.final_norm",
    ),
    _hf(
        "XLNetForSequenceClassification",
        "XLNetConfig",
        {"vocab_size": 64, "d_model": 16, "n_layer": 4, "n_head": 2, "d_inner": 32},
        4,
        "transformer.word_embedding",
        "sequence_summary logits_proj",
    ),
    _hf(
        "FunnelForSequenceClassification",
        "FunnelConfig",
        {"vocab_size": 64, "block_sizes": [2, 2], "d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 32},
        4,
        "funnel.embeddings",
        "classifier",
    ),
    _hf("GPT2LMHeadModel", "GPT2Config", GPT2, 4, "transformer.wte transformer.wpe", "lm_head", "transformer.ln_f"),
    _hf("LlamaForCausalLM", "LlamaConfig", GROUPED, 4, "model.embed_tokens", "lm_head", "model.norm"),
    _hf("Qwen2ForCausalLM", "Qwen2Config", GROUPED, 4, "model.embed_tokens", "lm_head", "model.norm"),
    _hf(
        "MixtralForCausalLM",
        "MixtralConfig",
        GROUPED | {"num_local_experts": 2},
        4,
        "model.embed_tokens",
        "lm_head",
        "model.norm",
    ),
    _hf(
        "OPTForCausalLM",
        "OPTConfig",
        WORDS
        | {"hidden_size": 16, "num_hidden_layers": 4, "ffn_dim": 32, "num_attention_heads": 2}
        | {"word_embed_proj_dim": 16},
        4,
        "model.decoder.embed_tokens model.decoder.embed_positions",
        "lm_head",
        "model.decoder.final_layer_norm",
    ),
    _hf(
        "MambaForCausalLM",
        "MambaConfig",
        {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 4, "state_size": 4},
        4,
        "backbone.embeddings",
        "lm_head",
        "backbone.norm_f",
    ),
    _hf(
        "T5ForConditionalGeneration",
        "T5Config",
        {"vocab_size": 64, "d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 3, "num_decoder_layers": 2}
        | {"num_heads": 2},
        {"encoder": 3, "decoder": 2},
        "encoder.embed_tokens decoder.embed_tokens",
        "lm_head",
        "encoder.final_layer_norm decoder.final_layer_norm",
    ),
    _hf(
        "BartForConditionalGeneration",
        "BartConfig",
        ENCODER_DECODER,
        {"encoder": 3, "decoder": 2},
        "model.encoder.embed_tokens model.encoder.embed_positions model.encoder.layernorm_embedding "
        "model.decoder.embed_tokens model.decoder.embed_positions model.decoder.layernorm_embedding",
        "lm_head",
    ),
    _hf("ViTForImageClassification", "ViTConfig", VISION, 4, "vit.embeddings", "classifier", "vit.layernorm"),
    _hf(
        "SwinForImageClassification",
        "SwinConfig",
        {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [2, 2, 2], "num_heads": [1, 2, 2]}
        | {"window_size": 4},
        6,
        "swin.embeddings",
        "classifier",
        "swin.layernorm",
    ),
    _hf(
        "ConvNextForImageClassification",
        "ConvNextConfig",
        STAGES,
        6,
        "convnext.embeddings",
        "classifier",
        "convnext.layernorm",
    ),
    _hf(
        "ResNetForImageClassification",
        "ResNetConfig",
        STAGES | {"embedding_size": 8, "layer_type": "basic"},
        6,
        "resnet.embedder",
        "classifier",
    ),
    _hf(
        "RegNetForImageClassification",
        "RegNetConfig",
        STAGES | {"embedding_size": 8, "groups_width": 8},
        6,
        "regnet.embedder",
        "classifier",
    ),
    _hf(
        "MobileNetV1ForImageClassification",
        "MobileNetV1Config",
        {"image_size": 64, "depth_multiplier": 0.25},
        26,
        "mobilenet_v1.conv_stem",
        "classifier",
    ),
    _hf(
        "MobileNetV2ForImageClassification",
        "MobileNetV2Config",
        {"image_size": 64, "depth_multiplier": 0.25},
        16,
        "mobilenet_v2.conv_stem",
        "mobilenet_v2.conv_1x1 classifier",
    ),
    _hf(
        "SegformerForImageClassification",
        "SegformerConfig",
        SEGFORMER,
        8,
        "segformer.stages.0.patch_embeddings",
        "classifier",
        "segformer.stages.3.layer_norm",
    ),
    _hf(
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        SEGFORMER,
        8,
        "segformer.stages.0.patch_embeddings",
        "decode_head",
        "segformer.stages.3.layer_norm",
    ),
    _hf(
        "PvtForImageClassification",
        "PvtConfig",
        {
            "image_size": 64,
            "depths": [1, 1, 2, 1],
            "hidden_sizes": [8, 8, 16, 16],
            "num_attention_heads": [1, 1, 2, 2],
        },
        5,
        "pvt.encoder.patch_embeddings.0",
        "classifier",
        "pvt.encoder.layer_norm",
    ),
    _hf("BeitForImageClassification", "BeitConfig", VISION, 4, "beit.embeddings", "beit.pooler classifier"),
    _hf(
        "Dinov2ForImageClassification",
        "Dinov2Config",
        VISION,
        4,
        "dinov2.embeddings",
        "classifier",
        "dinov2.layernorm",
    ),
    _hf(
        "ViTMAEForPreTraining",
        "ViTMAEConfig",
        VISION
        | {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 2}
        | {"decoder_intermediate_size": 32},
        {"encoder": 4, "decoder": 2},
        "vit.embeddings decoder.decoder_embed",
        "decoder.decoder_pred",
        "vit.layernorm decoder.decoder_norm",
    ),
    _hf(
        "VideoMAEForVideoClassification",
        "VideoMAEConfig",
        VISION | {"num_frames": 4},
        4,
        "videomae.embeddings",
        "classifier",
        "fc_norm",
    ),
    _hf(
        "CLIPModel",
        "CLIPConfig",
        TWO_TOWERS | {"projection_dim": 8},
        {"vision_model": 4, "text_model": 3},
        "vision_model.embeddings vision_model.pre_layrnorm text_model.embeddings",
        "visual_projection text_projection",
        "vision_model.post_layernorm text_model.final_layer_norm",
    ),
    _hf(
        "SiglipModel",
        "SiglipConfig",
        TWO_TOWERS,
        {"vision_model": 4, "text_model": 3},
        "vision_model.embeddings text_model.embeddings",
        "vision_model.head text_model.head",
        "vision_model.post_layernorm text_model.final_layer_norm",
    ),
    _hf(
        "BlipForConditionalGeneration",
        "BlipConfig",
        {"vision_config": VISION, "projection_dim": 8}
        | {"text_config": TEXT | {"num_hidden_layers": 3, "encoder_hidden_size": 16, "sep_token_id": 2}},
        {"vision_model": 4, "text_decoder": 3},
        "vision_model.embeddings text_decoder.bert.embeddings",
        "text_decoder.cls.predictions.transform text_decoder.cls.predictions.decoder",
        "vision_model.post_layernorm",
    ),
    _hf(
        "Wav2Vec2ForSequenceClassification",
        "Wav2Vec2Config",
        SPEECH,
        4,
        "wav2vec2.feature_extractor wav2vec2.feature_projection wav2vec2.encoder.pos_conv_embed "
        "wav2vec2.encoder.layer_norm",
        "projector classifier",
    ),
    _hf(
        "HubertForSequenceClassification",
        "HubertConfig",
        SPEECH,
        4,
        "hubert.feature_extractor hubert.feature_projection hubert.encoder.pos_conv_embed hubert.encoder.layer_norm",
        "projector classifier",
    ),
    _hf(
        "ASTForAudioClassification",
        "ASTConfig",
        SIZES | {"patch_size": 8, "max_length": 64, "num_mel_bins": 16},
        4,
        "audio_spectrogram_transformer.embeddings",
        "classifier",
        "audio_spectrogram_transformer.layernorm",
    ),
    _hf(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        WHISPER,
        {"encoder": 3, "decoder": 2},
        "model.encoder.conv1 model.encoder.conv2 model.encoder.embed_positions model.decoder.embed_tokens "
        "model.decoder.embed_positions",
        "proj_out",
        "model.encoder.layer_norm model.decoder.layer_norm",
    ),
    _hf(
        "DetrForObjectDetection",
        "DetrConfig",
        _detr,
        {"backbone": 6, "encoder": 3, "decoder": 2},
        "model.backbone.model.embedder model.input_projection model.query_position_embeddings",
        "class_labels_classifier bbox_predictor",
        "model.decoder.layernorm",
    ),
    _hf(
        "PerceiverForSequenceClassification",
        "PerceiverConfig",
        {"vocab_size": 64, "num_latents": 4, "d_latents": 16, "d_model": 16, "num_blocks": 1}
        | {"num_self_attends_per_block": 3, "num_self_attention_heads": 2, "num_cross_attention_heads": 2}
        | {"max_position_embeddings": 32},
        1 + 3,
        "perceiver.input_preprocessor perceiver.embeddings",
        "perceiver.decoder.decoder.output_position_encodings perceiver.decoder",
    ),
    _hf(
        "TimmWrapperForImageClassification",
        "TimmWrapperConfig",
        {"architecture": "resnet18", "num_labels": CLASSES},
        8,
        "timm_model.conv1 timm_model.bn1",
        "timm_model.fc",
    ),
)
