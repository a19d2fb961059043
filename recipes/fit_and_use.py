"""From samples to a classifier in use, every step as a user takes it: photos, texts or recordings.

    python recipes/fit_and_use.py --model timm/mobilenetv2_100.ra_in1k --dataset photos --inputs new-photos
    python recipes/fit_and_use.py --model path/to/text-model --dataset reviews.csv --inputs new.csv --tune 200
    python recipes/fit_and_use.py --model path/to/audio-model --dataset tones --inputs new-tones --repo_id me/tones

`hf-tl fit` and `hf-tl predict` are all that most need. The rest shows that it answers alike wherever it is taken: read
from its folder, as one module, exported (ONNX takes `pip install 'hf-tl[onnx]'`) and, with --repo_id, from the Hub in
another process (the token is that of HF_TOKEN or of `hf auth login`). With --tune the network is tuned for so many
steps too, and answers in `transformers.pipeline`. One process; on a GPU, too.
"""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.special import softmax
from transformers import Trainer, TrainingArguments, pipeline

from hf_tl import Classifier, DataCollator, TaskDataset, find_classes, load_network, load_task, parse_arguments
from hf_tl.data import drop_unreadable
from hf_tl.inputs import read_image, read_recording
from hf_tl.table import format_table


@dataclass
class Arguments:
    """What to learn from what, and what to use it on."""

    model: str = field(metadata={"help": "Hub id, timm name or folder of a pre-trained network"})
    dataset: str = field(metadata={"help": "labelled samples: folder with a sub-folder a class, or table"})
    inputs: str = field(metadata={"help": "new samples: a folder, a table, or one file"})
    out: str = field(default="runs/fit_and_use", metadata={"help": "folder for all that is made"})
    image_size: int | None = field(default=None, metadata={"help": "side of the square images in pixels"})
    exports: list[str] = field(
        default_factory=lambda: ["pt2", "onnx"], metadata={"help": "endings of files to export to"}
    )
    tune: int = field(default=0, metadata={"help": "steps of fine-tuning; 0 for none"})
    repo_id: str | None = field(default=None, metadata={"help": "user/name on the Hub, made where there is none"})


def main() -> None:
    (args,) = parse_arguments(Arguments)
    out = Path(args.out)
    sizes = ["--image-size", args.image_size] if args.image_size else []
    run("fit", args.model, args.dataset, *sizes, "--on-bad-samples", "skip", "--out", out / "classifier")
    run("predict", out / "classifier", args.inputs, "--top", 1000, "--out", out / "predictions.csv")

    classifier = Classifier.from_pretrained(out / "classifier")
    predicted = read_predictions(out / "predictions.csv", classifier.class_names)
    raw, found = classify(classifier, args.inputs)
    apart = {"its folder, in another process": largest(found, predicted)}
    apart |= exported(classifier, raw, args, predicted)
    if args.repo_id:
        print(f"pushed {classifier.push_to_hub(args.repo_id).url}")
        run("predict", args.repo_id, args.inputs, "--top", 1000, "--out", out / "pulled.csv")
        apart["the Hub"] = largest(read_predictions(out / "pulled.csv", classifier.class_names), predicted)
    if args.tune:
        apart["fine-tuned, in transformers.pipeline"] = tuned(args, out / "tuned")
    print(
        format_table(["taken to", "largest difference of a probability"], [[k, f"{v:.1e}"] for k, v in apart.items()])
    )
    (out / "results.json").write_text(json.dumps(apart, indent=1) + "\n")


def run(*words: object) -> None:
    """A command of hf-tl, in a process of its own."""
    subprocess.run([sys.executable, "-m", "hf_tl.cli", *map(str, words)], check=True)


def read_predictions(path: Path, class_names: tuple[str, ...]) -> np.ndarray:
    """The probabilities in a csv file of `hf-tl predict`, (n, n_classes)."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = ["", *(f"_{i}" for i in range(2, len(class_names) + 1))]
    found = [{row[f"class{i}"]: float(row[f"probability{i}"]) for i in columns} for row in rows]
    return np.array([[row[name] for name in class_names] for row in found])


def classify(classifier: Classifier, inputs: str) -> tuple[list, np.ndarray]:
    """The raw inputs that can be read, and their probabilities, as `hf-tl predict` writes them."""
    classifier.execution.on_bad_samples = "skip"
    samples, found = classifier.read(inputs).samples, classifier.predict_proba(inputs)
    kept = np.flatnonzero(np.isfinite(found[:, 0]))
    return [samples[i] for i in kept.tolist()], found[kept]


def exported(classifier: Classifier, raw: list, args: Arguments, predicted: np.ndarray) -> dict[str, float]:
    """How far a module, a program and an ONNX file are off."""
    batches = [classifier.network.prepare(raw[start : start + 32]) for start in range(0, len(raw), 32)]
    module = classifier.to_module()
    roads = {"one module": lambda batch: module(batch) if torch.is_tensor(batch) else module(**batch)}
    for ending in args.exports:
        path = classifier.export(Path(args.out) / f"classifier.{ending}")
        roads[path.name] = loaded(path)
    with torch.inference_mode():
        logits = {road: np.concatenate([call(batch) for batch in batches]) for road, call in roads.items()}
    return {road: largest(softmax(values, axis=1), predicted) for road, values in logits.items()}


def loaded(path: Path) -> Callable:
    """What a file does, from a batch to logits."""
    if path.suffix == ".pt2":
        program = torch.export.load(path).module()
        return lambda batch: program(batch) if torch.is_tensor(batch) else program(*batch.values())
    from onnxruntime import InferenceSession  # of the extra

    run = InferenceSession(str(path)).run

    def logits(batch: torch.Tensor | dict[str, torch.Tensor]) -> np.ndarray:
        named = {"pixel_values": batch} if torch.is_tensor(batch) else batch
        return run(None, {name: value.numpy() for name, value in named.items()})[0]

    return logits


def tuned(args: Arguments, folder: Path) -> float:
    """Fine-tunes the network, saves it, and compares transformers' pipeline with it."""
    modality = load_network(args.model).modality
    task = drop_unreadable(load_task(args.dataset, modality=modality), modality=modality)
    classes = find_classes(task)
    network = load_network(args.model, classes=classes, image_size=args.image_size)
    training = TrainingArguments(str(folder), max_steps=args.tune, report_to="none", remove_unused_columns=False)
    samples = TaskDataset(task.train, classes)
    trainer = Trainer(network.model, training, train_dataset=samples, data_collator=DataCollator(network))
    trainer.train()
    classifier = Classifier.from_trainer(trainer, train=task.train, held_out=task.test)
    classifier.save_pretrained(folder)
    raw, expected = classify(classifier, args.inputs)
    hear = partial(read_recording, rate=network.processor.sampling_rate if modality == "audio" else 0)
    decode = {"image": read_image, "text": str, "audio": hear}[modality]
    ask = pipeline(f"{modality}-classification", model=str(folder))
    answers = ask([decode(value) for value in raw], top_k=len(classes))
    shares = [{each["label"]: each["score"] for each in answer} for answer in answers]
    return largest(np.array([[share[name] for name in classes] for share in shares]), expected)


def largest(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference."""
    return float(np.abs(found - expected).max())


if __name__ == "__main__":
    main()
