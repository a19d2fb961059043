"""Fits a classifier on a dataset and saves it in one folder: to predict with, to share, to export."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from hf_tl.cli.arguments import DATA, MODEL, add_reading
from hf_tl.cli.probe import read_C
from hf_tl.cli.reading import look_for_twins, read_network_and_task
from hf_tl.errors import InputError
from hf_tl.files import make_folder


HEADS = ("svm", "logreg", "ridge", "lda")  # the linear ones, named here without importing them
EXAMPLES = """\
  hf-tl fit timm/mobilenetv2_100.ra_in1k photos --image-size 160 --out runs/photos
  hf-tl fit sentence-transformers/all-MiniLM-L6-v2 reviews.csv --label stars --problem regression --out runs/reviews
  hf-tl fit sentence-transformers/all-MiniLM-L6-v2 posts.csv --label sports politics science --out runs/posts
  hf-tl fit sentence-transformers/all-MiniLM-L6-v2 pairs.csv --input question answer --out runs/pairs
  hf-tl fit timm/resnet50.a1_in1k photos --features runs/features --on-bad-samples skip --out runs/photos"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    add("model", help=MODEL)
    add("data", help=DATA)
    add("--out", type=Path, required=True, help="folder for the classifier")
    taps_help = "auto for all, last for the last, layers by place (..50%%, --taps=-2..) or by pattern (default auto)"
    add("--taps", nargs="+", default=["auto"], metavar="PATTERN", help=taps_help)
    add("--top", type=float, default=1.0, help="share of those layers to keep, from the task side (default 1)")
    add("--head", choices=HEADS, help="(default svm, for numbers ridge)")
    C_help = (
        'weight of the loss; several, or "auto", to choose among on training samples (default 1, for numbers auto)'
    )
    add("-C", "--C", nargs="+", metavar="C", help=C_help)
    features_help = "folder that keeps the features, in which a pass that was stopped resumes"
    add("--features", type=Path, metavar="FOLDER", help=features_help)
    add_reading(parser)


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    from hf_tl.classifier.classifier import Classifier
    from hf_tl.embedding.full_network import FullNetworkEmbedding
    from hf_tl.embedding.recipe import find_recipe

    start = time.perf_counter()
    C = None if options.C is None else read_C(options.C)
    if options.head == "lda" and C is not None:
        raise InputError("--head lda has no C; leave -C out")
    if not 0 < options.top <= 1:
        raise InputError(f"--top must be above 0 and at most 1, got {options.top}")
    find_recipe(options.recipe)
    make_folder(options.out)
    network, task, notes = read_network_and_task(options)
    embedding = FullNetworkEmbedding(
        network,
        recipe=options.recipe,
        taps=options.taps,
        top=options.top,
        batch_size=options.batch_size,
        device=options.device,
        on_bad_samples=options.on_bad_samples,
    )
    groups = look_for_twins(task.train, modality=network.modality, notes=notes)
    classifier = Classifier.fit(embedding, task, head=options.head, C=C, groups=groups, out=options.features)
    classifier.save_pretrained(options.out)
    for note in notes:
        print(f"note: {note}")
    print(classifier)
    print(f"\nwrote {options.out} in {time.perf_counter() - start:.0f} s; use it with")
    print(f"  hf-tl predict {options.out} INPUTS --out predictions.csv")
