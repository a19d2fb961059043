"""Embed a large dataset with every process of a machine: one pass, resumable, a folder that other jobs read.

    accelerate launch --num_processes 8 recipes/distributed_embedding.py recipes/configs/distributed_embedding.yaml
    python recipes/distributed_embedding.py --model timm/resnet50.a1_in1k --dataset food101 --out runs/food101

Two processes on a CPU (`accelerate launch --cpu --num_processes 2` would start one):

    ACCELERATE_USE_CPU=true accelerate launch --config_file recipes/configs/two_processes_cpu.yaml \\
        recipes/distributed_embedding.py recipes/configs/distributed_embedding.yaml

Each process reads its share of the rows and writes them by their number, so the folder is the same bytes for any
number of processes, and a killed job goes on where it was, with as many processes as it then has. The features are
those of training rows' statistics, discretised, four in a byte; --keep_raw keeps float32 activations too. Each
process holds the whole network: FSDP is refused, because layers that are sharded cannot be read where they run.

Afterwards, anywhere: `Embedding.load("runs/food101/train")`, or `hf-tl probe runs/food101`.
"""

import hashlib
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState

from hf_tl import Embedding, FullNetworkEmbedding, InputError, load_network, load_task, parse_arguments


@dataclass
class Arguments:
    """What to read and where to keep it."""

    model: str = field(metadata={"help": "Hub id, timm name or folder of a pre-trained network"})
    dataset: str = field(metadata={"help": "Hub id, folder or file of a labelled dataset"})
    out: str = field(metadata={"help": "folder that all processes see"})
    dataset_config: str | None = field(default=None, metadata={"help": "configuration of the dataset"})
    label: str | None = field(default=None, metadata={"help": "label column, if it is not found"})
    image_size: int | None = field(default=None, metadata={"help": "side of the square images in pixels"})
    recipe: str = field(default="paper", metadata={"help": "paper, fne-package, standardize, l2 or raw"})
    taps: str = field(default="auto", metadata={"help": "auto, blocks, linear, conv or last"})
    batch_size: int = field(default=64, metadata={"help": "samples per forward pass"})
    num_workers: int = field(default=0, metadata={"help": "processes that read and prepare batches, for each process"})
    dtype: str = field(default="float32", metadata={"help": "float32 or bfloat16"})
    on_bad_samples: str = field(default="skip", metadata={"help": "skip or raise"})
    keep_raw: bool = field(default=False, metadata={"help": "whether float32 activations are kept too"})


def main() -> None:
    (args,) = parse_arguments(Arguments)
    if os.environ.get("ACCELERATE_USE_FSDP", "false") == "true":
        raise InputError("each process reads with a whole network, and FSDP would shard it; launch without FSDP")
    gpu = torch.cuda.is_available()
    state = PartialState(cpu=not gpu)
    start = time.perf_counter()
    network = load_network(args.model, image_size=args.image_size)
    task = load_task(args.dataset, modality=network.modality, label=args.label, config=args.dataset_config)
    fne = FullNetworkEmbedding(
        network,
        recipe=args.recipe,
        taps=args.taps,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        dtype=args.dtype,
        on_bad_samples=args.on_bad_samples,
        device="cuda" if gpu else "cpu",
    )
    out = Path(args.out)
    train = fne.fit_transform(task.train, out=out / "train", keep_raw=args.keep_raw)
    test = fne.transform(task.test, out=out / "test", keep_raw=args.keep_raw)
    if state.is_main_process:
        fne.save_pretrained(out / "embedding")
        seconds, rows = time.perf_counter() - start, len(train) + len(test)
        results = {
            "processes": state.num_processes,
            "rows": [len(train), len(test)],
            "features": train.shape[1],
            "digest": digest(train, test),
        }
        (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        print(f"{rows} rows, {train.shape[1]} features of {len(train.layers)} layers in {seconds:.0f} s", end=" ")
        print(f"with {state.num_processes} processes: {rows / seconds:.0f} rows a second")
    state.wait_for_everyone()
    state.destroy_process_group()


def digest(*embeddings: Embedding) -> str:
    """SHA-256 of all features, by which two runs are compared."""
    found = hashlib.sha256()
    for embedding in embeddings:
        for start in range(0, len(embedding), 4096):
            found.update(np.ascontiguousarray(embedding.values[start : start + 4096]).tobytes())
    return found.hexdigest()


if __name__ == "__main__":
    main()
