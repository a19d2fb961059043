"""Read a pre-trained network at every layer and evaluate what the layers know: image, text or audio, no training.

    python recipes/embed_and_probe.py recipes/configs/embed_and_probe.yaml
    python recipes/embed_and_probe.py --model timm/mobilenetv2_100.ra_in1k --dataset beans --image_size 160
    accelerate launch --num_processes 4 recipes/embed_and_probe.py recipes/configs/embed_and_probe.yaml   # four GPUs

Two processes on a CPU (`accelerate launch --cpu --num_processes 2` would start one):

    ACCELERATE_USE_CPU=true accelerate launch --config_file recipes/configs/two_processes_cpu.yaml \\
        recipes/embed_and_probe.py recipes/configs/embed_and_probe.yaml

What is read stays in --out; the same command resumes there, one process or many, and other --C or --head read nothing
again. In one process, `hf-tl probe MODEL DATA --layers` prints the same and more.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState

from hf_tl import FullNetworkEmbedding, layer_probes, load_network, load_task, parse_arguments
from hf_tl.probes import compare_probes, compared_features, fit_probe


@dataclass
class Arguments:
    """What to read, and which head is put on it."""

    model: str = field(metadata={"help": "Hub id, timm name or folder of a pre-trained network"})
    dataset: str = field(metadata={"help": "Hub id, folder or file of a labelled dataset"})
    out: str = field(default="runs/embed_and_probe", metadata={"help": "folder of the embedding and the results"})
    label: str | None = field(default=None, metadata={"help": "label column, if it is not found"})
    image_size: int | None = field(default=None, metadata={"help": "side of the square images in pixels"})
    recipe: str = field(default="paper", metadata={"help": "paper, fne-package, standardize, l2 or raw"})
    head: str | None = field(default=None, metadata={"help": "svm, logreg, ridge, knn, lda, kernel or mlp"})
    C: float = field(default=1.0, metadata={"help": "of the head"})
    batch_size: int = field(default=32, metadata={"help": "samples per forward pass"})
    num_workers: int = field(default=0, metadata={"help": "processes that read and prepare batches"})
    layers: bool = field(default=True, metadata={"help": "whether each layer is evaluated alone too"})


def main() -> None:
    (args,) = parse_arguments(Arguments)
    out, gpu = Path(args.out), torch.cuda.is_available()
    state = PartialState(cpu=not gpu)
    network = load_network(args.model, image_size=args.image_size)
    task = load_task(args.dataset, modality=network.modality, label=args.label)
    features = compared_features(recipe=args.recipe)
    reader = FullNetworkEmbedding(
        network,
        recipe=features[0].raw_recipe,
        taps=["auto", "last"],
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        device="cuda" if gpu else "cpu",
    )
    train = reader.activations(task.train, out=out / "train")
    test = reader.activations(task.test, out=out / "test")
    if state.is_main_process:
        probes = [fit_probe(train, test, choice, head=args.head, C=args.C) for choice in features]
        print(compare_probes(probes))
        results = {probe.features.name: probe.evaluation.score for probe in probes}
        (out / "results.json").write_text(json.dumps({"processes": state.num_processes, **results}, indent=1) + "\n")
    if state.is_main_process and args.layers:
        fne = features[0].embedding
        found = layer_probes(fne.fit_transform(train), fne.transform(test))
        print(f"\n{found.table()}\n\n{found}")
        found.plot(out / "layers.png", title=f"{Path(args.model).name} on {Path(args.dataset).name}")
    state.wait_for_everyone()
    state.destroy_process_group()


if __name__ == "__main__":
    main()
