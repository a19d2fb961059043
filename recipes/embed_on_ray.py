"""Embed a dataset on a Ray cluster: Parquet files in a bucket, or any dataset that all machines can read.

    python recipes/embed_on_ray.py --model timm/resnet50.a1_in1k --dataset beans --out runs/beans      # this machine
    python recipes/embed_on_ray.py --model timm/resnet50.a1_in1k --dataset s3://bucket/photos \\
        --out s3://bucket/features --address auto                                                        # a cluster
    python recipes/embed_on_ray.py ... --address auto --device cuda --dtype bfloat16                   # a GPU an actor

`ray start --head` starts the first machine of a cluster, `ray start --address=head:6379` each other one; they may come
and go while this runs. Parquet files hold a column of images, recordings or texts, and a column "index" that numbers
the samples. Without an address Ray is started on this machine.

Statistics are learnt from --fit_samples of them, drawn at random; then all are read, into Parquet shards of features
that `Embedding.load` opens, and pandas, DuckDB and `datasets` read. The fitted embedding itself is in FITTED.
"""

import time
from dataclasses import dataclass, field

import ray

from hf_tl import FullNetworkEmbedding, RayEmbedding, load_network, load_task, parse_arguments


@dataclass
class Arguments:
    """What to read, where, and where to keep it."""

    model: str = field(metadata={"help": "Hub id, timm name or folder of a pre-trained network"})
    dataset: str = field(
        metadata={"help": "folder or URL of Parquet files; or Hub id or folder of a labelled dataset"}
    )
    out: str = field(metadata={"help": "folder that all machines see, or URL, of the shards"})
    fitted: str = field(default="runs/fitted", metadata={"help": "folder of the fitted embedding, on this machine"})
    address: str | None = field(
        default=None, metadata={"help": "of the cluster that this machine is part of: auto, or HOST:6379"}
    )
    inputs: str | None = field(default=None, metadata={"help": "column of the inputs, if it is not found"})
    label: str | None = field(default=None, metadata={"help": "label column, if it is not found"})
    index: str = field(default="index", metadata={"help": "column that numbers the samples of Parquet files"})
    fit_samples: int = field(default=100_000, metadata={"help": "samples that statistics are learnt from, at most"})
    recipe: str = field(default="paper", metadata={"help": "paper, fne-package, standardize, l2 or raw"})
    taps: str = field(default="auto", metadata={"help": "auto, blocks, linear, conv or last"})
    image_size: int | None = field(default=None, metadata={"help": "side of the square images in pixels"})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda: each actor has a GPU of its own"})
    dtype: str = field(default="float32", metadata={"help": "float32 or bfloat16"})
    on_bad_samples: str = field(default="skip", metadata={"help": "skip or raise"})
    block_size: int = field(default=256, metadata={"help": "samples that an actor reads at a time"})
    actors: int | None = field(default=None, metadata={"help": "how many there are; as many as there is room for"})


def main() -> None:
    (args,) = parse_arguments(Arguments)
    ray.init(address=args.address, ignore_reinit_error=True)
    start = time.perf_counter()
    network = load_network(args.model, image_size=args.image_size)
    fne = FullNetworkEmbedding(
        network,
        recipe=args.recipe,
        taps=args.taps,
        device=args.device,
        dtype=args.dtype,
        on_bad_samples=args.on_bad_samples,
    )
    columns = {"inputs": args.inputs, "label": args.label, "index": args.index}
    on_ray = RayEmbedding(fne, **columns, block_size=args.block_size, actors=args.actors)
    if "://" in args.dataset or args.dataset.endswith(".parquet"):
        samples = ray.data.read_parquet(args.dataset)
        share = args.fit_samples / max(samples.count(), 1)
        drawn = samples if share >= 1 else samples.random_sample(share, seed=0)
    else:
        samples = load_task(args.dataset, modality=network.modality, label=args.label).train
        drawn = samples.sample(args.fit_samples)
    on_ray.fit(drawn)
    fne.save_pretrained(args.fitted)
    features = on_ray.to_parquet(on_ray.transform(samples), args.out)
    seconds = time.perf_counter() - start
    print(f"{features}\n{len(features) / seconds:.0f} samples a second, in {args.out}; fitted: {args.fitted}")


if __name__ == "__main__":
    main()
