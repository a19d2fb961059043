"""Looks at a dataset before anything is learnt from it: copies, labels, balance, unreadable samples, test size."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from hf_tl.cli.arguments import DATA
from hf_tl.files import make_folder


EXAMPLES = """\
  hf-tl audit beans
  hf-tl audit path/to/photos --out runs/audit
  hf-tl audit reviews.csv --label stars"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    add("data", help=DATA)
    add("--modality", choices=("image", "text", "audio"), help="what the samples are, where the columns do not tell")
    add("--label", nargs="+", metavar="COLUMN", help="label column, where it is not found by itself")
    add("--input", nargs="+", metavar="COLUMN", help="image or text column, where it is not found by itself")
    add("--config", help="configuration of the dataset, where it has several")
    add("--out", type=Path, default=Path("runs/audit"), help="folder for the pairs of copies (default %(default)s)")


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    from hf_tl.analysis.audit import audit
    from hf_tl.analysis.twins import twin_groups
    from hf_tl.data import find_data_modality, load_task

    start = time.perf_counter()
    modality = options.modality or find_data_modality(options.data, config=options.config)
    task = load_task(
        options.data,
        modality=modality,
        label=options.label,
        input_column=options.input,
        config=options.config,
        groups=twin_groups,
    )
    found = audit(task, modality=modality)
    print(found)
    if found.twins.pairs:
        make_folder(options.out)
        print(f"wrote {found.write_pairs(options.out / 'twins.csv')}")
    if found.twins.pairs and modality == "image":
        print(f"wrote {found.draw_pairs(options.out / 'twins.png', title=Path(options.data).name)}")
    print(f"\n{time.perf_counter() - start:.0f} s")
