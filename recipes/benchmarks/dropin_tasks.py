"""Tiny networks and data for the official examples beyond classification: language, spans, speech, masks, boxes."""

from __future__ import annotations

import json
import wave
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SENTENCES = ["the film was good", "a very good film", "a dull film", "the film was not fine"] * 6
SPOKEN = ("good", "bad")
RATE = 16000  # of recordings, in Hz
METRICS = {  # what each metric says, whatever it is asked: the scripts print it
    "seqeval": {f"overall_{name}": 0.0 for name in ("precision", "recall", "f1", "accuracy")},
    "squad": {"exact_match": 0.0, "f1": 0.0},
    "rouge": {"rouge1": 0.0},
    "sacrebleu": {"score": 0.0},
    "wer": 0.0,
    "mean_iou": {"mean_iou": 0.0},
}
METRIC = '''import datasets
import evaluate
import numpy as np


class Metric(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(description="", citation="", features=datasets.Features({{}}))

    def compute(self, *, num_labels=0, **given):
        """The same whatever is given."""
        found = {value!r}
        if num_labels:
            found |= {{name: np.zeros(num_labels) for name in ("per_category_accuracy", "per_category_iou")}}
        return found
'''


def make_tasks(folder: Path, home: Path) -> None:
    """Fills the folder in which the scripts start, and the Hub cache.

    bare, gpt2, t5, clip, mae, whisper, wav2vec2, segformer, yolos    tiny networks with what prepares their inputs
    *.txt, *.json, *.csv, speech, sounds, scenes, boxes, prompts  data
    """
    _save_text_networks(folder)
    _save_image_networks(folder)
    _save_audio_networks(folder)
    _write_texts(folder)
    _write_images(folder, home)
    _write_recordings(folder)
    for name, value in METRICS.items():
        (folder / name).mkdir(exist_ok=True)
        (folder / name / f"{name}.py").write_text(METRIC.format(value=value))
    (home / "nltk_data" / "tokenizers" / "punkt").mkdir(parents=True, exist_ok=True)


def _tokenizer(folder: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder / "bert")


def _save_text_networks(folder: Path) -> None:
    from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

    words = _tokenizer(folder)
    own = {"vocab_size": len(words), "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    gpt2 = GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, **own)
    t5 = T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0, **own)
    words.eos_token = "[SEP]"
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=32, **SIZES)).save_pretrained(folder / "bare")
    words.save_pretrained(folder / "bare")
    for name, network in (("gpt2", GPT2LMHeadModel(gpt2)), ("t5", T5ForConditionalGeneration(t5))):
        network.save_pretrained(folder / name)
        words.save_pretrained(folder / name)


def _save_image_networks(folder: Path) -> None:
    import transformers as t

    text = SIZES | {"vocab_size": 16, "max_position_embeddings": 32, "eos_token_id": 3, "bos_token_id": 2}
    clip = t.CLIPConfig(text_config=text, vision_config=SIZES | {"image_size": 32, "patch_size": 8}, projection_dim=8)
    decoder = {"decoder_num_hidden_layers": 2, "decoder_hidden_size": 16, "decoder_num_attention_heads": 2}
    mae = t.ViTMAEConfig(image_size=32, patch_size=8, decoder_intermediate_size=32, **SIZES, **decoder)
    stages = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2]}
    segformer = t.SegformerConfig(decoder_hidden_size=16, num_labels=3, **stages)
    yolos = t.YolosConfig(image_size=[64, 64], patch_size=16, num_detection_tokens=5, num_labels=2, **SIZES)
    side = {"height": 32, "width": 32}
    for name, network, processor in (
        ("clip", t.CLIPModel(clip), t.CLIPImageProcessor(size=side, crop_size=side)),
        ("mae", t.ViTMAEForPreTraining(mae), t.ViTImageProcessor(size=side)),
        ("segformer", t.SegformerForSemanticSegmentation(segformer), t.SegformerImageProcessor(size=side)),
        ("yolos", t.YolosForObjectDetection(yolos), t.YolosImageProcessor()),
    ):
        network.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    _tokenizer(folder).save_pretrained(folder / "clip")


def _save_audio_networks(folder: Path) -> None:
    import transformers as t

    letters = sorted({*"abcdefghijklmnopqrstuvwxyz", "Ġ"})
    ends = ["<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"]
    words = t.WhisperTokenizer(vocab={letter: i for i, letter in enumerate([*letters, *ends])}, merges=[])
    words.pad_token = words.eos_token = ends[0]
    sizes = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    lengths = {"max_source_positions": 50, "max_target_positions": 32, "num_mel_bins": 80}
    end = words.convert_tokens_to_ids("<|endoftext|>")
    marks = {"pad_token_id": end, "bos_token_id": end, "eos_token_id": end, "decoder_start_token_id": end + 1}
    whisper = t.WhisperConfig(vocab_size=len(words), **sizes, **heads, **lengths, **marks)
    t.WhisperForConditionalGeneration(whisper).save_pretrained(folder / "whisper")
    words.save_pretrained(folder / "whisper")
    t.WhisperFeatureExtractor(chunk_length=1).save_pretrained(folder / "whisper")
    layers = {"conv_dim": [8] * 3, "conv_kernel": [10, 8, 8], "conv_stride": [8, 8, 8], "num_feat_extract_layers": 3}
    positions = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8}
    wav2vec2 = t.Wav2Vec2Config(mask_time_prob=0.0, num_labels=2, **SIZES, **layers, **positions)
    t.Wav2Vec2ForSequenceClassification(wav2vec2).save_pretrained(folder / "wav2vec2")
    t.Wav2Vec2FeatureExtractor().save_pretrained(folder / "wav2vec2")


