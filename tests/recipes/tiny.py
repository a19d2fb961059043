"""Tiny networks and datasets for the recipes: an image one of transformers, an audio one, tones to tell apart."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch


def save_vit(folder: Path) -> Path:
    """A ViT of two blocks with its image processor."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, num_labels=4, **sizes)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def save_wav2vec2(folder: Path) -> Path:
    """A wav2vec 2.0 of two blocks, without dropout, with its feature extractor."""
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForSequenceClassification

    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8, 8, 8),
        conv_stride=(5, 4, 4),
        conv_kernel=(10, 4, 4),
        num_feat_extract_layers=3,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        classifier_proj_size=8,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        mask_time_prob=0.0,
        layerdrop=0.0,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        final_dropout=0.0,
    )
    Wav2Vec2ForSequenceClassification(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(sampling_rate=8000, return_attention_mask=True).save_pretrained(folder)
    return folder


def write_tones(folder: Path, *, rows: int = 6, split: str = "train") -> None:
    """A parquet file of low and of high tones, as WAV files of different lengths at twice the network's rate."""
    from datasets import Audio, ClassLabel, Dataset
    from scipy.io import wavfile

    generator = np.random.default_rng(len(split))
    table = {"audio": [], "label": []}
    for k, pitch in enumerate((1500, 200)):
        for i in range(rows):
            time = np.arange(3200 + 400 * i) / 16000
            tone = np.sin(2 * np.pi * pitch * time) + generator.normal(0, 0.05, len(time))
            file = io.BytesIO()
            wavfile.write(file, 16000, (tone * 12000).astype(np.int16))
            table["audio"].append({"bytes": file.getvalue(), "path": f"{pitch}-{i}.wav"})
            table["label"].append(k)
    dataset = Dataset.from_dict(table).cast_column("audio", Audio(decode=False))
    folder.mkdir(exist_ok=True)
    dataset.cast_column("label", ClassLabel(names=["high", "low"])).to_parquet(folder / f"{split}.parquet")
