"""Settings that must stand before any library is imported, and the networks and data that tests share."""

import gc
import os
import tempfile
from pathlib import Path


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny networks gain nothing from more, and sums keep one order
home = tempfile.TemporaryDirectory(prefix="hf-home-")  # goes at the end of the run
os.environ["HF_HOME"] = home.name
os.environ["DATASETS_VERBOSITY"] = "critical"  # as hf-tl sets it, too late where a test has imported datasets
os.environ.pop("HF_DATASETS_CACHE", None)

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image
from processes import Processes


settings.register_profile("any processor", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any processor")


@pytest.fixture(autouse=True, scope="module")
def frozen_garbage():
    """The half million objects of imported modules are not looked at again: each Trainer collects when it ends."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    gc.unfreeze()


def pytest_collectstart():
    """What a module draws when it is imported does not depend on what was imported before, and in which version."""
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random numbers."""
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(scope="session")
def processes():
    """Starts processes, two that train together for example, without waiting for their imports: see processes.py."""
    with Processes() as running:
        yield running


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real weights and data sets; tests that need it carry the mark `real`."""
    folder = os.environ.get("HF_TL_REAL_DATA")
    if not folder:
        pytest.skip("HF_TL_REAL_DATA is not set: no real weights and data here")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def timm_folder(tmp_path_factory) -> Path:
    """A small timm network with random weights, saved as timm saves for the Hub."""
    import timm

    folder = tmp_path_factory.mktemp("timm-model")
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=4)
    timm.models.save_for_hf(model, folder, model_config={"input_size": (3, 32, 32)}, safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory) -> Path:
    """A tiny BERT without a pooler in its checkpoint, and a word-level tokenizer, as transformers saves them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("text-model")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "a",
        "the",
        "film",
        "was",
        "very",
        "not",
        "good",
        "bad",
        "fine",
        "dull",
    ]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


def write_images(
    folder: Path, *, classes: tuple[str, ...] = ("cat", "dog"), rows: int = 6, split: str = "train"
) -> None:
    """An imagefolder of noise around one colour a class."""
    generator = np.random.default_rng(len(split))
    for k, name in enumerate(classes):
        (folder / split / name).mkdir(parents=True, exist_ok=True)
        for i in range(rows):
            pixels = generator.integers(0, 90, (40, 40, 3)) + np.array([160, 80, 0]) * (k == 0)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / split / name / f"{i}.png")


@pytest.fixture
def image_folder(tmp_path) -> Path:
    """A small imagefolder with a train and a test split."""
    folder = tmp_path / "images"
    write_images(folder)
    write_images(folder, rows=3, split="test")
    return folder


@pytest.fixture
def reviews(tmp_path) -> Path:
    """A csv file of short texts with string labels."""
    path = tmp_path / "reviews.csv"
    lines = ["text,label"]
    for i in range(10):
        lines.append(f"the film was {'very ' * (i % 3)}good,positive")
        lines.append(f"a dull film {'not ' * (i % 4)}fine,negative")
    path.write_text("\n".join(lines) + "\n")
    return path