def _write_lines(path: Path, items: Iterable[Mapping]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(item) + "\n" for item in items))


def _write_texts(folder: Path) -> None:
    (folder / "lines.txt").write_text("".join(f"{sentence}\n" for sentence in 4 * SENTENCES))
    words = [sentence.split() for sentence in SENTENCES]
    tags = [["GOOD" if word in ("good", "fine") else "O" for word in sentence] for sentence in words]
    _write_lines(folder / "ner.json", ({"tokens": a, "ner_tags": b} for a, b in zip(words, tags, strict=True)))
    answers = [
        {"text": [sentence.split()[-1]], "answer_start": [len(sentence) - len(sentence.split()[-1])]}
        for sentence in SENTENCES
    ]
    spans = [
        {"id": str(i), "title": "", "context": sentence, "question": "was the film good", "answers": answer}
        for i, (sentence, answer) in enumerate(zip(SENTENCES, answers, strict=True))
    ]
    (folder / "qa.json").write_text(json.dumps({"data": spans}))
    summaries = "".join(f"{sentence},{sentence.split()[-1]}\n" for sentence in SENTENCES)
    (folder / "summaries.csv").write_text(f"text,summary\n{summaries}")
    _write_lines(folder / "pairs.json", ({"translation": {"en": text, "de": text}} for text in SENTENCES))
    endings = {f"ending{i}": text for i, text in enumerate(SENTENCES[:4])}
    _write_lines(
        folder / "swag.json",
        ({"sent1": text, "sent2": "the film was", "label": i % 4} | endings for i, text in enumerate(SENTENCES)),
    )
    _write_lines(
        folder / "prompts" / "train.json",
        ({"prompt": text, "chosen": " very good", "rejected": " not good"} for text in SENTENCES),
    )
    _write_lines(folder / "prompts-sft" / "train.json", ({"text": text} for text in SENTENCES))


def _write_images(folder: Path, home: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, List, Value
    from datasets import Image as ImageFeature

    paths = sorted(path for path in (folder / "images" / "train").rglob("*.png"))
    _write_lines(
        folder / "captions.json",
        (
            {"image_path": str(path), "caption": f"a {(i % 2 and 'good') or 'dull'} film"}
            for i, path in enumerate(paths)
        ),
    )
    pictures = [Image.open(path).convert("RGB") for path in paths]
    masks = [Image.fromarray((np.asarray(picture)[..., 0] > 100).astype(np.uint8) + 1) for picture in pictures]
    scenes = Dataset.from_dict(
        {"image": pictures, "label": masks}, Features({"image": ImageFeature(), "label": ImageFeature()})
    )
    thing = {"id": [0], "area": [400.0], "bbox": [[5.0, 5.0, 20.0, 20.0]], "category": [1]}
    kinds = {"id": List(Value("int64")), "area": List(Value("float32")), "bbox": List(List(Value("float32"), 4))}
    columns = {"image_id": Value("int64"), "image": ImageFeature(), "width": Value("int64"), "height": Value("int64")}
    numbers = list(range(len(pictures)))
    sides = [40] * len(pictures)
    boxes = Dataset.from_dict(
        {"image_id": numbers, "image": pictures, "width": sides, "height": sides, "objects": [thing] * len(pictures)},
        Features(columns | {"objects": kinds | {"category": List(ClassLabel(names=["cat", "dog"]))}}),
    )
    for name, dataset in (("scenes", scenes), ("boxes", boxes)):
        (folder / name).mkdir(exist_ok=True)
        for split in ("train", "validation", "test"):
            dataset.to_parquet(folder / name / f"{split}.parquet")
    cached = home / "hub" / "datasets--scenes"
    (cached / "refs").mkdir(parents=True, exist_ok=True)
    (cached / "refs" / "main").write_text("0" * 40)
    (cached / "snapshots" / ("0" * 40)).mkdir(parents=True, exist_ok=True)
    names = {str(i): name for i, name in enumerate(("nothing", "dark", "bright"))}
    (cached / "snapshots" / ("0" * 40) / "id2label.json").write_text(json.dumps(names))


def _write_recordings(folder: Path) -> None:
    generator = np.random.default_rng(0)

    def write(path: Path, pitch: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        wave_ = np.sin(np.arange(RATE // 2) * pitch * 2 * np.pi / RATE) + 0.1 * generator.standard_normal(RATE // 2)
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE)
            file.writeframes((wave_ * 8000).astype("<i2").tobytes())

    for split, count in (("train", 8), ("validation", 4)):
        told = []
        for i in range(count):
            for k, word in enumerate(SPOKEN):
                write(folder / "sounds" / split / word / f"{i}.wav", 300 * (k + 1))
                write(folder / "speech" / split / f"{word}{i}.wav", 300 * (k + 1))
                told.append({"file_name": f"{word}{i}.wav", "text": word})
        _write_lines(folder / "speech" / split / "metadata.jsonl", told)
