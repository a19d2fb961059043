"""Predicts the classes of photos, texts or recordings, or numbers, with a saved classifier, into a csv file."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from hf_tl.table import format_table


SHOWN = 20  # of the files that could not be read
EXAMPLES = """\
  hf-tl predict runs/photos new-photos --out predictions.csv
  hf-tl predict runs/reviews reviews.csv --out predictions.csv --top 1
  hf-tl predict me/flowers new-photos --revision v1 --out predictions.csv"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    add("classifier", help="folder that `hf-tl fit` or Classifier.save_pretrained wrote, or Hub id")
    add("inputs", help="a folder, sub-folders too; a .csv/.json/.parquet file of texts or of paths; or one file")
    add("--out", type=Path, required=True, metavar="FILE", help=".csv file; a run that was stopped goes on in it")
    add("--top", type=int, default=3, help="classes an input, with their probabilities (default %(default)s)")
    add("--revision", help="branch, tag or commit on the Hub")
    add("--batch-size", type=int, default=32, help="inputs per forward pass (default %(default)s)")
    add("--device", default="cpu", help="where the network runs (default %(default)s)")
    bad_help = "end at an input that cannot be read, or name it and leave it out (default %(default)s)"
    add("--on-bad-samples", choices=("raise", "skip"), default="skip", help=bad_help)


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    from hf_tl.classifier.classifier import Classifier
    from hf_tl.classifier.predictions import write_predictions

    start = time.perf_counter()
    classifier = Classifier.from_pretrained(options.classifier, revision=options.revision)
    execution = classifier.execution
    execution.batch_size, execution.device = options.batch_size, options.device
    execution.on_bad_samples = options.on_bad_samples
    execution.check()
    done = write_predictions(classifier, options.inputs, options.out, top=options.top)
    if classifier.problem == "regression":
        print(format_table(["predicted", "lowest", "median", "highest"], [["value", *done.quantiles]]))
    else:
        print(format_table(["class", "inputs"], list(done.counts.items())))
        print(f"\nprobabilities: {classifier.calibration}")
    for name, problem in list(done.unreadable.items())[:SHOWN]:
        print(f"left out: {name}: {problem}")
    if len(done.unreadable) > SHOWN:
        print(f"left out: {len(done.unreadable) - SHOWN} more")
    if done.left_out:
        print(f"not {classifier.network.modality} files: {', '.join(done.left_out[:5])}, {len(done.left_out)} in all")
    if done.resumed:
        print(f"{done.resumed} inputs were done by an earlier run")
    print(f"wrote {options.out}: {done.n} predictions in {time.perf_counter() - start:.0f} s")
