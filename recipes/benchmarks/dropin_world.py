"""A folder in which training scripts find, without a network, everything that they name: models, data, metrics."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import torch
from dropin_tasks import make_tasks


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = [*SPECIAL, "a", "the", "film", "was", "very", "not", "good", "bad", "fine", "dull", "[MASK]"]
METRIC = """import datasets
import evaluate


class Metric(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references):
        return {"accuracy": float(sum(p == r for p, r in zip(predictions, references)) / len(references))}
"""


def make_world(folder: Path) -> dict[str, str]:
    """Fills the folder; returns the environment in which a script that is started there stays offline.

    bert, vit      tiny networks with their tokenizer and image processor
    *.csv, images  a text and an image dataset of two classes
    accuracy, glue the metric, and the dataset, of these names
    pets           photos as the name of the Oxford-IIIT Pet Dataset has them
    home           a Hub cache with bert-base-cased, timm's resnet50d and the metric glue, tiny or random
    and more       see `make_tasks`
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    save_bert(folder / "bert")
    save_vit(folder / "vit")
    write_texts(folder)
    _write_images(folder)
    _write_metric(folder / "accuracy", "accuracy")
    home = folder / "home"
    _write_metric(home / "modules" / "evaluate_modules" / "metrics" / "evaluate-metric--glue" / ("0" * 64), "glue")
    for part in (home / "modules").rglob("*"):
        if part.is_dir():
            (part / "__init__.py").touch()
    save_bert(_cached(home, "bert-base-cased"))
    _save_resnet(_cached(home, "timm/resnet50d.ra2_in1k"))
    make_tasks(folder, home)
    return environment(home)


def environment(home: Path) -> dict[str, str]:
    """Offline, one thread, and a home of its own."""
    return os.environ | {
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(home / "modules"),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NLTK_DATA": str(home / "nltk_data"),
    }


def save_bert(folder: Path) -> None:
    """A BERT of two blocks with two classes, and a tokenizer of fifteen words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    specials = [("[CLS]", 2), ("[SEP]", 3)]
    pair = "[CLS] $A [SEP] $B:1 [SEP]:1"
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair=pair, special_tokens=specials
    )
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    named["mask_token"] = "[MASK]"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **named).save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=len(WORDS), max_position_embeddings=32, **sizes)
    BertForSequenceClassification(config).save_pretrained(folder)


def save_vit(folder: Path) -> None:
    """A ViT of two blocks with four classes and its image processor."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, num_labels=4, **sizes)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


def _save_resnet(folder: Path) -> None:
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model("resnet50d").state_dict(), folder / "model.safetensors")


def _cached(home: Path, repo: str) -> Path:
    """The folder of a snapshot in the Hub cache, which `main` names."""
    base = home / "hub" / f"models--{repo.replace('/', '--')}"
    (base / "refs").mkdir(parents=True, exist_ok=True)
    (base / "refs" / "main").write_text("0" * 40)
    snapshot = base / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True, exist_ok=True)
    return snapshot


def write_texts(folder: Path) -> None:
    def write(path: Path, header: list[str], rows: list[list]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])

    for split, count in (("train", 24), ("validation", 8)):
        rows = []
        for i in range(count // 2):
            rows.append([f"the film was {'very ' * (i % 3)}good", 1])
            rows.append([f"a {'not ' * (i % 4)}dull film", 0])
        write(folder / f"{split}.csv", ["sentence", "label"], rows)
        # more of them, because nlp_example drops an unfinished batch of 16 rows a process
        pairs = [[text, "the film was fine", label, i] for i, (text, label) in enumerate(4 * rows)]
        write(folder / "glue" / "mrpc" / f"{split}.csv", ["sentence1", "sentence2", "label", "idx"], pairs)
    files = "".join(f"  - split: {s}\n    path: mrpc/{s}.csv\n" for s in ("train", "validation"))
    (folder / "glue" / "README.md").write_text(f"---\nconfigs:\n- config_name: mrpc\n  data_files:\n{files}---\n")
    (folder / "nyu-mll").mkdir(exist_ok=True)
    (folder / "nyu-mll" / "glue").symlink_to("../glue")  # its name on the Hub now


def _write_images(folder: Path) -> None:
    from PIL import Image

    generator = np.random.default_rng(0)

    def picture(k: int) -> Image.Image:
        pixels = generator.integers(0, 90, (40, 40, 3)) + np.array([160, 80, 0]) * k
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))

    for split, count in (("train", 12), ("validation", 4)):
        for k, name in enumerate(("cat", "dog")):
            place = folder / "images" / split / name
            place.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                picture(k).save(place / f"{i}.png")
    (folder / "pets").mkdir(exist_ok=True)
    for k, name in enumerate(("Bengal", "pug")):
        for i in range(6):
            picture(k).save(folder / "pets" / f"{name}_{i}.jpg")


def _write_metric(folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(METRIC)
