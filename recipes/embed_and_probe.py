"""Read a pre-trained network at every layer and judge what the layers know: image, text or audio, no training.

    python recipes/embed_and_probe.py recipes/configs/embed_and_probe.yaml
    python recipes/embed_and_probe.py --model timm/mobilenetv2_100.ra_in1k --dataset beans --image_size 160
    accelerate launch --num_processes 4 recipes/embed_and_probe.py recipes/configs/embed_and_probe.yaml   # four GPUs

Two processes on a CPU (`accelerate launch --cpu --num_processes 2` would start one):

    ACCELERATE_USE_CPU=true accelerate launch --config_file recipes/configs/two_processes_cpu.yaml \\
        recipes/embed_and_probe.py recipes/configs/embed_and_probe.yaml

Rows are kept in --out as they are read; the same command goes on where it was stopped. One process and many write
the same rows. The network may be transformers' or timm's; a later run with other --C or --head reads nothing again.
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from accelerate import PartialState

from hf_tl import (
    FullNetworkEmbedding,
    format_table,
    layer_probes,
    load_network,
    load_task,
    make_head,
    parse_arguments,
)
from hf_tl.embedding import RECIPES, find_recipe


@dataclass
class Arguments:
    """What to read and how to judge it."""

    model: str = field(metadata={"help": "Hub id, timm name or folder of a pre-trained network"})
    dataset: str = field(metadata={"help": "Hub id, folder or file of a labelled dataset"})
    out: str = field(default="runs/embed_and_probe", metadata={"help": "folder of the embedding and the results"})
    dataset_config: str | None = field(default=None, metadata={"help": "configuration of the dataset"})
    label: str | None = field(default=None, metadata={"help": "label column, if it is not found"})
    image_size: int | None = field(default=None, metadata={"help": "side of the square images in pixels"})
    recipe: str = field(default="paper", metadata={"help": "paper, fne-package, standardize, l2 or raw"})
    taps: str = field(default="auto", metadata={"help": "auto, blocks, linear, conv or last"})
    head: str = field(default="svm", metadata={"help": "svm, logreg, ridge, knn, lda, kernel or mlp"})
    C: float = field(default=1.0, metadata={"help": "of the head"})
    batch_size: int = field(default=32, metadata={"help": "samples per forward pass"})
    num_workers: int = field(default=0, metadata={"help": "processes that read and prepare batches"})
    layers: bool = field(default=True, metadata={"help": "whether each layer is judged alone too"})


def main() -> None:
    (args,) = parse_arguments(Arguments)
    gpu = torch.cuda.is_available()
    state = PartialState(cpu=not gpu)
    network = load_network(args.model, image_size=args.image_size)
    task = load_task(args.dataset, modality=network.modality, label=args.label, config=args.dataset_config)
    reader = FullNetworkEmbedding(
        network,
        recipe=replace(RECIPES["raw"], activation=find_recipe(args.recipe).activation),
        taps=args.taps if args.taps == "last" else [args.taps, "last"],
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        device="cuda" if gpu else "cpu",
    )
    out = Path(args.out)
    train = reader.activations(task.train, out=out / "train")
    test = reader.activations(task.test, out=out / "test")
    if state.is_main_process:
        judge(args, train, test, state.num_processes)
    state.wait_for_everyone()
    state.destroy_process_group()


def judge(args: Arguments, train, test, processes: int) -> None:
    """Prints and keeps the accuracy of the whole network, of its last layer, and of each layer."""
    rows, results = [], {"processes": processes}
    for name, recipe, taps in (("full network", args.recipe, args.taps), ("last layer", "l2", "last")):
        fne = FullNetworkEmbedding(recipe=recipe, taps=taps)
        features, judged = fne.fit_transform(train), fne.transform(test)
        head = make_head(args.head, features.shape, C=args.C).fit(features.values, train.labels)
        results[name] = float(head.score(judged.values, test.labels))
        rows.append([name, len(features.layers), features.shape[1], len(train), len(test), results[name]])
    print(format_table(["features of", "layers", "features", "train samples", "test samples", "test accuracy"], rows))
    if args.layers and args.taps != "last":
        fne = FullNetworkEmbedding(recipe=args.recipe, taps=args.taps)
        probes = layer_probes(fne.fit_transform(train), fne.transform(test))
        print(f"\n{probes.table()}\n\n{probes}")
        probes.plot(Path(args.out) / "layers.png", title=f"{Path(args.model).name}, layer by layer")
    (Path(args.out) / "results.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
