"""The arguments that several commands share, and their checks."""

from __future__ import annotations

import argparse
from typing import Literal

from hf_tl.errors import InputError


MODEL = "Hub id, timm model name, folder, or local-dir:FOLDER"
DATA = "Hub id, .csv/.json/.parquet file, or folder"
REPORT_TO = "where each training is reported as it goes; TensorBoard's events are kept in OUT/tensorboard"
RECIPE = "paper, fne-package, standardize, l2 or raw (default %(default)s)"


def add_reading(parser: argparse.ArgumentParser, *, recipe: bool = True, problem: bool = True) -> None:
    """The options of commands that read a network on a dataset.

    Args:
        parser: of a command.
        recipe: whether what is read is scaled, as a recipe says.
        problem: whether something is learnt from the labels.
    """
    add = parser.add_argument
    if recipe:
        add("--recipe", default="paper", help=RECIPE)
    add("--image-size", type=int, help="side of the square images in pixels")
    add("--max-length", type=int, help="tokens of a text that are read, the rest is cut (default: 512 at most)")
    label_help = "label column, where it is not found by itself; or several of 0 and 1, a class each"
    add("--label", nargs="+", metavar="COLUMN", help=label_help)
    input_help = "image or text column, where it is not found by itself; or two, texts read as pairs"
    add("--input", nargs="+", metavar="COLUMN", help=input_help)
    if problem:
        problem_help = "what is learnt: one class a sample, several, or a number; by default the labels tell"
        add("--problem", choices=("classification", "multilabel", "regression"), help=problem_help)
    add("--config", help="configuration of the dataset, where it has several")
    size_help = "samples per forward pass (default: the first samples show which is fastest)"
    add("--batch-size", type=number_or_auto, default="auto", metavar="N", help=size_help)
    add("--device", default="cpu", help="where the network runs (default %(default)s)")
    bad_help = "end at a sample that cannot be read, or leave it out (default %(default)s)"
    add("--on-bad-samples", choices=("raise", "skip"), default="raise", help=bad_help)


def refuse_reading(options: argparse.Namespace, *, why: str) -> None:
    """Raises an InputError that names the options of `add_reading` that were given; `--recipe` aside."""
    parser = argparse.ArgumentParser()
    add_reading(parser, recipe=False)
    given = [
        max(action.option_strings, key=len)
        for action in parser._actions
        if action.dest != "help" and vars(options)[action.dest] != action.default
    ]
    if given:
        raise InputError(f"{', '.join(given)} does nothing here: {why}; leave it out")


def number_or_auto(text: str) -> int | Literal["auto"]:
    """A whole number, or the word "auto"."""
    return "auto" if text == "auto" else int(text)
