"""Reads every layer of a network for every sample of a dataset, once, into a folder."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from hf_tl.cli.arguments import DATA, MODEL, add_reading, number_or_auto
from hf_tl.cli.reading import look_for_twins, read_task, save_groups
from hf_tl.files import make_folder
from hf_tl.table import format_table


EXAMPLES = """\
  hf-tl embed timm/mobilenetv2_100.ra_in1k beans --image-size 160 --out runs/beans
  hf-tl embed path/to/model path/to/images --out runs/images --dtype bfloat16 --num-workers 2"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    add("model", help=MODEL)
    add("data", help=DATA)
    add(
        "--out",
        type=Path,
        required=True,
        help="folder for the embedding; a pass that was stopped resumes from what it holds",
    )
    taps_help = "auto, blocks, linear, conv, layers by place (..50%%, --taps=-2..) or by pattern (default auto)"
    add("--taps", nargs="+", default=["auto"], metavar="PATTERN", help=taps_help)
    pool_help = (
        "how positions become one number: mean, max, gem, cls, patch-mean, last-token, or that of a plug-in "
        "(default mean)"
    )
    add("--pool", default="auto", metavar="NAME", help=pool_help)
    dtype_help = "precision of the network; auto for bfloat16 where that is clearly faster (default %(default)s)"
    add("--dtype", choices=("float32", "bfloat16", "auto"), default="float32", help=dtype_help)
    last_help = "convolutions with channels last (default: where the first samples show that it is faster)"
    add("--channels-last", action=argparse.BooleanOptionalAction, default="auto", help=last_help)
    workers_help = "processes that read and prepare the next batches (default: a thread does)"
    add("--num-workers", type=number_or_auto, default="auto", metavar="N", help=workers_help)
    add_reading(parser)


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    from hf_tl.embedding.batches import find_processes

    make_folder(options.out)
    start = time.perf_counter()
    how = {name: vars(options)[name] for name in ("pool", "dtype", "channels_last", "num_workers")}
    task = read_task(options, taps=[*options.taps, "last"], out=options.out, how=how)
    if not find_processes(options.device)[0].main:
        return
    save_groups(options.out, look_for_twins(task.samples, modality=task.modality, notes=task.notes))
    rows = []
    for split, embedding in (("train", task.train), ("test", task.test)):
        size = f"{embedding.values.nbytes / 2**20:.1f} MiB"
        rows.append([split, *embedding.shape, len(embedding.layers), size, str(options.out / split)])
    print(format_table(["split", "samples", "features", "layers", "size", "folder"], rows))
    for note in task.notes:
        print(f"note: {note}")
    print(f"\n{time.perf_counter() - start:.0f} s; next: hf-tl probe {options.out}")
