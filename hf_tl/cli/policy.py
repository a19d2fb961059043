"""Shows what a policy would freeze, tune and reinitialise, layer by layer and phase by phase; trains nothing."""

from __future__ import annotations

import argparse
from pathlib import Path

from hf_tl.cli.arguments import MODEL
from hf_tl.errors import InputError
from hf_tl.files import make_folder


EXAMPLES = """\
  hf-tl policy timm/mobilenetv2_100.ra_in1k "freeze: ..50%; reinit: head; lr: decay 0.8"
  hf-tl policy path/to/model "lr: decay 0.8" --gradual 1 --lr 3e-4 --plot policy.png
  hf-tl policy path/to/model "reinit: head" --phase 0 "tune: head" --phase "2 epochs" "tune: all; lr: x0.1\""""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    add("model", help=MODEL)
    add("policy", help='clauses that hold all the time; "" for none')
    phased = parser.add_mutually_exclusive_group()
    phased.add_argument(
        "--phase",
        nargs=2,
        action="append",
        default=[],
        metavar=("WHEN", "CLAUSES"),
        help="a phase: '0', '2 epochs', '100 steps' or 'plateau eval_loss 2', and what holds from then on; once each",
    )
    phased.add_argument("--gradual", type=int, metavar="EPOCHS", help="the head first, a block more every EPOCHS")
    add("--lr", type=float, default=1.0, help="learning rate of the optimizer (default %(default)s)")
    add("--plot", type=Path, metavar="FILE", help="draws the grid of layers and phases (.png, .svg or .pdf)")
    add("--image-size", type=int, help="side of the square images in pixels")


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    from hf_tl.example import dummy_batch
    from hf_tl.models import load_network
    from hf_tl.policies.policy import Policy

    if not options.lr > 0:
        raise InputError(f"--lr should be above 0, got {options.lr}")
    if options.gradual is not None:
        policy = Policy.gradual(every=options.gradual, text=options.policy)
    else:
        policy = Policy(options.policy, [(when, text) for when, text in options.phase])
    network = load_network(options.model, image_size=options.image_size)
    result = policy.dry_run(network.model, lr=options.lr, example=dummy_batch(network.model))
    if options.plot is not None:
        make_folder(options.plot.parent)
        result.plot(
            options.plot, title=f"{Path(network.name).name}: learning rates, from data (below) to task (above)"
        )
    print(result)
    if options.plot is not None:
        print(f"wrote {options.plot}")
